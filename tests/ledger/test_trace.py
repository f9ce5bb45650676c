"""What a kernel records becomes a ledger row that draws; the command says what it cannot do."""

import re

import numpy as np
import pytest

from kda_lab import cli
from kda_lab.bench import ledger, sources, trace
from kda_lab.hopper.recorded import recorded_trace
from kda_lab.hopper.trace import RECORD
from kda_lab.native import build
from kda_lab.widgets import SwimLanes
from tests.ledger.entries import MACHINE, put

H200 = MACHINE["gpu"]


def records() -> bytes:
    """Two blocks on SMs whose clocks are far apart, as a kernel leaves them: slots, some unused."""
    slots = np.zeros((2, len(trace.ROLES), 3), RECORD)
    for block, clock in ((0, 10**15), (1, 5000)):
        load, math = slots[block, 0], slots[block, 3]
        load[0] = (block, 0, 0, 3, 1, clock, clock + 40)
        load[1] = (block, 0, 1, 3, 0, clock + 40, clock + 300)
        math[0] = (block, 3, 3, 2, 0, clock + 10, clock + 110)
    return slots.tobytes()


def entry() -> dict:
    rows = [trace.row(records(), "v3", "2048-H12", "strong", H200)]
    hashes = {"v3": sources.standing_hashes()["v3"]}
    return dict(
        kind="trace",
        **MACHINE,
        date="2026-11-24T00:00:00Z",
        command="kda-lab trace",
        hashes=hashes,
        rows=rows,
    )


def test_what_a_kernel_records_reads_back_from_the_ledger(kernels):
    assert recorded_trace("v3") is None
    put(entry())
    made = recorded_trace("v3", "2048-H12")
    assert made.roles == ("load", "math 0") and made.unit == "cycles"
    assert made.source == f"recorded on {H200}"
    for block in (0, 1):  # each from its own clock's zero
        spans = [
            (e.role, e.what, e.stage, e.phase, e.begin, e.end) for e in made.block(block).events
        ]
        assert spans == [
            ("load", "wait", 3, 1, 0, 40),
            ("math 0", "solve", 2, 0, 10, 110),
            ("load", "load", 3, 0, 40, 300),
        ]
    assert "load is busy" in SwimLanes(made).alt()


def test_a_trace_goes_when_its_code_changes(kernels):
    put(entry())
    assert recorded_trace("v3") is not None
    with open(kernels / "common" / "trace.cuh", "a") as header:
        header.write("// changed\n")
    assert recorded_trace("v3") is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(stage=-1), r"rows\[0\]: event 0: stage must be"),
        (dict(role="nobody"), r"event 0: role 'nobody' must be one of"),
        (dict(end=0, begin=5), "begin must be at least 0 and at most end"),
    ],
)
def test_the_ledger_refuses_a_malformed_trace(change, says):
    wrong = entry()
    wrong["rows"][0]["events"][0] |= change
    with pytest.raises(ledger.LedgerError, match=says):
        ledger.validate(wrong, "trace.json")


def test_an_empty_trace_is_no_row():
    with pytest.raises(ValueError, match="nothing was recorded"):
        trace.row(bytes(RECORD.itemsize * 6), "v3", "2048-H12", "strong", H200)


def test_names_stand_in_the_order_of_the_header():
    header = (sources.kernels_dir() / trace.HOOKS).read_text()
    whats = re.search(r"enum What \{([^}]*)\}", header)[1]
    assert tuple(word.strip().lower() for word in whats.split(",")) == trace.WHATS
    roles = re.search(r"enum Role \{([^}]*)\}", header)[1]
    assert "LOAD_WARP, LOAD_V_WARP, STORE_WARP, MATH_WARP, ROLES = MATH_WARP + 8" in roles
    assert trace.ROLES[:4] == ("load", "load v", "store", "math 0") and len(trace.ROLES) == 3 + 8
    fields = re.search(r"struct Record \{[^\n]*\n(.*?)\};", header, re.DOTALL)[1]
    assert re.findall(r"(\w+)(?=[,;])", fields) == list(RECORD.names)


def test_the_library_with_hooks_is_another_one(monkeypatch):
    asked = []
    monkeypatch.setattr(build, "build_rung", lambda rung: asked.append(rung) or "path")
    trace.instrumented("v3")
    assert asked[0].flags == ("-DKDA_TRACE",) and asked[0].name == "v3"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rung", "v1"], "rung 'v1' has no hooks to record with; those that have: .*v3"),
        (["--workload", "5-H1"], "invalid choice: '5-H1'"),
        (["--chunks", "0"], "--chunks must be at least 1"),
        (["--first-chunk", "-1"], "--first-chunk must be at least 0"),
        (["--blocks", "0"], "--blocks must be at least 1"),
    ],
)
def test_the_command_names_what_is_wrong(words, says, capsys):
    with pytest.raises(SystemExit) as exit:
        trace.main(words)
    assert exit.value.code == 2
    assert re.search(says, capsys.readouterr().err)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(trace.torch.cuda, "is_available", lambda: False)
    assert cli.main(["trace"]) == 1
    assert "no CUDA GPU" in capsys.readouterr().err
