"""Traces that a GPU recorded, from the ledger."""

from kda_lab.bench import ledger
from kda_lab.hopper.trace import SCHEMA, Trace


def recorded_trace(rung: str | None = None) -> Trace | None:
    """The newest trace of a rung (of any, if none is named) whose code still stands, or None.

    ValueError when the ledger's row is not a valid trace.
    """
    rows = [
        (entry, row)
        for entry, row in ledger.current(("trace",))
        if rung is None or row["rung"] == rung
    ]
    if not rows:
        return None
    entry, row = rows[-1]
    roles = row.get("roles") or list(dict.fromkeys(e["role"] for e in row["events"]))
    return Trace.from_dict(
        {
            "schema": SCHEMA,
            "title": f"{row['rung']}, {row['workload']}",
            "source": f"recorded on {entry['gpu']}",
            "unit": row.get("unit", "ns"),
            "roles": roles,
            "events": row["events"],
        }
    )
