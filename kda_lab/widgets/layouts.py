"""A layout to play with: type shape:stride, choose a swizzle, see what an access costs."""

import matplotlib.pyplot as plt
import traitlets as t
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kda_lab.hopper.draw import GROUPS, bank_group, coords_of_access, draw_banks, draw_layout
from kda_lab.hopper.layouts import (
    TMA_SWIZZLES,
    Access,
    AnyLayout,
    Layout,
    composition,
    size_of,
    table,
    tma_swizzle,
    warp_access,
)
from kda_lab.widgets.base import CourseWidget, check_choice, module

ACCESSES = {
    "rows": "16 bytes a thread, one row each (ldmatrix)",
    "row": "one element a thread, along a row",
    "column": "one element a thread, down a column",
}
MOST = 64  # rows and columns that fit on the canvas


def build(text: str, element_bytes: int, swizzle: int) -> AnyLayout:
    """The layout typed, with TMA's swizzle of 0 (none), 32, 64 or 128 bytes, or ValueError."""
    layout = Layout.parse(text)
    if layout.rank != 2:
        raise ValueError(f"layout {text} must have two modes: rows and columns")
    rows, columns = map(size_of, layout.shape)
    if rows > MOST or columns > MOST:
        raise ValueError(f"layout {text} must have at most {MOST} rows and columns")
    return composition(tma_swizzle(swizzle, element_bytes), layout) if swizzle else layout


def access_of(
    layout: AnyLayout, element_bytes: int, access: str, at: int
) -> tuple[Access, list[tuple[int, int]], int]:
    """The access, where its threads start, how many elements each takes; or ValueError."""
    rows, columns = map(size_of, layout.shape)
    width = 16 // element_bytes if access == "rows" else 1
    if columns % width:
        raise ValueError(f"layout must have a multiple of {width} columns for 16 bytes a thread")
    starts = list(coords_of_access(access, rows, columns, width, at))
    for row, column in starts[:1] if width > 1 else []:
        pieces = [layout(row, column + i) - layout(row, column) for i in range(width)]
        if pieces != list(range(width)):
            raise ValueError(f"layout must have {width} neighbours in a row for 16 bytes a thread")
    return warp_access(layout, starts, element_bytes, width * element_bytes), starts, width


def last_position(layout: AnyLayout, element_bytes: int, access: str) -> int:
    """The largest `at`: pieces of a row, rows, or columns."""
    rows, columns = map(size_of, layout.shape)
    pieces = columns * element_bytes // 16
    return max(0, {"rows": pieces, "row": rows, "column": columns}[access] - 1)


class Layouts(CourseWidget):
    """Type a layout; see its offsets, where a warp reaches, and what the banks make of it.

    layout: rows and columns, as shape:stride. swizzle: 0, 32, 64 or 128 bytes. access: rows, row or
    column. at: which piece, row or column.
    """

    _esm = module("layouts")
    layout_text = t.Unicode().tag(sync=True)
    element_bytes = t.Int().tag(sync=True)
    swizzle = t.Int().tag(sync=True)
    access = t.Unicode().tag(sync=True)
    at = t.Int().tag(sync=True)
    board = t.Dict().tag(sync=True)
    groups = t.List(list(GROUPS)).tag(sync=True)
    accesses = t.Dict(ACCESSES).tag(sync=True)

    def __init__(
        self,
        layout: str | Layout = "(8,64):(64,1)",
        element_bytes: int = 2,
        swizzle: int = 0,
        access: str = "rows",
        at: int = 0,
    ):
        check_choice("access", access, tuple(ACCESSES))
        check_choice("swizzle", str(swizzle), ("0", *map(str, TMA_SWIZZLES)))
        check_choice("element_bytes", str(element_bytes), ("1", "2", "4"))
        access_of(build(str(layout), element_bytes, swizzle), element_bytes, access, at)
        super().__init__(
            reading="Every cell is one element with its offset, shaded by the 16 bytes of banks it "
            "falls into; framed are the elements that the warp touches. The strip below counts the "
            "different words asked of each bank: more than 1 is a conflict, and costs a pass each.",
            layout_text=str(layout),
            element_bytes=element_bytes,
            swizzle=swizzle,
            access=access,
            at=at,
        )
        self.recompute_on("layout_text", "element_bytes", "swizzle", "access", "at", do=self._look)

    def _look(self) -> None:
        try:
            layout = build(self.layout_text, self.element_bytes, self.swizzle)
            most = last_position(layout, self.element_bytes, self.access)
            at = min(self.at, most)
            access, starts, width = access_of(layout, self.element_bytes, self.access, at)
        except ValueError as error:
            self.board = {**self.board, "error": str(error)}
            return
        offsets = table(layout)
        touched = {(r, c + i) for r, c in starts for i in range(width)}
        self.board = {
            "error": "",
            "offsets": offsets.tolist(),
            "groups": [[bank_group(int(x), self.element_bytes) for x in row] for row in offsets],
            "touched": sorted(map(list, touched)),
            "banks": [[len(p.get(b, {})) for b in range(32)] for p in access.words],
            "title": str(layout),
            "says": str(access),
            "most": most,
        }

    def figure(self) -> Figure:
        layout = build(self.layout_text, self.element_bytes, self.swizzle)
        access, starts, width = access_of(layout, self.element_bytes, self.access, self.at)
        rows, columns = map(size_of, layout.shape)
        cell = min(0.36, 8.0 / columns)
        fig, (top, bottom) = plt.subplots(
            2, 1, figsize=(max(7.0, cell * columns + 0.5), cell * rows + 2.0),
            height_ratios=[cell * rows, 0.6 + 0.2 * len(access.phases)],
        )  # fmt: skip
        draw_layout(layout, self.element_bytes, top)
        for row, column in starts:
            box = Rectangle((column, row), width, 1, fill=False, edgecolor="black", lw=2)
            top.add_patch(box)
        draw_banks(access, bottom)
        return fig

    def alt(self) -> str:
        says = self.board["says"].splitlines()[0]
        return (
            f"Offsets of {self.board['title']}, {self.element_bytes} bytes an element. "
            f"A warp reads {ACCESSES[self.access]}: {says}."
        )
