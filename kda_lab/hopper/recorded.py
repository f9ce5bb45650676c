"""Traces that a GPU recorded, from the ledger."""

from kda_lab.bench import ledger
from kda_lab.hopper.trace import Trace, from_row


def recorded_trace(rung: str | None = None, workload: str | None = None) -> Trace | None:
    """The newest trace of a rung and a workload (of any, if none is named) whose code still stands,
    or None.

    ValueError when the ledger's row is not a valid trace.
    """
    rows = [
        (entry, row)
        for entry, row in ledger.current(("trace",))
        if rung in (None, row["rung"]) and workload in (None, row["workload"])
    ]
    if not rows:
        return None
    entry, row = rows[-1]
    return Trace.from_dict(from_row(row, entry["gpu"]))
