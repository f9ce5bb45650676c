"""Fragments: which thread of a warp holds which element of A, B and C of mma.sync m16n8k16."""

import matplotlib.pyplot as plt
import numpy as np
import traitlets as t
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kda_lab import palette
from kda_lab.hopper.fragments import MMA_A, MMA_B, MMA_C
from kda_lab.widgets.base import CourseWidget, check_range, module


def owners() -> dict[str, np.ndarray]:
    """For each operand `[rows, columns, 2]`: the thread that holds the element, and as its which value.

    A is `[M,K]` = [16,16], B is drawn as `[K,N]` = [16,8], C is `[M,N]` = [16,8]. Values 2r and
    2r+1 of bf16 operands A and B share the thread's register r; each value of C is a register.
    """
    return {"A": MMA_A.owners, "B": MMA_B.owners.transpose(1, 0, 2), "C": MMA_C.owners}


def held(thread: int) -> dict[str, list[tuple[int, int]]]:
    """Row and column of each value that a thread holds, in the order of its registers."""
    check_range("thread", thread, 0, 31)
    found = {}
    for name, x in owners().items():
        where = np.argwhere(x[:, :, 0] == thread)
        order = np.argsort(x[where[:, 0], where[:, 1], 1])
        found[name] = [(int(row), int(column)) for row, column in where[order]]
    return found


class Fragments(CourseWidget):
    """C[16,8] += A[16,16] B[16,8] of one warp; the thread whose registers are shown can be moved.

    thread: 0 to 31, marked at first.
    """

    _esm = module("fragments")
    thread = t.Int().tag(sync=True)
    owners = t.Dict().tag(sync=True)

    def __init__(self, thread: int = 5):
        check_range("thread", thread, 0, 31)
        super().__init__(
            reading="Each number is the thread that holds this element; the filled cells belong to "
            "the chosen thread and name its values. B stands above C and A to its left, as in a "
            "product on paper: an element of C needs its row of A and its column of B.",
            thread=thread,
            owners={name: x.tolist() for name, x in owners().items()},
        )

    def figure(self) -> Figure:
        fig, ax = plt.subplots(figsize=(5.6, 6.6))
        places = {"A": (0, 17.5), "B": (17.5, 0), "C": (17.5, 17.5)}
        for (name, x), meaning in zip(owners().items(), ("keys", "values", "state"), strict=True):
            x0, y0 = places[name]
            color = palette.colour(meaning)
            for (row, column), thread in np.ndenumerate(x[:, :, 0]):
                own = thread == self.thread
                ax.add_patch(Rectangle((x0 + column, y0 + row), 1, 1, fc=color, ec="white", lw=0.4,
                                       alpha=1 if own else 0.08 + 0.1 * (thread % 4)))  # fmt: skip
                text = f"{name.lower()}{x[row, column, 1]}" if own else str(thread)
                ink = "white" if own else palette.SURFACE["light"]["ink"]
                ax.text(x0 + column + 0.5, y0 + row + 0.55, text, ha="center", va="center",
                        fontsize=5.5, color=ink, weight="bold" if own else None)  # fmt: skip
            rows, columns = x.shape[:2]
            ax.text(x0, y0 - 0.6, f"{name}  {rows} × {columns}", color=color, weight="bold")
        ax.set(xlim=(-0.2, 26), ylim=(34, -1.6), aspect="equal")
        ax.axis("off")
        ax.set_title(f"mma.sync m16n8k16, thread {self.thread}", fontsize=10)
        return fig

    def alt(self) -> str:
        parts = "; ".join(
            f"of {name} "
            + ", ".join(f"{name.lower()}{i} = ({r},{c})" for i, (r, c) in enumerate(where))
            for name, where in held(self.thread).items()
        )
        return (
            f"Grids of A, B and C of mma.sync m16n8k16 that say which thread holds each element. "
            f"Thread {self.thread} holds {parts}, each as (row, column)."
        )
