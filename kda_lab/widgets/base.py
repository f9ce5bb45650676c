"""What every widget of the course shares: its JavaScript, its colours and its static picture."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets as t
from matplotlib.figure import Figure

from kda_lab import palette

JS = Path(__file__).parent / "js"
ANYWIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def module(name: str) -> str:
    """The ES module of one view: `common.js`, then `name.js`, in one text without imports."""
    return "\n".join((JS / f"{file}.js").read_text() for file in ("common", name))


def colours() -> dict[str, dict[str, Any]]:
    """Everything the views need to know about colour, by mode."""
    return {
        mode: {
            **palette.PALETTE[mode],
            **palette.SURFACE[mode],
            "pairs": list(palette.PAIRS[mode]),
            "table": palette.table(palette.diverging(mode)),
            "errors": palette.table(palette.errors(mode)),
        }
        for mode in palette.PALETTE
    }


class CourseWidget(anywidget.AnyWidget):
    """A live view where there is a kernel, and a picture with a description everywhere else.

    A subclass says `reading` (two sentences: how to read the picture), draws the same picture with
    matplotlib in `figure()`, and describes what that picture shows in `alt()`.
    """

    _css = (JS / "style.css").read_text()
    reading = t.Unicode().tag(sync=True)
    colours = t.Dict(default_value=colours()).tag(sync=True)

    def figure(self) -> Figure:
        """The widget as it stands now, drawn with matplotlib."""
        raise NotImplementedError(f"{type(self).__name__} draws no static picture")

    def alt(self) -> str:
        """What the static picture shows, in one or two sentences."""
        raise NotImplementedError(f"{type(self).__name__} does not describe its picture")

    def _repr_mimebundle_(self, **kwargs):
        live, metadata = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        with palette.style():
            picture, described = palette.png_bundle(self.figure(), self.alt())
        return live | picture, metadata | described

    def recompute_on(self, *names: str, do: Callable[[], None]) -> None:
        """Calls `do` now and whenever one of these traits changes, and sends one message."""

        def update(_change):
            with self.hold_sync():
                do()

        self.observe(update, names=list(names))
        do()


def array_trait() -> Any:
    """Numbers for a view, sent as one binary buffer."""
    return t.Bytes(b"").tag(sync=True)


pack = partial(np.ascontiguousarray, dtype="<f4")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(choices)}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name}: {value} is not between {low} and {high}")
