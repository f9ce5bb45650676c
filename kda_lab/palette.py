"""One palette for every picture of the course: a colour means the same thing everywhere.

Each meaning has a colour on white and one on the dark surface. Any two of them stay apart for
readers with protanopia, deuteranopia or tritanopia, and all stand out from the surface;
`tests/widgets/test_palette.py` measures both. Label lines directly
(`label`) rather than in a legend.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.core.pylabtools import print_figure
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

MEANINGS = {  # what is drawn in the colour of that name
    "keys": "keys k and what is made of them",
    "values": "values v, what is written",
    "queries": "queries q and the outputs they read",
    "state": "the state S",
    "gate": "gates g, decay, forgetting",
    "error": "errors, overflow, limits that are crossed",
    "reference": "the reference: fp64 recurrence, floor, roof",
    "own": "our own implementation",
    "peer": "other people's implementations",
}
PALETTE: Mapping[str, Mapping[str, str]] = {
    "light": {
        "keys": "#054ce9",
        "values": "#d28311",
        "queries": "#009de0",
        "state": "#7113a2",
        "gate": "#25765d",
        "error": "#b62712",
        "reference": "#2f333a",
        "own": "#ce2d9e",
        "peer": "#9f9556",
    },
    "dark": {
        "keys": "#4e75cd",
        "values": "#f4a32c",
        "queries": "#1ad4fe",
        "state": "#a340fc",
        "gate": "#09ab5f",
        "error": "#e13c30",
        "reference": "#c7cad1",
        "own": "#d958a0",
        "peer": "#efd679",
    },
}
PAIRS: Mapping[str, tuple[str, ...]] = {  # the four pairs of kda_lab.example, in their order
    "light": ("#3f4bc0", "#c58347", "#1c8a8f", "#802b3d"),
    "dark": ("#8a95e4", "#e4b189", "#39b8bf", "#b26371"),
}
SURFACE: Mapping[str, Mapping[str, str]] = {
    "light": {"paper": "#ffffff", "ink": "#1d2127", "muted": "#5c6470", "line": "#d5d9df"},
    "dark": {"paper": "#12161c", "ink": "#e6e8ec", "muted": "#a3abb7", "line": "#343b46"},
}
DIVERGING: Mapping[str, tuple[str, ...]] = {  # state entries: below zero, zero, above zero
    "light": ("#7a3e00", "#c98a3c", "#ffffff", "#a973cf", "#5a0a86"),
    "dark": ("#ffc37a", "#a8651c", "#12161c", "#8447c2", "#d7a8ff"),
}

KEYS, VALUES, QUERIES, STATE, GATE, ERROR, REFERENCE, OWN, PEER = PALETTE["light"].values()


def colour(meaning: str, mode: str = "light") -> str:
    """Hex colour of one of `MEANINGS`, for mode "light" or "dark"."""
    _check_mode(mode)
    if meaning not in MEANINGS:
        raise ValueError(f"meaning: {meaning!r} is not one of {', '.join(MEANINGS)}")
    return PALETTE[mode][meaning]


def diverging(mode: str = "light") -> LinearSegmentedColormap:
    """Colormap of state entries: zero is the paper, positive purple, negative amber.

    Draw with `vmin=-m, vmax=m`, so that zero keeps the colour of the paper.
    """
    _check_mode(mode)
    return LinearSegmentedColormap.from_list(f"kda_{mode}", DIVERGING[mode])


def errors(mode: str = "light") -> LinearSegmentedColormap:
    """Colormap of sizes of errors: none is the paper, the largest the colour of errors."""
    _check_mode(mode)
    ends = [SURFACE[mode]["paper"], PALETTE[mode]["error"]]
    return LinearSegmentedColormap.from_list(f"kda_errors_{mode}", ends)


def table(colormap: LinearSegmentedColormap) -> list[int]:
    """The colormap as 256 x 3 bytes in one flat list, for a canvas."""
    rgb = colormap(np.linspace(0, 1, 256))[:, :3]
    return [int(x) for x in np.rint(rgb * 255).ravel()]


def rc(mode: str = "light") -> dict[str, object]:
    """Matplotlib settings of the course's figures."""
    _check_mode(mode)
    s = SURFACE[mode]
    return {
        "figure.figsize": (6.4, 3.2),
        "figure.dpi": 110,
        "figure.facecolor": s["paper"],
        "figure.constrained_layout.use": True,
        "savefig.facecolor": s["paper"],
        "font.size": 10,
        "text.color": s["ink"],
        "axes.facecolor": s["paper"],
        "axes.edgecolor": s["muted"],
        "axes.labelcolor": s["ink"],
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "axes.prop_cycle": cycler(color=[PALETTE[mode][m] for m in MEANINGS]),
        "grid.color": s["line"],
        "grid.linewidth": 0.8,
        "xtick.color": s["muted"],
        "ytick.color": s["muted"],
        "lines.linewidth": 2.0,
        "image.interpolation": "nearest",
        "legend.frameon": False,
    }


def use(mode: str = "light") -> None:
    """Draws every later figure in the course's style."""
    mpl.rcParams.update(rc(mode))


def style(mode: str = "light") -> AbstractContextManager[None]:
    """The course's style for the figures drawn inside a `with` block."""
    return mpl.rc_context(rc(mode))


def label(ax: Axes, x: float, y: float, text: str, meaning: str = "reference", **kwargs) -> None:
    """Writes `text` beside the point (x, y) in data units, in the colour of `meaning`.

    meaning: one of `MEANINGS`, or any matplotlib colour. Further arguments go to `ax.annotate`.
    """
    color = PALETTE["light"].get(meaning, meaning)
    defaults = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
    ax.annotate(text, (x, y), color=color, **(defaults | kwargs))


def show(fig: Figure, alt: str) -> None:
    """Displays a figure as a PNG that carries its description, and closes it.

    alt: what the picture shows, for readers who cannot see it. It becomes the plain-text form of
    the output and the alt text of an exported page.
    """
    if not alt.strip():
        raise ValueError("alt: must say what the picture shows, was empty")
    bundle, metadata = png_bundle(fig, alt)
    display(bundle, metadata=metadata, raw=True)


def png_bundle(fig: Figure, alt: str) -> tuple[dict[str, object], dict[str, dict[str, object]]]:
    """The figure as a MIME bundle with its alt text, and its metadata. Closes the figure."""
    png = print_figure(fig, "png", base64=True, bbox_inches=None)
    plt.close(fig)
    width, height = (round(x * 80) for x in fig.get_size_inches())
    size = {"alt": alt, "width": width, "height": height}
    return {"image/png": png, "text/plain": alt}, {"image/png": size}


def _check_mode(mode: str) -> None:
    if mode not in PALETTE:
        raise ValueError(f"mode: {mode!r} is not 'light' or 'dark'")
