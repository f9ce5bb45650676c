"""Chunk matrix: L, its inverse filling in, and whether the exponents fit the number format.

With G the cumulative sum of the log gates inside a chunk of C tokens,

    L_ij = beta_i sum_c k_ic k_jc exp(G_ic - G_jc)   for i > j, else 0        T = (I + L)^-1

Forward substitution finishes T row by row; Neumann doubling multiplies
(I - L)(I + L^2)(I + L^4)... and finishes the 2^(r+1) diagonals nearest the main one in round r.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import traitlets as t
from matplotlib.figure import Figure

from kda_lab import palette
from kda_lab.widgets.base import CourseWidget, array_trait, check_choice, check_range, module, pack

SIZES = (4, 8, 16, 32, 64)
METHODS = {"substitution": "forward substitution", "doubling": "Neumann doubling"}
KEYS = {"random": "random keys", "similar": "similar keys", "identical": "identical keys"}
BLOCK = 16  # re-basing: exponents are counted from the start of a block of this many tokens
# largest x with exp(x) finite: log of the largest number of the format
LIMITS = {
    "fp16": float(np.log(65504.0)),
    "bf16, fp32": float(np.log(np.finfo(np.float32).max)),
}
GATE_MAX = 5.0


def chunk_keys(C: int, kind: str = "random", K: int = 32) -> np.ndarray:
    """Unit keys `[C,K]`, the same every time: unrelated, close to one another, or all the same."""
    check_choice("kind", kind, tuple(KEYS))
    rng = np.random.default_rng(7)
    common, own = rng.normal(size=K), rng.normal(size=(64, K))[:C]
    k = {"random": own, "similar": common + own, "identical": 0 * own + common}[kind]
    return k / np.linalg.norm(k, axis=1, keepdims=True)


def chunk_matrix(k: np.ndarray, g: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """L `[C,C]` from k, g `[C,K]` and beta `[C]`, fp64.

    Each decay exp(G_i - G_j) with i > j is at most 1 and is computed as such, so no gate overflows.
    """
    G = np.cumsum(g, axis=0)
    lower = np.tri(len(k), k=-1, dtype=bool)
    between = np.where(lower[:, :, None], G[:, None] - G[None], -np.inf)
    return beta[:, None] * np.einsum("ic,jc,ijc->ij", k, k, np.exp(between))


def rounds(C: int, method: str) -> int:
    """Dependent steps until T is complete: C - 1 rows, or log2 C products."""
    check_choice("method", method, tuple(METHODS))
    return C - 1 if method == "substitution" else int(np.log2(C))


def inverse_after(L: np.ndarray, method: str, step: int, dtype=np.float64) -> np.ndarray:
    """T as it stands after `step` steps, computed in `dtype`; complete after `rounds(C, method)`.

    Step 0 is the identity.
    """
    check_range("step", step, 0, rounds(len(L), method))
    L = L.astype(dtype)
    T = np.eye(len(L), dtype=dtype)
    if method == "substitution":
        for i in range(1, step + 1):
            T[i, :i] = -L[i, :i] @ T[:i, :i]
        return T
    power = -L  # (-L)^(2^r): after round r, T is the sum of the first 2^r powers of -L
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(step):
            T = T + power @ T
            power = power @ power
    return T


@dataclass(frozen=True)
class Exponents:
    """Largest exponent, in nats, of exp(-G) when counted over the whole chunk or over one block."""

    chunk: float
    block: float


def exponents(C: int, gate: float) -> Exponents:
    """Exponents that a chunk of C tokens needs when every log gate is -`gate`.

    Counted from the first token's own decay on: C tokens span C * gate, a block 16 * gate.
    """
    return Exponents(C * gate, min(C, BLOCK) * gate)


class ChunkMatrix(CourseWidget):
    """L and its inverse for a chunk of C tokens, round by round, and the exponents it needs.

    C: 4, 8, 16, 32 or 64. beta in (0, 2). gate: decay per token in nats, 0 to 5 (g = -gate).
    kind: random, similar or identical keys. method: substitution or doubling. step: how many rounds
    of it are done (-1: half of them).
    """

    _esm = module("chunk_matrix")
    C = t.Int().tag(sync=True)
    beta = t.Float().tag(sync=True)
    gate = t.Float().tag(sync=True)
    kind = t.Unicode().tag(sync=True)
    method = t.Unicode().tag(sync=True)
    step = t.Int().tag(sync=True)
    info = t.Dict().tag(sync=True)
    frame = array_trait()

    def __init__(
        self,
        C: int = 16,
        beta: float = 0.9,
        gate: float = 0.3,
        kind: str = "similar",
        method: str = "doubling",
        step: int = -1,
    ):
        if C not in SIZES:
            raise ValueError(f"C: {C} is not one of {SIZES}")
        check_range("beta", beta, 0, 2)
        check_range("gate", gate, 0, GATE_MAX)
        check_choice("kind", kind, tuple(KEYS))
        last = rounds(C, method)
        check_range("step", step, -1, last)
        super().__init__(
            reading="The first square is L, the second its inverse as far as the rounds have come, "
            "the third what is still wrong in it, on a logarithmic scale. Below, the exponent that "
            "exp(−G) needs must stay left of a format's limit, or its numbers become infinite.",
            C=C,
            beta=beta,
            gate=gate,
            kind=kind,
            method=method,
            step=last // 2 if step < 0 else step,
        )
        self.recompute_on("C", "beta", "gate", "kind", "method", "step", do=self._compute)

    def matrices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """L, T after `step` rounds and the exact T, each `[C,C]` fp64."""
        k = chunk_keys(self.C, self.kind)
        L = chunk_matrix(k, np.full_like(k, -self.gate), np.full(self.C, self.beta))
        last = rounds(self.C, self.method)
        T = inverse_after(L, self.method, self.step)
        return L, T, inverse_after(L, "substitution", self.C - 1) if self.step < last else T

    def _compute(self) -> None:
        self.step = min(self.step, rounds(self.C, self.method))
        L, T, exact = self.matrices()
        low = L.copy()
        powers = []  # largest entry of each factor that doubling multiplies
        for _ in range(rounds(self.C, "doubling")):
            powers.append(float(np.abs(low).max()))
            low = low @ low
        e = exponents(self.C, self.gate)
        self.frame = pack([L, T, np.abs(T - exact)]).tobytes()
        self.info = {
            "sizes": SIZES, "methods": METHODS, "keys": KEYS, "gate_max": GATE_MAX,
            "rounds": rounds(self.C, self.method), "limits": LIMITS, "block": min(BLOCK, self.C),
            "chunk_exponent": e.chunk, "block_exponent": e.block, "powers": powers,
            "largest": float(np.abs(T).max()), "wrong": float(np.abs(T - exact).max()),
        }  # fmt: skip

    def figure(self) -> Figure:
        L, T, exact = self.matrices()
        fig, axes = plt.subplot_mosaic(
            [["L", "T", "wrong"], ["range"] * 3], figsize=(8.2, 4.4), height_ratios=[5, 2]
        )
        for name, x in (("L", L), ("T", T)):
            axes[name].imshow(x, cmap=palette.diverging(), vmin=-1, vmax=1)
        axes["wrong"].imshow(wrongness(T - exact), cmap=palette.errors(), vmin=0, vmax=1)
        last = rounds(self.C, self.method)
        axes["L"].set_title(f"L, β = {self.beta:g}, g = −{self.gate:g}", fontsize=10)
        axes["T"].set_title(f"T after round {self.step} of {last}", fontsize=10)
        axes["wrong"].set_title("still wrong in T", fontsize=10)
        for name in ("L", "T", "wrong"):
            axes[name].set(xlabel="token j", ylabel="token i")
        draw_range(axes["range"], self.C, self.gate)
        fig.suptitle(f"{METHODS[self.method]}, {KEYS[self.kind]}, C = {self.C}", fontsize=10)
        return fig

    def alt(self) -> str:
        _, T, exact = self.matrices()
        e = exponents(self.C, self.gate)
        return (
            f"Heat maps of the strictly lower triangular L of a chunk of {self.C} tokens, of its "
            f"inverse after round {self.step} of {rounds(self.C, self.method)} of "
            f"{METHODS[self.method]}, and of what is still wrong in it, at most "
            f"{np.abs(T - exact).max():.2g}. Bars: exp(-G) needs an exponent of {e.chunk:.4g} nats "
            f"over the chunk and {e.block:.4g} over a block of {min(BLOCK, self.C)}; fp16 ends at "
            f"{LIMITS['fp16']:.1f}, bf16 and fp32 at {LIMITS['bf16, fp32']:.1f}."
        )


def wrongness(x: np.ndarray) -> np.ndarray:
    """|x| on a logarithmic scale from 0 (1e-6 and less) to 1 (1 and more)."""
    return np.clip(1 + np.log10(np.maximum(np.abs(x), 1e-6)) / 6, 0, 1)


def draw_range(ax, C: int, gate: float) -> None:
    """Bars: the exponent of a whole chunk and of one block, against the limits of the formats."""
    e = exponents(C, gate)
    rows = [f"whole chunk of {C}", f"re-based every {min(BLOCK, C)}"]
    worst = LIMITS["bf16, fp32"]
    colours = [palette.ERROR if x > worst else palette.GATE for x in (e.chunk, e.block)]
    ax.barh(rows, (e.chunk, e.block), 0.6, color=colours)
    ax.invert_yaxis()
    for name, limit in LIMITS.items():
        ax.axvline(limit, color=palette.ERROR, lw=1.5)
        ax.annotate(f"{name} ends", (limit, -0.5), xytext=(3, 6), textcoords="offset points",
                    color=palette.ERROR, fontsize=8, annotation_clip=False)  # fmt: skip
    ax.set(xlim=(0, max(100, 1.05 * e.chunk)), xlabel="exponent of exp(−G) (nats)")
