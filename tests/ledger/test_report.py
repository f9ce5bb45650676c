"""Proofs of the drop-ins: the cases are proper calls, wrong answers fail, and ledger and table know them."""

import sys
import time

import pytest
import torch

from kda_lab.bench import ledger, report, tables
from kda_lab.inputs import check_call
from kda_lab.integrations import fla, flash_kda
from tests.integrations.test_fla import stand_in
from tests.ledger.entries import entry, put

SMALL = {
    name: x
    for name, x in report.fla_cases().items()
    if x.get("B", 1) * (x["cu"][-1] if x.get("cu") else x["T"]) * x["H"] * x.get("D", 128) < 70_000
}


def test_the_cases_are_flas():
    cases = report.fla_cases()
    assert sum("in bfloat16" not in name for name in cases) == 16 + 4 + 3 + 6 + 5 + 3 + 3
    assert {x["D"] for x in cases.values() if "D" in x} >= {60, 64, 100, 128, 256}
    half = [name for name in cases if name.endswith("float16") and "bfloat16" not in name]
    assert {f"{name[:-8]} in bfloat16" for name in half} <= set(cases)


@pytest.mark.parametrize("name", SMALL)
def test_every_case_is_a_proper_call(name):
    call = check_call(**report.ours_of(report.fla_inputs(**SMALL[name], device="cpu")))
    assert call.q.dtype == getattr(torch, SMALL[name]["dtype"])
    assert not call.g.isnan().any() and (call.use_gate_in_kernel or call.g.max() <= 0)


def test_every_case_of_flash_kda_is_asked_for_once():
    cases = report.flash_kda_cases()
    assert all(x["T"] == sum(x["lengths"]) for x in cases.values() if x["lengths"])
    short = [x for x in cases.values() if x["T"] == 17 and x["H"] == 1]
    assert len({(x["into"], x["out"], x["dtype"]) for x in short if x["into"] or x["out"]}) == 6


@pytest.mark.parametrize("out", [True, False])
def test_flash_kda_passes_and_a_wrong_one_fails(out, monkeypatch):
    options = dict(T=33, H=2, lengths=[16, 17], into=True, out=out, dtype="float32", device="cpu")
    row = report.flash_kda_case("", **options)
    assert row["status"] == "passed" and 1e-4 < row["error"] < 6e-3 and row["served_by"]
    right = flash_kda.fwd

    def wrong(q, k, v, g, beta, scale, *others):
        right(q, k, v, g, beta, 1.02 * scale, *others)

    monkeypatch.setattr(flash_kda, "fwd", wrong)
    row = report.flash_kda_case("", **options)
    assert row["status"] == "failed" and "from fp64" in row["message"]


@pytest.fixture
def stood_in(monkeypatch):
    for name, module in stand_in().items():
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["fla.ops.kda"].chunk_kda = sys.modules["fla.ops.kda.chunk"].chunk_kda
    monkeypatch.setattr(report, "COMPILED", ("cpu", "recurrent"))
    yield
    fla.unregister()


def test_a_case_of_fla_goes_through_its_dispatch(stood_in):
    rows = {n: report.fla_case(n, x | dict(device="cpu")) for n, x in list(SMALL.items())[:4]}
    declined, served = list(rows.values())[:2]
    assert served["status"] == "passed" and served["served_by"] in ("cpu", "recurrent")
    assert declined["status"] in ("declined", "passed")


def test_out_of_time_and_not_installed_are_not_passed(monkeypatch):
    rows = list(report.run_part("flash_kda", time.monotonic() - 1))
    assert {row["status"] for row in rows} == {"not_run"}
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    rows = list(report.run_part("fla", time.monotonic() + 60))
    assert {row["message"] for row in rows} == {"fla is not installed"}


def test_a_case_that_raises_fails(monkeypatch):
    def run(name, **options):
        raise RuntimeError("CUDA refused")

    monkeypatch.setitem(report.PARTS, "flash_kda", (lambda: {"a": {}}, run, ""))
    (row,) = report.run_part("flash_kda", time.monotonic() + 60)
    assert row["status"] == "failed" and "CUDA refused" in row["message"]


def rows() -> list[dict]:
    common = dict(rung="auto", served_by="v1")
    return [
        common | dict(part="fla", case="a", status="passed", error=1e-3, state_error=2e-3, apart=3e-3),
        dict(rung="auto", part="fla", case="b", status="declined", message="q is float16"),
        common | dict(part="model", case="4 layers", status="passed", apart=4e-3, eager_ms=5.0, their_ms=9.0),
    ]  # fmt: skip


def test_the_table_and_what_outlived_its_code(passing):
    put(entry("report", rows()))
    assert ledger.problems() == []
    table = tables.TABLES["drop-ins"]([])
    assert "| fla | 1 of 1 | 1 | 1.0e-03 | 2.0e-03 | - | - | 3.0e-03 |" in table
    assert "logits 4.0e-03 apart, 5 ms with our backend, 9 ms without" in table
    assert "drop-ins" in tables.everything(ledger.show())
    source = passing / "v1" / "v1.cu"
    source.write_text(source.read_text() + "// changed\n")
    assert {part for part, _ in ledger.drop_ins()} == {"fla"} and len(ledger.drop_ins()) == 1


def test_a_failed_case_fails_the_check_until_it_passes(passing):
    failed = rows()[0] | dict(status="failed", message="1.0 from fp64")
    put(entry("report", [failed]))
    assert ledger.problems() == ["drop-in fla: a: failed on a GPU: 1.0 from fp64"]
    put(entry("report", rows(), "2026-11-25T00:00:00Z"))
    assert ledger.problems() == []
