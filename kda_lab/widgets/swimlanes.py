"""Swim lanes: what each role of a block did when, from the simulator or recorded on a GPU."""

import traitlets as t
from matplotlib.figure import Figure

from kda_lab.hopper.draw import describe, draw_lanes, lanes, lanes_alt, meaning
from kda_lab.hopper.trace import Event, Trace
from kda_lab.widgets.base import CourseWidget, check_range, module


def view(trace: Trace, block: int) -> dict:
    """What the canvas draws: lanes of rows of spans, and every span in words, in time's order."""
    made: list[dict] = []
    spans: list[Event] = []
    for role, rows in lanes(trace, block):
        drawn = []
        for row in rows:
            drawn.append(list(range(len(spans), len(spans) + len(row))))
            spans += row
        made.append({"role": role, "rows": drawn})
    order = sorted(range(len(spans)), key=lambda i: (spans[i].begin, spans[i].end))
    return {
        "lanes": made,
        "spans": [
            {
                "begin": e.begin, "end": e.end, "what": e.what, "stage": e.stage,
                "phase": e.phase, "meaning": meaning(e.what), "text": describe(e),
            }
            for e in spans
        ],
        "order": order,
        "begin": min((e.begin for e in spans), default=0),
        "end": max((e.end for e in spans), default=1),
        "unit": trace.unit,
        "title": f"{trace.title} ({trace.source})",
    }  # fmt: skip


class SwimLanes(CourseWidget):
    """The lanes of one block: zoom and move with the sliders, step through spans with the buttons.

    trace: from `simulate(...).trace`, or read from the ledger. block: which one, of those recorded.
    zoom: how much of the time is shown at first, 1 (all) to 40.
    """

    _esm = module("swimlanes")
    picture = t.Dict().tag(sync=True)
    blocks = t.List(t.Int()).tag(sync=True)
    block = t.Int().tag(sync=True)
    zoom = t.Float(1.0).tag(sync=True)
    start = t.Float(0.0).tag(sync=True)

    def __init__(self, trace: Trace, block: int | None = None, zoom: float = 1.0):
        check_range("zoom", zoom, 1, 40)
        blocks = sorted({e.block for e in trace.events}) or [0]
        if block is not None and block not in blocks:
            raise ValueError(f"block: {block} is not one of those recorded, {blocks}")
        self.trace = trace
        super().__init__(
            reading="Time runs to the right and every lane is one role; the number in a span is "
            "the stage it works on, and a paler span belongs to parity 1. Hatched stretches are "
            "waiting: a good pipeline has them in one lane only, that of the role with time to "
            "spare.",
            blocks=blocks,
            block=blocks[0] if block is None else block,
            zoom=zoom,
        )
        self.recompute_on("block", do=self._look)

    def _look(self) -> None:
        self.picture = view(self.trace, self.block)

    def figure(self) -> Figure:
        trace = self.trace
        until = None
        if self.zoom > 1:
            first = min(e.begin for e in trace.events)
            until = first + trace.duration / self.zoom
        return draw_lanes(trace, self.block, until)

    def alt(self) -> str:
        return lanes_alt(self.trace, self.block)
