"""Pictures of layouts, fragments, bank conflicts and traces, with matplotlib."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kda_lab import palette
from kda_lab.hopper.fragments import Fragment
from kda_lab.hopper.layouts import BANKS, WORD, Access, AnyLayout, table
from kda_lab.hopper.trace import Event, Trace

# Eight 16-byte columns of the banks, told apart by lightness alone as well.
GROUPS = ("#0b2e83", "#4a2f8f", "#8a3a86", "#b8506f", "#d17a55", "#dba64f", "#d9d06a", "#f1f0c6")


def bank_group(offset: int, element_bytes: int) -> int:
    """Which 16-byte column of the 128 bytes of banks an element falls into, 0 to 7."""
    return offset * element_bytes // 16 % 8


def _ink(color: str) -> str:
    r, g, b = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "white" if 0.3 * r + 0.59 * g + 0.11 * b < 140 else palette.SURFACE["light"]["ink"]


def _cells(
    ax: Axes, texts: np.ndarray, colours: Callable[[int, int], str], size: float | None = None
) -> None:
    rows, columns = texts.shape
    for i in range(rows):
        for j in range(columns):
            color = colours(i, j)
            edge = {"edgecolor": "white", "lw": 0.6} if columns <= 32 else {"lw": 0}
            ax.add_patch(Rectangle((j, i), 1, 1, facecolor=color, **edge))
            if size:
                ax.text(
                    j + 0.5, i + 0.5, texts[i, j], ha="center", va="center", fontsize=size,
                    color=_ink(color),
                )  # fmt: skip
    ax.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal")
    ax.set_xticks(np.arange(columns) + 0.5, map(str, range(columns)), fontsize=7)
    ax.set_yticks(np.arange(rows) + 0.5, map(str, range(rows)), fontsize=7)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def draw_layout(
    layout: AnyLayout, element_bytes: int | None = None, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Each coordinate's offset, rows over mode 0 and columns over mode 1.

    Shade: the offset, from dark to light; with `element_bytes` the 16-byte column of the banks,
    0 to 7, whose number stands in each piece of a layout too wide for offsets.
    """
    offsets = table(layout)
    rows, columns = offsets.shape
    if ax is None:
        cell = min(0.38, 8.4 / columns)
        _, ax = plt.subplots(figsize=(max(2.2, 0.5 + cell * columns), 0.6 + cell * rows))
    top = max(1, int(offsets.max()))

    def shade(i: int, j: int) -> str:
        if element_bytes is None:
            return GROUPS[min(7, int(8 * offsets[i, j] / (top + 1)))]
        return GROUPS[bank_group(int(offsets[i, j]), element_bytes)]

    _cells(ax, offsets.astype(str), shade, 7 if columns <= 32 else None)
    if columns > 32:
        ax.set_xticks(np.arange(0, columns, 8) + 0.5, map(str, range(0, columns, 8)), fontsize=7)
        piece = 16 // (element_bytes or 16)
        for i, j in np.ndindex(rows, columns // piece if element_bytes else 0):
            group = bank_group(int(offsets[i, j * piece]), element_bytes or 1)
            at, ink = ((j + 0.5) * piece, i + 0.5), _ink(GROUPS[group])
            ax.text(*at, str(group), ha="center", va="center", fontsize=7, color=ink)
    ax.set_title(title or str(layout), fontsize=10)
    return ax


def draw_fragment(fragment: Fragment, ax: Axes | None = None, threads: int = 32) -> Axes:
    """Each element's owner as thread:value, first 16 rows; shade by thread, modulo `threads`."""
    owners = fragment.owners
    rows = min(fragment.rows, 16)
    texts = np.array(
        [[f"{t}:{v}" for t, v in owners[i, : fragment.columns]] for i in range(rows)], dtype=object
    )
    if ax is None:
        _, ax = plt.subplots(figsize=(0.5 + 0.4 * fragment.columns, 0.6 + 0.28 * rows))

    def shade(i: int, j: int) -> str:
        return GROUPS[int(owners[i, j, 0]) % threads * 8 // threads]

    _cells(ax, texts, shade, 6.5)
    ax.set_aspect("auto")
    ax.set_title(f"{fragment.name}   thread:value", fontsize=10)
    return ax


def draw_banks(access: Access, ax: Axes | None = None) -> Axes:
    """How many different words each bank is asked for, phase by phase (1 is the best there is)."""
    if ax is None:
        _, ax = plt.subplots(figsize=(7.2, 0.8 + 0.22 * len(access.phases)))
    count = np.array([[len(banks.get(b, {})) for b in range(BANKS)] for banks in access.words])

    def shade(i: int, j: int) -> str:
        if count[i, j] == 0:
            return palette.SURFACE["light"]["line"]
        return palette.GATE if count[i, j] == 1 else palette.ERROR

    _cells(ax, np.where(count, count.astype(str), ""), shade, 7)
    ax.set(xlabel=f"bank ({WORD} bytes wide)", ylabel="phase")
    plural = "s" * (access.wavefronts != 1)
    ax.set_title(f"{access.wavefronts} wavefront{plural}, {access.conflicts} from conflicts")
    return ax


# ---- traces ----

MEANING = {"load": "keys", "store": "queries"}  # any other work is drawn as `state`


def meaning(what: str) -> str:
    """The palette's name for the colour of a span."""
    return MEANING.get(what, "state")


def lanes(trace: Trace, block: int | None = None) -> list[tuple[str, list[list[Event]]]]:
    """For each role of a block its rows of spans: spans that overlap stand in different rows.

    block: the first block that recorded anything, unless given.
    """
    events = sorted(trace.events, key=lambda e: (e.begin, e.end))
    if block is None:
        block = min((e.block for e in events), default=0)
    made = []
    for role in trace.roles:
        rows: list[list[Event]] = []
        for e in (e for e in events if e.role == role and e.block == block):
            row = next((r for r in rows if r[-1].end <= e.begin), None)
            if row is None:
                rows.append([e])
            else:
                row.append(e)
        if rows:
            made.append((role, rows))
    return made


def describe(event: Event) -> str:
    """One span in words."""
    parts = [event.role, event.what]
    parts += [event.label] if event.label else []
    parts += [f"stage {event.stage}"] if event.stage is not None else []
    parts += [f"parity {event.phase}"] if event.phase is not None else []
    return ", ".join(parts) + f": {event.begin:g} to {event.end:g}"


def draw_lanes(trace: Trace, block: int | None = None, until: float | None = None) -> Figure:
    """Swim lanes: time to the right, one lane a role, the stage's number in each span.

    until: draw only what began before. Hatched grey is waiting; parity 1 is paler than parity 0.
    """
    shown = lanes(trace, block)
    rows = sum(len(r) for _, r in shown)
    fig, ax = plt.subplots(figsize=(8.4, 0.9 + 0.27 * rows))
    begin = min((e.begin for e in trace.events), default=0)
    end = min(until or np.inf, max((e.end for e in trace.events), default=1))
    y, ticks = 0.0, []
    for role, spans in shown:
        ticks.append((y + len(spans) / 2, role))
        for row in spans:
            for e in row:
                if e.begin < end:
                    _draw_span(ax, e, y, end - begin, end)
            y += 1
        y += 0.35
        ax.axhline(y - 0.18, color=palette.SURFACE["light"]["line"], lw=0.8)
    ax.set(xlim=(begin, end), ylim=(y - 0.2, -0.2), xlabel=trace.unit)
    ax.set_yticks([t for t, _ in ticks], [r for _, r in ticks])
    ax.tick_params(axis="y", length=0)
    ax.set_title(f"{trace.title} ({trace.source})", fontsize=10)
    return fig


def _draw_span(ax: Axes, e: Event, y: float, width: float, end: float) -> None:
    if e.what == "wait":
        box = Rectangle((e.begin, y + 0.2), e.end - e.begin, 0.6, hatch="////", facecolor="none")
        box.set_edgecolor(palette.SURFACE["light"]["line"])
        ax.add_patch(box)
        return
    color = palette.colour(meaning(e.what))
    box = Rectangle((e.begin, y + 0.08), e.end - e.begin, 0.84, facecolor=color, edgecolor="white")
    box.set_alpha(0.6 if e.phase == 1 else 1.0)
    ax.add_patch(box)
    visible = min(e.end, end) - e.begin
    if e.stage is not None and visible > 0.012 * width:
        middle = e.begin + visible / 2
        ax.text(middle, y + 0.5, str(e.stage), ha="center", va="center", fontsize=7, color="white")


def lanes_alt(trace: Trace, block: int | None = None) -> str:
    """What the swim lanes show, in words."""
    shares = [
        f"{role} is busy {100 * trace.busy(role):.0f}% of the time"
        for role, _ in lanes(trace, block)
    ]
    head = f"Swim lanes of {trace.title} ({trace.source}), {trace.duration:g} {trace.unit} long. "
    return head + "; ".join(shares) + "."


def coords_of_access(kind: str, rows: int, columns: int, width: int, at: int) -> Sequence:
    """Where each of 32 threads starts. width: elements a thread takes along a row.

    rows: thread t takes a piece of row t, at piece `at` (ldmatrix). row: the threads walk along
    row `at`. column: one thread a row, like `rows`, but single elements of column `at`.
    """
    if kind == "rows":
        return [(t, at * width) for t in range(min(32, rows))]
    if kind == "row":
        pieces = columns // width
        return [((at + t // pieces) % rows, t % pieces * width) for t in range(32)]
    if kind == "column":
        return [(t, at) for t in range(min(32, rows))]
    raise ValueError(f"kind must be rows, row or column, not {kind!r}")
