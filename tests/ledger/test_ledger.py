"""The ledger: what it refuses, what it calls current, and that no number outlives its code."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from kda_lab.bench import ledger, sources, tables
from kda_lab.native.rungs import RUNGS
from tests.ledger.entries import entry, put, timed


def break_a_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_a_ledger_with_reports_for_every_rung_passes(passing):
    assert ledger.problems() == []
    assert ledger.main(["check"]) == 0


def test_check_runs_from_a_copy_in_the_working_directory(passing):
    command = [sys.executable, "-m", "kda_lab.cli", "ledger", "check"]
    assert subprocess.run(command, cwd=passing.parent).returncode == 0
    break_a_byte(passing / "v1" / "v1.cu")
    done = subprocess.run(command, cwd=passing.parent, capture_output=True, text=True)
    assert done.returncode == 1
    assert "rung v1: no correctness report for the sources that stand" in done.stderr


@pytest.mark.parametrize("rung", sources.gpu_rungs())
def test_one_byte_of_any_file_of_a_closure_fails_the_check(passing, rung):
    for path in sources.closures()[rung]:
        before = path.read_bytes()
        break_a_byte(path)
        assert any(
            problem.startswith(f"rung {rung}: no correctness report")
            for problem in ledger.problems()
        ), path
        path.write_bytes(before)
    assert ledger.problems() == []


def test_a_byte_outside_the_closures_changes_nothing(passing):
    (passing / "v1" / "NOTES.md").write_text("what was tried and lost")
    assert ledger.problems() == []


def test_a_missing_source_fails_the_check(passing):
    (passing / "v0" / "v0.cu").unlink()
    assert "rung v0: its sources are missing" in ledger.problems()


def test_a_cuda_source_of_nobody_fails_the_check(passing):
    (passing / "common" / "stray.cuh").write_text("// nobody includes this")
    assert ledger.problems() == ["common/stray.cuh: belongs to no rung, microbenchmark or skeleton"]


@pytest.mark.parametrize("folder", ["micro", "skeletons"])
def test_a_program_needs_a_measurement_of_its_sources(passing, folder):
    (passing / folder).mkdir(exist_ok=True)
    source = passing / folder / "bulk_copy.cu"
    source.write_text('#include "../common/device.cuh"\nint main() {}\n')
    assert [p for p in ledger.problems() if p.startswith("bulk_copy: no measurement")]
    row = dict(rung="bulk_copy", direction="micro", workload="256 B rows", value=2.1, unit="TB/s")
    put(entry("micro", [row], "2026-11-25T00:00:00Z"))
    assert ledger.problems() == []
    break_a_byte(source)
    assert [p for p in ledger.problems() if p.startswith("bulk_copy: no measurement")]


def test_a_failed_case_fails_the_check(passing):
    rows = [dict(rung="v1", case="lengths", status="failed", message="wrong")]
    put(entry("gpu-check", rows, "2026-11-25T00:00:00Z", planned={"v1": ["lengths", "memcheck"]}))
    assert "rung v1: failed on a GPU: lengths" in ledger.problems()


def test_what_a_rung_may_fail_is_said_and_nothing_else_may(kernels, monkeypatch):
    def report(second, **cases):
        rows = [dict(rung="v1", case=case, status=status) for case, status in cases.items()]
        plan = {"v1": ["lengths", "racecheck"]}
        put(entry("gpu-check", rows, f"2026-11-24T00:00:0{second}Z", planned=plan))
        return [p for p in ledger.problems() if p.startswith("rung v1")]

    monkeypatch.setitem(RUNGS, "v1", replace(RUNGS["v1"], unproven=("racecheck",)))
    assert "did not run: racecheck" in report(1, lengths="passed")[0]
    assert report(2, lengths="passed", racecheck="failed") == []
    assert ledger.verdict("v1") == "failed on a GPU: racecheck"  # a card says it
    assert "failed on a GPU: lengths" in report(3, lengths="failed")[0]
    assert "take it out of `unproven`" in report(4, lengths="passed", racecheck="passed")[0]


def test_auto_rows_of_a_rung_that_auto_no_longer_chooses_are_hidden(kernels, monkeypatch):
    put(entry("bench", [timed("v1"), timed("auto", served_by="v1")]))
    assert [row["rung"] for row in ledger.show()] == ["v1", "auto"]
    monkeypatch.setitem(RUNGS, "v1", replace(RUNGS["v1"], unproven=("racecheck",)))
    assert [row["rung"] for row in ledger.show()] == ["v1"]


@pytest.mark.parametrize("status", ["not_run", None])
def test_a_case_that_did_not_run_is_no_pass(kernels, status):
    rows = [dict(rung="v1", case="lengths", status="passed")]
    if status:
        rows.append(dict(rung="v1", case="memcheck", status=status))
    put(entry("gpu-check", rows, planned={"v1": ["lengths", "memcheck"]}))
    assert "did not run: memcheck" in ledger.verdict("v1")


def test_a_later_report_supplies_what_an_earlier_one_lacked(kernels):
    plan = {"v1": ["lengths", "memcheck"]}
    put(entry("gpu-check", [dict(rung="v1", case="lengths", status="passed")], planned=plan))
    late = [dict(rung="v1", case="memcheck", status="passed")]
    put(entry("gpu-check", late, "2026-11-25T00:00:00Z", planned=plan))
    assert ledger.verdict("v1") is None


def test_a_torn_file_fails_the_check_and_names_itself(passing):
    path = next((passing / "measurements").glob("*.json"))
    path.write_text(path.read_text()[:100])
    assert any(problem.startswith(path.name) for problem in ledger.problems())
    with pytest.raises(ledger.LedgerError, match=path.name):
        ledger.show()


@pytest.mark.parametrize(
    "spoil, word",
    [
        (lambda e: e.pop("driver"), "driver"),
        (lambda e: e.update(kind="guess"), "kind"),
        (lambda e: e.update(gpu=""), "gpu"),
        (lambda e: e["hashes"].update(v1="12"), "hashes"),
        (lambda e: e["rows"][0].pop("workload"), "workload"),
        (lambda e: e["rows"][0].update(graph_ms="fast"), "graph_ms"),
        (lambda e: e["rows"][0].update(graph_ms=None), "graph_ms"),
        (lambda e: e["rows"][0].update(eager_ms=True), "eager_ms"),
        (lambda e: e["rows"][0].update(direction="sideways"), "direction"),
        (lambda e: e["rows"].append(3), "rows"),
    ],
)
def test_the_schema_refuses(kernels, spoil, word):
    broken = entry("bench", [timed()])
    spoil(broken)
    with pytest.raises(ledger.LedgerError, match=word):
        put(broken)
    assert list((kernels / "measurements").iterdir()) == []


def test_a_write_that_is_cut_short_leaves_the_old_file(kernels, monkeypatch):
    path = put(entry("bench", [timed(ms=1.0)]))

    def power_cut(*_):
        raise OSError("power cut")

    monkeypatch.setattr(ledger.os, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        put(entry("bench", [timed(ms=2.0)]))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert ledger.read(path)["rows"][0]["graph_ms"] == 1.0


def test_nan_never_enters(kernels):
    with pytest.raises(ValueError):
        put(entry("bench", [timed(ms=float("nan"))]))
    assert list((kernels / "measurements").iterdir()) == []


def test_add_refuses_sources_that_do_not_stand(kernels, tmp_path):
    result = tmp_path / "result.json"
    good = entry("bench", [timed()])
    ledger.write(good, result)
    assert ledger.add(result).parent == ledger.directory()
    ledger.write(good | {"hashes": {"v1": "0" * 64}}, result)
    with pytest.raises(ledger.LedgerError, match="ran v1 with sources 000000000000"):
        ledger.add(result)
    ledger.write(good | {"hashes": {"v77": "0" * 64}}, result)
    with pytest.raises(ledger.LedgerError, match="v77"):
        ledger.add(result)


FIELDS = [
    "rung",
    "direction",
    "workload",
    "gate",
    "gpu",
    "graph_ms",
    "eager_ms",
    "spread",
    "floor_ms",
]
FIELDS += ["dram_bytes", "workspace_bytes", "peak_bytes", "error", "peers"]


def test_show_prints_every_current_row_oldest_first(kernels, capsys):
    put(entry("bench", [timed(ms=2.0), timed("auto", served_by="v1")], "2026-11-24T10:00:00Z"))
    put(entry("bench", [timed(ms=1.0)], "2026-11-24T09:00:00Z"))
    put(entry("profile", [dict(rung="v1", workload="8192-H96", gate="strong", dram_bytes=7.0)]))
    micro = dict(rung="m", direction="micro", workload="n=64", value=1.0, unit="TFLOP/s")
    put(entry("micro", [micro]))
    cpu = {k: v for k, v in timed("chunked", "4096-H8").items() if k not in ("graph_ms", "peers")}
    put(entry("cpu", [cpu], "2026-11-24T08:00:00Z", gpu=""))
    assert ledger.main(["show", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["date"] for row in rows] == sorted(row["date"] for row in rows)
    assert all(field in row for row in rows for field in FIELDS)
    assert [r["graph_ms"] for r in rows if r["rung"] == "v1"] == [1.0, 2.0]
    assert {r["rung"]: r["gpu"] for r in rows}["chunked"] == ""
    assert {r["rung"]: r["dram_bytes"] for r in rows if r["kind"] == "bench"} == {
        "v1": 7.0,
        "auto": 7.0,
    }
    assert [r["direction"] for r in rows if r["rung"] == "m"] == ["micro"]


def test_rows_of_sources_that_changed_are_not_current(kernels):
    put(entry("bench", [timed(), timed("v0"), timed("auto", served_by="v1")]))
    assert {row["rung"] for row in ledger.show()} == {"v1", "v0", "auto"}
    break_a_byte(kernels / "v1" / "v1.cu")
    assert {row["rung"] for row in ledger.show()} == {"v0"}


def test_tables_are_drawn_between_their_markers_and_drift_is_seen(kernels, tmp_path):
    put(entry("bench", [timed(), timed("v0", ms=40.0), timed("v1", "2048-H12", ms=0.1)]))
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n<!-- ledger: forward strong -->\n<!-- /ledger -->\n\nend\n")
    assert tables.update([readme], check=True) == 1
    assert tables.update([readme], check=False) == 0
    text = readme.read_text()
    assert "| 8192-H96 | 0.25 | 40 | 2 | 3 | 1.5 |" in text
    assert "Recorded on an NVIDIA H200, 2026-11-24." in text
    assert text.index("8192-H96") < text.index("2048-H12") and text.endswith("end\n")
    assert tables.update([readme], check=True) == 0
    readme.write_text(text.replace("| 0.25 |", "| 0.20 |"))
    assert tables.update([readme], check=True) == 1


def test_a_marker_that_names_no_table_is_an_error(kernels, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- ledger: fastest -->\n<!-- /ledger -->\n")
    with pytest.raises(ledger.LedgerError, match="fastest"):
        tables.update([readme], check=False)


def test_the_table_of_one_program_shows_that_one(passing):
    one = dict(rung="wgmma_rate", direction="micro", workload="n=64", value=32.1, unit="cycles")
    other = dict(rung="chain", direction="micro", workload="chunk", value=900.0, unit="cycles")
    put(entry("micro", [one | {"predicted": 32.0}, other], "2026-11-25T00:00:00Z"))
    design = passing / "DESIGN.md"  # redrawn without being named
    design.write_text("<!-- ledger: micro wgmma_rate -->\n<!-- /ledger -->\n")
    assert tables.update([], check=False) == 0
    text = design.read_text()
    assert "| n=64 | 32.1 | 32 | cycles |" in text and "chunk" not in text
    design.write_text("<!-- ledger: micro wgmma -->\n<!-- /ledger -->\n")
    with pytest.raises(ledger.LedgerError, match="micro wgmma_rate"):
        tables.update([], check=False)


def test_tables_in_notebooks_keep_the_rest_of_the_file(kernels, tmp_path):
    import nbformat

    from kda_lab.notebook_form import canonical_text

    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("<!-- ledger: ladder -->\n<!-- /ledger -->", id="a"),
            nbformat.v4.new_code_cell("print('<!-- ledger: ladder -->')", id="b"),
        ]
    )
    path = tmp_path / "11.ipynb"
    path.write_text(canonical_text(notebook))
    put(entry("bench", [timed()]))
    assert tables.update([path], check=False) == 0
    after = nbformat.v4.reads_json(path.read_text())
    assert "**v1**" in after.cells[0].source
    assert after.cells[1] == notebook.cells[1]
    assert tables.update([path], check=True) == 0


def test_newest_row_wins_and_gpus_are_not_mixed(kernels):
    put(entry("bench", [timed(ms=9.0)], "2026-11-23T00:00:00Z"))
    put(
        entry(
            "bench",
            [timed(ms=5.0), timed("v0", ms=50.0)],
            "2026-11-24T00:00:00Z",
            gpu="NVIDIA H100",
        )
    )
    put(entry("bench", [timed(ms=3.0)], "2026-11-25T00:00:00Z"))
    by_rung = tables.timed(ledger.show(), "forward", "strong")["8192-H96"]
    assert {rung: row["graph_ms"] for rung, row in by_rung.items()} == {"v1": 3.0}


def test_pictures_are_drawn_with_and_without_measurements(kernels, tmp_path):
    from kda_lab.bench import plots

    _, words = plots.time_against_floor()
    assert words == tables.NOTHING
    ceilings = {"copy_bytes_per_s": 4.3e12, "matmul_flops_per_s": 7.8e14}
    put(
        entry(
            "bench",
            [timed(), timed("v0", ms=40.0), timed("auto", served_by="v1")],
            ceilings=ceilings,
        )
    )
    _, words = plots.time_against_floor()
    assert "8192-H96 8.0" in words
    assert plots.write(tmp_path / "pictures") == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 5


def test_a_card_says_where_its_numbers_come_from(passing):
    from kda_lab.bench.cards import card

    assert tables.NOTHING in repr(card("v1", fresh=False))
    put(entry("bench", [timed()]))
    text = repr(card("v1", fresh=False))
    assert "Recorded on an NVIDIA H200" in text and "All 2 correctness cases passed" in text
    assert "| 8192-H96 | 2 | 8.0 | 1.50 | 0.75 | 3.0e-03 |" in text
    break_a_byte(passing / "v1" / "v1.cu")
    text = repr(card("v1", fresh=False))
    assert tables.NOTHING in text and "no correctness report" in text
    with pytest.raises(ValueError, match="rung"):
        card("v99")
