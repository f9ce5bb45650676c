"""A rung's card: what the ledger says about it, and a fresh run beside it where there is a GPU."""

from dataclasses import dataclass

import torch

from kda_lab.bench import ledger, tables
from kda_lab.native.rungs import RUNGS

FRESH = ("2048-H12", "8192-H16")  # small enough to time while a reader waits


@dataclass(frozen=True)
class Card:
    """Markdown that a notebook shows; its plain form is the same text."""

    text: str

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


def card(rung: str, gate: str = "strong", fresh: bool = True) -> Card:
    """The card of a rung: its idea, recorded times against floor and peers, error, and correctness report.

    rung: a name of `kda_lab.backends()` that is compiled, or "auto". gate: strong, weak or long.
    fresh: on a machine with a GPU, time two small workloads here and show them beside the record.
    """
    if rung not in RUNGS and rung != "auto":
        raise ValueError(f"rung is {rung!r}; it must be one of {', '.join(RUNGS)}, auto")
    idea = RUNGS[rung].idea if rung in RUNGS else "the fastest rung that serves the call exactly"
    direction = RUNGS[rung].direction if rung in RUNGS else "forward"
    if direction == "decode":
        gate = "strong"
    parts = [f"**{rung}**: {idea}", _recorded(rung, direction, gate)]
    if rung in RUNGS and RUNGS[rung].cuda:
        wrong = ledger.verdict(rung)
        cases = [row for row in ledger.report(rung).values() if row["status"] == "passed"]
        gpus = " and ".join(f"an {gpu}" for gpu in dict.fromkeys(row["gpu"] for row in cases))
        parts.append(
            f"Correctness on a GPU: {wrong}."
            if wrong
            else f"All {len(cases)} correctness cases passed on {gpus}."
        )
    if fresh and torch.cuda.is_available() and direction == "forward":
        parts.append(_fresh(rung, gate))
    return Card("\n\n".join(parts))


def _recorded(rung: str, direction: str, gate: str) -> str:
    by_workload = tables.timed(ledger.show(), direction, gate)
    rows = {w: by_rung[rung] for w, by_rung in by_workload.items() if rung in by_rung}
    if not rows:
        return tables.NOTHING
    peers = [p for p in tables.PEERS if any(p in row["peers"] for row in rows.values())]
    body = []
    for workload, row in rows.items():
        ms = tables.milliseconds(row)
        ratios = [f"{row['peers'][p] / ms:.2f}" if p in row["peers"] else "-" for p in peers]
        body.append(
            [
                workload,
                tables.number(ms),
                f"{ms / row['floor_ms']:.1f}",
                *ratios,
                f"{row['error']:.1e}",
            ]
        )
    head = ["tokens-heads", "ms", "x floor", *(f"x {tables.PEERS[p]}" for p in peers), "error"]
    what = "One decode step" if direction == "decode" else f"Forward, {gate} gate"
    where = tables.recorded(list(rows.values()))
    return f"{what}. {where}\n\n{tables.markdown(head, body)}"


def _fresh(rung: str, gate: str) -> str:
    """The same call timed now, on the reader's GPU."""
    from kda_lab.bench import workloads as wl
    from kda_lab.bench.main import rung_work
    from kda_lab.bench.timing import GpuTimer

    timer, body = GpuTimer(), []
    for name in FRESH:
        w = wl.ALL[name]
        try:
            work, _ = rung_work(rung, w, wl.make_inputs(w, gate))
        except ValueError as error:
            return f"Not run on this GPU: {error}."
        with torch.no_grad():
            times = sorted(timer.run(work, timer.repeats(work, 50)))
        body.append([name, tables.number(times[len(times) // 2])])
    table = tables.markdown(["tokens-heads", "ms"], body)
    return f"Run here, now, on an {torch.cuda.get_device_name()} (eager):\n\n{table}"
