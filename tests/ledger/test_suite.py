"""The suite of gpu-check catches what it is for: each broken backend fails the case that looks for it."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from kda_lab import recurrent
from kda_lab.backend import BACKENDS, Backend
from kda_lab.bench import gpu_check, suite
from kda_lab.bench.gold import gold, relative_l2, sample


def judge(monkeypatch, run, *cases: str, declines=lambda call: None) -> list[dict]:
    """Rows of these cases for a backend made of `run`, on CPU tensors."""
    backend = Backend("broken", "", run, declines=declines)
    monkeypatch.setitem(BACKENDS, "broken", backend)
    return [suite.run_case(suite.Target("broken", "cpu"), case) for case in cases]


def test_a_right_backend_passes(monkeypatch):
    cases = (
        "batches",
        "empty_sequences",
        "nothing_at_all",
        "state_layouts",
        "offsets_end_early",
        "offsets_int32",
    )
    rows = judge(monkeypatch, recurrent.run, *cases)
    assert [row["status"] for row in rows] == ["passed"] * len(cases), rows
    assert 0 < rows[0]["worst_o"] < 1e-5


def unwritten_row(call):
    o, state = recurrent.run(call)
    out = torch.empty_like(o)
    out[:, 1:] = o[:, 1:]
    return out, state


def past_the_end(call):
    o, state = recurrent.run(call)
    out = torch.empty(o.shape, dtype=o.dtype)
    out.copy_(o)
    torch.as_strided(out, (out.numel() + 1,), (1,))[-1] = 0.0
    return out, state


def changes_an_input(call):
    result = recurrent.run(call)
    call.v.mul_(1.0001)
    return result


def forgets_empty_sequences(call):
    o, state = recurrent.run(call)
    for n, (start, stop) in enumerate(call.spans()):
        if start == stop:
            state[n] = 0
    return o, state


def reads_past_the_end(call):
    o, state = recurrent.run(call)
    behind = torch.as_strided(call.k, (call.k.numel() + 1,), (1,))[-1]
    return o + 0 * behind, state


def transposed_state(call):
    o, state = recurrent.run(call)
    return o, state.mT.contiguous() if state is not None and call.state_v_first else state


def wrong_by_half_a_percent(call):
    o, state = recurrent.run(call)
    return o * 1.005, state


def shifted_past_the_end(call):
    o, state = recurrent.run(call)
    end = call.spans()[-1][1]
    o[:, end:] = 1.0
    return o, state


@pytest.mark.parametrize(
    "run, case, words",
    [
        (unwritten_row, "batches", "o is inf"),
        (past_the_end, "batches", "wrote outside"),
        (changes_an_input, "batches", "changed its input v"),
        (reads_past_the_end, "batches", "o is inf"),
        (wrong_by_half_a_percent, "batches", "o is 5"),
        (forgets_empty_sequences, "empty_sequences", "is empty but its state|state is"),
        (transposed_state, "state_layouts", "state_v_first: state is"),
        (shifted_past_the_end, "offsets_end_early", "not 0 past the end"),
    ],
)
def test_a_broken_backend_fails(monkeypatch, run, case, words):
    (row,) = judge(monkeypatch, run, case)
    assert row["status"] == "failed", row
    assert any(word in row["message"] for word in words.split("|")), row


def test_declining_is_allowed_only_where_the_suite_says_so(monkeypatch):
    rows = judge(
        monkeypatch, recurrent.run, "gates_unbounded", "batches", declines=lambda call: "no"
    )
    assert [row["status"] for row in rows] == ["declined", "failed"]


def test_an_exception_is_a_failure(monkeypatch):
    def crash(call):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    (row,) = judge(monkeypatch, crash, "batches")
    assert row["status"] == "failed" and "illegal memory" in row["message"]


def test_cases_for_a_gpu_never_pass_without_one(monkeypatch):
    (row,) = judge(monkeypatch, recurrent.run, "offsets_corrupt")
    assert row["status"] == "not_run"


def test_every_gpu_rung_has_its_cases():
    assert {"lengths", "deterministic", "past_two_to_the_31"} <= set(suite.cases_of("v1"))
    assert {"one_token", "slots", "deterministic", "state_in_place"} <= set(
        suite.cases_of("decode")
    )


def test_fences_hold_any_strides():
    x = torch.randn(3, 8, 5)[:, ::2].bfloat16()
    inside, buffer = suite.fence(x)
    assert inside.shape == x.shape and inside.isnan().all()
    inside.copy_(x)
    assert torch.equal(inside, x)
    assert buffer.numel() >= x.untyped_storage().nbytes() + 2 * suite.FENCE


def test_relative_l2_never_accepts_nan():
    exact = torch.ones(4)
    assert relative_l2(torch.tensor([1.0, 1.0, 1.0, float("nan")]), exact) == float("inf")
    assert relative_l2(exact * 1.01, exact) == pytest.approx(0.01, rel=1e-4)
    assert relative_l2(torch.zeros(4), torch.zeros(4)) == 0.0


def test_gold_on_some_heads_is_gold_of_all_heads():
    t = suite.Target("chunked", "cpu")
    arguments = suite.inputs(t, 40, H=2, HV=4, gate="weak")
    o, state = gold(**arguments)
    few = sample(arguments, 3)
    assert few.heads == (0, 1, 3)
    errors = few.errors(o, state, few.gold())
    assert max(errors) < 1e-12


# ---------------------------------------------------------------- the journal and the parent process


def test_the_journal_survives_a_torn_line_and_changed_sources(tmp_path):
    journal = gpu_check.Journal(tmp_path / "j.jsonl")
    journal.append({"rung": "v1", "hash": "a", "case": "lengths", "started": 1.0})
    assert journal.started("v1") == ("lengths", 1.0)
    journal.append({"rung": "v1", "hash": "a", "case": "lengths", "status": "passed"})
    assert journal.started("v1") is None
    with journal.path.open("a") as f:
        f.write('{"rung": "v1", "ha')
    assert set(journal.results("v1", "a")) == {"lengths"}
    assert journal.results("v1", "b") == {}


def test_resuming_keeps_what_passed_and_runs_the_rest_again(tmp_path):
    journal = gpu_check.Journal(tmp_path / "j.jsonl")
    for case, status in (("a", "passed"), ("b", "failed"), ("c", "declined"), ("d", "not_run")):
        journal.append({"rung": "v1", "hash": "h", "case": case, "status": status})
    journal.append({"rung": "v1", "hash": "h", "case": "e", "started": 1.0})
    journal.begin(resume=True)
    assert set(journal.results("v1", "h")) == {"a", "c"} and journal.started("v1") is None
    journal.begin(resume=False)
    assert list(journal.rows()) == []


def test_a_case_that_kills_its_process_fails_and_the_rest_goes_on(tmp_path, monkeypatch):
    """The first worker dies inside a case; the parent records that and starts another for what is left."""
    journal = gpu_check.Journal(tmp_path / "gpu-check.jsonl")
    args = gpu_check.arguments(["--device", "cpu", "--rung", "chunked", "--out", str(tmp_path)])
    cases = ["batches", "nothing_at_all"]
    monkeypatch.setattr(gpu_check, "suite_cases", lambda rung: cases)
    starts = []

    class Worker:
        def __init__(self, command):
            starts.append(command[command.index("--cases") + 1 :])
            self.returncode = None
            case = starts[-1][0]
            journal.append({"rung": "chunked", "hash": "h", "case": case, "started": time.time()})
            if case == "batches":
                self.returncode = -signal.SIGSEGV
            else:
                row = {"rung": "chunked", "hash": "h", "case": case, "status": "passed"}
                journal.append(row | {"message": "", "seconds": 0})
                self.returncode = 0

        def poll(self):
            return self.returncode

    monkeypatch.setattr(gpu_check.subprocess, "Popen", Worker)
    gpu_check.run_rung("chunked", args, journal, "h", time.time() + 60)
    rows = journal.results("chunked", "h")
    assert starts == [["batches", "nothing_at_all"], ["nothing_at_all"]]
    assert rows["batches"]["status"] == "failed" and "status -11" in rows["batches"]["message"]
    assert rows["nothing_at_all"]["status"] == "passed"


def test_gpu_check_runs_in_processes_and_resumes(tmp_path, monkeypatch):
    journal = gpu_check.Journal(tmp_path / "gpu-check.jsonl")
    args = gpu_check.arguments(["--device", "cpu", "--rung", "recurrent", "--out", str(tmp_path)])
    monkeypatch.setattr(gpu_check, "suite_cases", lambda rung: ["batches", "nothing_at_all"])
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    gpu_check.run_rung("recurrent", args, journal, "h", time.time() + 120)
    rows = journal.results("recurrent", "h")
    assert [row["status"] for row in rows.values()] == ["passed", "passed"]
    before = journal.path.read_text()
    gpu_check.run_rung("recurrent", args, journal, "h", time.time() + 120)
    assert journal.path.read_text() == before


def test_without_a_gpu_it_says_so(capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    assert "no CUDA GPU" in capsys.readouterr().err


def test_a_sanitizer_passes_only_when_every_call_ran(tmp_path):
    from kda_lab.bench.sanitize import DONE

    class Ended:
        def __init__(self, status):
            self.status = status

        def wait(self, timeout):
            return self.status

    log = tmp_path / "log"
    deadline = time.time() + 9
    log.write_text(f"{DONE}: 8\n========= ERROR SUMMARY: 0 errors\n")
    assert gpu_check.sanitizer_row(Ended(0), log, deadline)["status"] == "passed"
    log.write_text("========= ERROR SUMMARY: 0 errors\n")
    assert gpu_check.sanitizer_row(Ended(0), log, deadline)["status"] == "failed"
    log.write_text(
        f"{DONE}: 8\n========= Invalid __global__ write\n========= ERROR SUMMARY: 1 error\n"
    )
    row = gpu_check.sanitizer_row(Ended(77), log, deadline)
    assert row["status"] == "failed" and "Invalid __global__ write" in row["message"]
    log.write_text("========= Device not supported\n")
    assert gpu_check.sanitizer_row(Ended(1), log, deadline)["status"] == "not_run"
    assert gpu_check.sanitizer_row(None, log, deadline)["status"] == "not_run"


def test_the_result_is_a_ledger_file(tmp_path, monkeypatch):
    from kda_lab.bench import ledger

    journal = gpu_check.Journal(tmp_path / "j.jsonl")
    row = suite.run_case(suite.Target("recurrent", "cpu"), "nothing_at_all")
    journal.append(row | {"rung": "v1", "hash": "f" * 64})
    entry = gpu_check.entry_of(["v1"], journal, {"v1": "f" * 64}, "kda-lab gpu-check")
    ledger.validate(entry | {"gpu": "NVIDIA H200"}, "result")
    assert set(entry["planned"]["v1"]) >= {*suite.cases_of("v1"), *gpu_check.SANITIZERS}
    json.dumps(entry, allow_nan=False)


def test_a_bounded_range_kernel_is_judged_at_bf16_and_a_recurrent_one_at_fp32_state():
    arguments = {"q": torch.zeros(1, dtype=torch.bfloat16)}
    assert suite.Target("v1").tolerance(arguments, hard=False) == (6e-3, 1e-5)
    assert suite.Target("v2").tolerance(arguments, hard=False) == (6e-3, 6e-3)
    assert suite.Target("v2").tolerance(arguments, hard=True) == (3e-2, 3e-2)
    assert replace(suite.Target("v2"), rung="chunked").tolerance(arguments, hard=True) == (
        6e-3,
        6e-3,
    )
