"""One format for what warps did when: written by the simulator and by instrumented kernels, drawn
by one widget.

A trace is JSON: {"schema": "kda-lab-trace/1", "title", "source", "unit", "roles", "events"}.
`source` says where it comes from ("simulator, seed 3" or a GPU's name), `unit` is "cycles" or "ns",
`roles` the lanes from top to bottom. An event is {"role", "what", "stage", "phase", "begin", "end",
"block"}: in block `block`, `role` did `what` from `begin` to `end`. `stage` is the pipeline stage
(ring slot) or null, `phase` the parity bit of the barrier or null. `what` is "wait" for time spent
waiting; any other word names work. An event may carry a `label`.

A kernel appends records of 24 bytes to a buffer in global memory, little-endian, in the order of
RECORD:

    struct Record { uint32_t block; uint8_t role, what; int8_t stage, phase; uint64_t begin, end; };

with -1 for no stage or phase; `from_records` turns the buffer into a trace, given the names of
roles and of whats.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SCHEMA = "kda-lab-trace/1"
UNITS = ("cycles", "ns")

RECORD = np.dtype(
    [
        ("block", "<u4"),
        ("role", "u1"),
        ("what", "u1"),
        ("stage", "i1"),
        ("phase", "i1"),
        ("begin", "<u8"),
        ("end", "<u8"),
    ]
)


@dataclass(frozen=True)
class Event:
    """Block `block`: `role` did `what` from `begin` to `end` (the trace's unit)."""

    role: str
    what: str
    stage: int | None
    phase: int | None
    begin: float
    end: float
    block: int = 0
    label: str = ""

    def to_dict(self) -> dict:
        fields = dict(self.__dict__)
        if not self.label:
            del fields["label"]
        return fields


@dataclass(frozen=True)
class Trace:
    """What the roles of some blocks did when. Times start near 0, in `unit`."""

    title: str
    source: str
    unit: str
    roles: tuple[str, ...]
    events: tuple[Event, ...]

    def to_dict(self) -> dict:
        """The JSON form, schema name included."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "source": self.source,
            "unit": self.unit,
            "roles": list(self.roles),
            "events": [event.to_dict() for event in self.events],
        }

    @classmethod
    def from_dict(cls, data: dict) -> "Trace":
        """Reads and validates the JSON form; ValueError lists everything that is wrong with it."""
        problems = validate(data)
        if problems:
            raise ValueError("not a valid trace: " + "; ".join(problems[:10]))
        events = tuple(Event(**event) for event in data["events"])
        return cls(data["title"], data["source"], data["unit"], tuple(data["roles"]), events)

    @property
    def duration(self) -> float:
        """From the first begin to the last end."""
        if not self.events:
            return 0
        return max(e.end for e in self.events) - min(e.begin for e in self.events)

    def block(self, block: int) -> "Trace":
        """The events of one block."""
        events = tuple(e for e in self.events if e.block == block)
        return Trace(self.title, self.source, self.unit, self.roles, events)

    def busy(self, role: str) -> float:
        """Share of the trace's duration in which a role did something other than wait."""
        spans = sorted((e.begin, e.end) for e in self.events if e.role == role and e.what != "wait")
        total, reached = 0.0, float("-inf")
        for begin, end in spans:
            total += max(0.0, end - max(begin, reached))
            reached = max(reached, end)
        return total / self.duration if self.duration else 0.0


def validate(data: object) -> list[str]:
    """Everything that is wrong with the JSON form of a trace, one sentence each; empty when it is
    valid."""
    if not isinstance(data, dict):
        return ["a trace must be a JSON object"]
    problems = []
    if data.get("schema") != SCHEMA:
        problems.append(f"schema must be {SCHEMA!r}, not {data.get('schema')!r}")
    for name in ("title", "source"):
        if not isinstance(data.get(name), str):
            problems.append(f"{name} must be a string, not {data.get(name)!r}")
    if data.get("unit") not in UNITS:
        problems.append(f"unit must be one of {UNITS}, not {data.get('unit')!r}")
    roles, events = data.get("roles"), data.get("events")
    if not isinstance(roles, list) or not all(isinstance(r, str) for r in roles):
        problems.append(f"roles must be a list of strings, not {roles!r}")
        roles = []
    if not isinstance(events, list):
        return [*problems, f"events must be a list, not {type(events).__name__}"]
    for i, event in enumerate(events):
        problems += [f"event {i}: {text}" for text in _event_problems(event, roles)]
    return problems


FIELDS = ("role", "what", "stage", "phase", "begin", "end", "block")


def _event_problems(event: object, roles: list[str]) -> list[str]:
    if not isinstance(event, dict):
        return ["must be a JSON object"]
    missing = [f for f in FIELDS if f not in event]
    unknown = [f for f in event if f not in (*FIELDS, "label")]
    if missing or unknown:
        return [f"misses {f}" for f in missing] + [f"has unknown field {f}" for f in unknown]
    problems = []
    if event["role"] not in roles:
        problems.append(f"role {event['role']!r} must be one of roles {roles}")
    if not isinstance(event["what"], str) or not event["what"]:
        problems.append(f"what must be a word, not {event['what']!r}")
    for name in ("stage", "phase"):
        value = event[name]
        if value is not None and (not _is_number(value, int) or value < 0):
            problems.append(f"{name} must be null or an integer from 0, not {value!r}")
    if event["phase"] not in (None, 0, 1):
        problems.append(f"phase must be null, 0 or 1, not {event['phase']!r}")
    if not _is_number(event["block"], int) or event["block"] < 0:
        problems.append(f"block must be an integer from 0, not {event['block']!r}")
    times = event["begin"], event["end"]
    if not all(_is_number(t, (int, float)) and np.isfinite(t) for t in times):
        problems.append(f"begin and end must be finite numbers, not {times}")
    elif times[0] > times[1] or times[0] < 0:
        problems.append(f"begin must be at least 0 and at most end, got {times}")
    return problems


def _is_number(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def from_records(
    records: np.ndarray | bytes,
    roles: Sequence[str],
    whats: Sequence[str],
    *,
    title: str,
    source: str,
    unit: str = "ns",
    each_block_from_zero: bool = False,
) -> Trace:
    """A trace from what a kernel recorded: RECORD rows, or their bytes. Times are shifted to start
    at 0; each block's by themselves if the clock was its SM's own, which others do not share.

    Rows that were never written (all zero) are dropped. ValueError for a role or a what without a
    name.
    """
    if isinstance(records, bytes):
        records = np.frombuffer(records, RECORD)
    records = records[(records["end"] > 0)]
    for field, names in (("role", roles), ("what", whats)):
        if len(records) and records[field].max() >= len(names):
            raise ValueError(
                f"{field} {records[field].max()} was recorded, but only {len(names)} {field}s "
                "are named"
            )
    start = dict.fromkeys(np.unique(records["block"]), records["begin"].min(initial=2**64 - 1))
    if each_block_from_zero:
        start = {b: records["begin"][records["block"] == b].min() for b in start}
    events = tuple(
        Event(
            roles[r["role"]],
            whats[r["what"]],
            int(r["stage"]) if r["stage"] >= 0 else None,
            int(r["phase"]) if r["phase"] >= 0 else None,
            int(r["begin"] - start[r["block"]]),
            int(r["end"] - start[r["block"]]),
            int(r["block"]),
        )
        for r in np.sort(records, order=["block", "begin", "role"])
    )
    return Trace.from_dict(Trace(title, source, unit, tuple(roles), events).to_dict())


def from_row(row: dict, gpu: str) -> dict:
    """The JSON form of a ledger row of kind `trace`, which leaves out what its file says."""
    return {
        "schema": SCHEMA,
        "title": f"{row['rung']}, {row['workload']}",
        "source": f"recorded on {gpu}",
        "unit": row["unit"],
        "roles": row["roles"],
        "events": row["events"],
    }


def save(trace: Trace, path: str | Path) -> None:
    """Writes the JSON form."""
    Path(path).write_text(json.dumps(trace.to_dict(), indent=1) + "\n")


def load(path: str | Path) -> Trace:
    """Reads and validates a trace written by `save`."""
    return Trace.from_dict(json.loads(Path(path).read_text()))
