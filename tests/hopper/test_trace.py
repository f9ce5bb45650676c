"""What is written reads back, what is wrong is named, and a kernel's records decode."""

import json

import numpy as np
import pytest

from kda_lab.hopper.trace import RECORD, SCHEMA, Event, Trace, from_records, load, save, validate

TRACE = Trace(
    "two roles",
    "simulator, seed 0",
    "cycles",
    ("producer", "consumer"),
    (
        Event("producer", "load", 0, 0, 0, 40),
        Event("consumer", "wait", 0, 0, 5, 45, label="full[0]"),
        Event("consumer", "compute", 0, None, 45, 100),
    ),
)


def test_what_is_saved_reads_back(tmp_path):
    save(TRACE, tmp_path / "trace.json")
    assert load(tmp_path / "trace.json") == TRACE
    assert validate(json.loads((tmp_path / "trace.json").read_text())) == []


def test_busy_leaves_out_waiting_and_counts_overlap_once():
    assert TRACE.duration == 100
    assert TRACE.busy("consumer") == 0.55
    two = Trace("", "", "ns", ("a",), (Event("a", "x", 0, 0, 0, 6), Event("a", "y", 0, 0, 4, 10)))
    assert two.busy("a") == 1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": "other/1"}, "schema must be"),
        ({"unit": "hours"}, "unit must be"),
        ({"title": None}, "title must be a string"),
        ({"roles": "producer"}, "roles must be a list"),
        ({"events": None}, "events must be a list"),
    ],
)
def test_a_wrong_header_is_named(change, says):
    problems = validate(TRACE.to_dict() | change)
    assert any(says in p for p in problems), problems


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"role": "nobody"}, "role 'nobody' must be one of"),
        ({"what": ""}, "what must be a word"),
        ({"stage": -1}, "stage must be"),
        ({"phase": 2}, "phase must be"),
        ({"begin": 50}, "begin must be at least 0 and at most end"),
        ({"end": float("nan")}, "must be finite"),
        ({"block": True}, "block must be"),
        ({"color": "red"}, "unknown field color"),
    ],
)
def test_a_wrong_event_is_named(change, says):
    data = TRACE.to_dict()
    data["events"][0] |= change
    problems = validate(data)
    assert any("event 0" in p and says in p for p in problems), problems
    with pytest.raises(ValueError, match="not a valid trace"):
        Trace.from_dict(data)


def test_a_missing_field_is_named():
    data = TRACE.to_dict()
    del data["events"][1]["stage"]
    assert validate(data) == ["event 1: misses stage"]
    assert data["schema"] == SCHEMA


def test_records_of_a_kernel_become_a_trace():
    assert RECORD.itemsize == 24  # as the C struct
    records = np.zeros(4, RECORD)
    records[0] = (1, 0, 1, 0, 0, 1000, 1040)
    records[1] = (0, 1, 0, 2, 1, 1010, 1100)
    records[2] = (0, 1, 2, -1, -1, 1100, 1300)
    trace = from_records(
        records.tobytes(), ("load", "math"), ("wait", "copy", "mma"), title="v3", source="H100"
    )
    assert [e.to_dict() for e in trace.events] == [
        {
            "role": "math",
            "what": "wait",
            "stage": 2,
            "phase": 1,
            "begin": 10,
            "end": 100,
            "block": 0,
        },
        {
            "role": "math",
            "what": "mma",
            "stage": None,
            "phase": None,
            "begin": 100,
            "end": 300,
            "block": 0,
        },
        {"role": "load", "what": "copy", "stage": 0, "phase": 0, "begin": 0, "end": 40, "block": 1},
    ]
    assert len(trace.block(0).events) == 2
    with pytest.raises(ValueError, match="what 2 was recorded, but only 2"):
        from_records(records, ("load", "math"), ("wait", "copy"), title="", source="")
