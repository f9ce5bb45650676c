"""Affine scan: a segment of tokens maps its starting state S to M S + C, and such maps combine.

M `[K,K]` and C `[K,V]` do not depend on the starting state, so every segment finds its own at the
same time. Then (M2, C2) after (M1, C1) is (M2 M1, M2 C1 + C2): a product of maps that may be taken
one after another, P - 1 steps deep, or in a tree, log2 P deep.
"""

import matplotlib.pyplot as plt
import numpy as np
import traitlets as t
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from kda_lab import palette
from kda_lab.widgets.base import CourseWidget, array_trait, check_choice, check_range, module, pack

METHODS = {"serial": "one after another", "tree": "in a tree"}
P_MAX = 16
Map = tuple[np.ndarray, np.ndarray]  # M [K,K], C [K,V]


def combine(first: Map, second: Map) -> Map:
    """The map of `first` followed by `second`."""
    (M1, C1), (M2, C2) = first, second
    return M2 @ M1, M2 @ C1 + C2


def segment_map(k: np.ndarray, v: np.ndarray, g: np.ndarray, beta: np.ndarray) -> Map:
    """M and C of a segment of tokens: k, g `[T,K]`, v `[T,V]`, beta `[T]`, token by token."""
    M, C = np.eye(k.shape[1]), np.zeros((k.shape[1], v.shape[1]))
    for now in range(len(k)):
        step = (np.eye(len(M)) - beta[now] * np.outer(k[now], k[now])) * np.exp(g[now])
        M, C = step @ M, step @ C + beta[now] * np.outer(k[now], v[now])
    return M, C


def schedule(P: int, method: str) -> list[list[tuple[int, int]]]:
    """Rounds of combines; (left, right) sets slot `right` to the map of `left` followed by its own.

    All combines of a round read the slots as they stood before it and can run at the same time.
    """
    check_choice("method", method, tuple(METHODS))
    check_range("P", P, 1, P_MAX)
    if method == "serial":
        return [[(i, i + 1)] for i in range(P - 1)]
    reach = [2**r for r in range((P - 1).bit_length())]
    return [[(i - d, i) for i in range(d, P)] for d in reach]


def scan(maps: list[Map], method: str, rounds: int) -> tuple[list[Map], list[int]]:
    """The slots after so many rounds, and the first segment that each covers.

    Slot p holds the map of segments first..p; where first is 0 it is finished.
    """
    slots, first = list(maps), list(range(len(maps)))
    for combines in schedule(len(maps), method)[:rounds]:
        before, start = list(slots), list(first)
        for left, right in combines:
            slots[right] = combine(before[left], before[right])
            first[right] = start[left]
    return slots, first


def demo_segments(P: int, gate: float, K: int = 8, V: int = 8, T: int = 16) -> list[dict]:
    """P segments of T random tokens, as the arguments of `segment_map`; log gates -`gate`."""
    rng = np.random.default_rng(3)
    made = []
    for _ in range(P):
        k = rng.normal(size=(T, K))
        k /= np.linalg.norm(k, axis=1, keepdims=True)
        v, g = rng.normal(size=(T, V)), np.full((T, K), -gate)
        made.append({"k": k, "v": v, "g": g, "beta": np.full(T, 0.8)})
    return made


class AffineScan(CourseWidget):
    """P segments combine, one after another and in a tree; below, the states that are known by then.

    P: segments, 2 to 16. step: rounds done (-1: as many as the tree needs). gate: decay per token in
    nats, 0 to 1.
    """

    _esm = module("affine_scan")
    P = t.Int().tag(sync=True)
    step = t.Int().tag(sync=True)
    gate = t.Float().tag(sync=True)
    info = t.Dict().tag(sync=True)
    frame = array_trait()

    def __init__(self, P: int = 8, step: int = 2, gate: float = 0.02):
        check_range("P", P, 2, P_MAX)
        check_range("step", step, 0, P - 1)
        check_range("gate", gate, 0, 1)
        super().__init__(
            reading="Each box is a segment and says which segments its map covers by now; a filled "
            "box reaches back to the start, so the state at its end is known and drawn below it. "
            "A row is one round: all its combines run at once, so the number of rows is the wait.",
            P=P,
            step=step,
            gate=gate,
        )
        self.recompute_on("P", "step", "gate", do=self._compute)

    def states(self, method: str) -> np.ndarray:
        """State at the end of each segment `[P,K,V]` from a zero start; NaN where not yet known."""
        maps = [segment_map(**x) for x in demo_segments(self.P, self.gate)]
        slots, first = scan(maps, method, self.step)
        known = np.array(first) == 0
        return np.where(known[:, None, None], np.array([C for _, C in slots]), np.nan)

    def _compute(self) -> None:
        self.step = min(self.step, self.P - 1)
        states = [self.states(m) for m in METHODS]
        self.info = {
            "methods": METHODS, "P_max": P_MAX, "K": states[0].shape[1],
            "rounds": {m: schedule(self.P, m) for m in METHODS},
            "high": float(max(np.nanmax(np.abs(x)) for x in states)),
        }  # fmt: skip
        self.frame = pack(states).tobytes()

    def counts(self, method: str) -> tuple[int, int]:
        """Rounds, and combines in all rounds together."""
        rounds = schedule(self.P, method)
        return len(rounds), sum(map(len, rounds))

    def figure(self) -> Figure:
        fig, axes = plt.subplots(1, 2, figsize=(9, 3.6))
        for ax, method in zip(axes, METHODS, strict=True):
            rounds = schedule(self.P, method)
            draw_scan(ax, self.P, rounds, min(self.step, len(rounds)))
            deep, total = self.counts(method)
            ax.set_title(f"{METHODS[method]}: {deep} rounds, {total} combines", fontsize=10)
        return fig

    def alt(self) -> str:
        says = []
        for method, text in METHODS.items():
            deep, total = self.counts(method)
            known = sum(not np.isnan(S).any() for S in self.states(method))
            says.append(
                f"{text} needs {deep} rounds and {total} combines, and knows {known} of {self.P} "
                f"states after round {min(self.step, deep)}"
            )
        return f"{self.P} segments whose affine maps are combined: {'; '.join(says)}."


def draw_scan(ax, P: int, rounds: list[list[tuple[int, int]]], done: int) -> None:
    """One row of boxes per round; the rounds still to come are pale."""
    first = list(range(P))
    for row in range(len(rounds) + 1):
        if row:
            start = list(first)
            for left, right in rounds[row - 1]:
                first[right] = start[left]
                ax.plot([left, right], [row - 0.7, row - 0.3], color=palette.STATE, lw=1,
                        alpha=1 if row <= done else 0.15)  # fmt: skip
        for p in range(P):
            full = first[p] == 0 and row <= done
            box = FancyBboxPatch(
                (p - 0.36, row - 0.26), 0.72, 0.52, boxstyle="round,pad=0.02",
                fc=palette.STATE if full else "none", ec=palette.STATE,
                alpha=1 if row <= done else 0.2,
            )  # fmt: skip
            ax.add_patch(box)
            text = str(p) if first[p] == p else f"{first[p]}–{p}"
            ink = "white" if full else palette.SURFACE["light"]["ink"]
            ax.text(p, row, text, ha="center", va="center", fontsize=7, color=ink,
                    alpha=1 if row <= done else 0.5)  # fmt: skip
    ax.set(xlim=(-0.6, P - 0.4), ylim=(len(rounds) + 0.5, -0.5), xlabel="segment", ylabel="round")
    ax.set_yticks(range(len(rounds) + 1))
    ax.set_xticks(range(P))
