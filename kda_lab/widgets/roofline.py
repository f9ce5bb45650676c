"""Roofline: what KDA's forward pass must compute and move, and how long a GPU needs for that at best.

Counts are per call of N = 1 sequence of T tokens with H heads, K = V = D, chunks of C tokens:
three products with the state (2 D^2 FLOP a token each) and four of C x C
matrices; q, k, v, o and beta in bf16, the gate, and the fp32 state in and out.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import traitlets as t
from matplotlib.figure import Figure

from kda_lab import palette
from kda_lab.widgets.base import CourseWidget, check_choice, check_range, module


@dataclass(frozen=True)
class GPU:
    """Data-sheet peaks: dense bf16 tensor FLOP/s, memory bytes/s, and streaming multiprocessors."""

    flops: float
    bandwidth: float
    sms: int

    @property
    def ridge(self) -> float:
        """FLOP per byte above which arithmetic, not memory, sets the time."""
        return self.flops / self.bandwidth


GPUS = {
    "H20": GPU(148e12, 4.0e12, 78),
    "H100": GPU(989.4e12, 3.35e12, 132),
    "H200": GPU(989.4e12, 4.8e12, 132),
}
GATES = {  # bytes of gate per token and head, as a function of D
    "bf16": ("per channel, bf16", lambda D: 2 * D),
    "fp32": ("per channel, fp32", lambda D: 4 * D),
    "scalar": ("one per token, fp32", lambda D: 4),
}
CHUNKS, DIMS = (16, 32, 64), (64, 128, 256)
T_MAX, H_MAX = 2**20, 128


@dataclass(frozen=True)
class Cost:
    """FLOP and bytes of one call: `bytes` of one fused kernel, `split_bytes` of two kernels that
    hand their factors over through memory, and `blocks` that can work at the same time."""

    flops: float
    bytes: float
    split_bytes: float
    blocks: int


def products(D: int, C: int) -> dict[str, int]:
    """FLOP per token and head of each product of the chunked form, K = V = D.

    The inverse of I + L (about 3,000 FLOP at C = 16) is not counted.
    """
    return {
        "L = K~ K^ᵀ": 2 * C * D, "M = Q~ K^ᵀ": 2 * C * D, "K~ S": 2 * D * D,
        "U = T (β R)": 2 * C * D, "Q~ S": 2 * D * D, "M U": 2 * C * D, "K-ᵀ U": 2 * D * D,
    }  # fmt: skip


def cost(T: int, H: int, D: int = 128, C: int = 16, gate: str = "bf16") -> Cost:
    """FLOP and bytes of the forward pass over T tokens and H heads."""
    check_choice("gate", gate, tuple(GATES))
    check_range("T", T, 1, T_MAX)
    check_range("H", H, 1, H_MAX)
    tokens, g, state = T * H, GATES[gate][1](D), 8 * H * D * D
    factors = 6 * D + 4 * D / C + 4 * C  # K~ Q~ K- in bf16, the chunk's decay in fp32, T and M
    return Cost(
        flops=tokens * sum(products(D, C).values()),
        bytes=tokens * (8 * D + g + 2) + state,
        split_bytes=tokens * (4 * D + g + 2 + 2 * factors + 4 * D) + state,
        blocks=H,
    )


def floor_seconds(c: Cost, gpu: GPU, whole: bool = True) -> float:
    """Seconds that a fused kernel needs at the very least on data-sheet peaks.

    whole: with every multiprocessor at work; else with one per head, where a head's chunks have to
    wait for one another.
    """
    share = 1.0 if whole else min(1.0, c.blocks / gpu.sms)
    return max(c.bytes / gpu.bandwidth, c.flops / (gpu.flops * share))


class Roofline(CourseWidget):
    """KDA's forward pass as points under the roof of a GPU; every number is a model, not a measurement.

    T: tokens, 512 to 2^20. H: heads, 1 to 128. D: 64, 128 or 256. C: 16, 32 or 64.
    gpu: H20, H100 or H200. gate: bf16, fp32 or scalar.
    """

    _esm = module("roofline")
    T = t.Int().tag(sync=True)
    H = t.Int().tag(sync=True)
    D = t.Int().tag(sync=True)
    C = t.Int().tag(sync=True)
    gpu = t.Unicode().tag(sync=True)
    gate = t.Unicode().tag(sync=True)
    info = t.Dict().tag(sync=True)

    def __init__(
        self,
        T: int = 8192,
        H: int = 96,
        D: int = 128,
        C: int = 16,
        gpu: str = "H100",
        gate: str = "bf16",
    ):
        check_range("T", T, 512, T_MAX)
        check_range("H", H, 1, H_MAX)
        if D not in DIMS:
            raise ValueError(f"D: {D} is not one of {DIMS}")
        if C not in CHUNKS:
            raise ValueError(f"C: {C} is not one of {CHUNKS}")
        check_choice("gpu", gpu, tuple(GPUS))
        check_choice("gate", gate, tuple(GATES))
        super().__init__(
            reading="The roof is the best this GPU could do: the slope is its memory, the flat part "
            "its tensor cores. A point on the slope waits for bytes, so only moving fewer of them "
            "makes it faster; under the flat part it waits for arithmetic.",
            T=T,
            H=H,
            D=D,
            C=C,
            gpu=gpu,
            gate=gate,
        )
        self.recompute_on("T", "H", "D", "C", "gpu", "gate", do=self._compute)

    def cost(self) -> Cost:
        """What the call at the present controls costs."""
        return cost(self.T, self.H, self.D, self.C, self.gate)

    def points(self) -> dict[str, tuple[float, float, float]]:
        """For each design: FLOP/byte, FLOP/s and seconds."""
        c, gpu = self.cost(), GPUS[self.gpu]
        split = Cost(c.flops, c.split_bytes, c.split_bytes, c.blocks)
        return {
            name: (x.flops / x.bytes, x.flops / seconds, seconds)
            for name, x, seconds in (
                ("one kernel", c, floor_seconds(c, gpu)),
                ("two kernels", split, floor_seconds(split, gpu)),
                ("one kernel, one SM a head", c, floor_seconds(c, gpu, whole=False)),
            )
        }

    def _compute(self) -> None:
        c, gpu = self.cost(), GPUS[self.gpu]
        self.info = {
            "gpus": {k: [x.flops, x.bandwidth, x.sms] for k, x in GPUS.items()},
            "gates": {k: text for k, (text, _) in GATES.items()},
            "dims": DIMS, "chunks": CHUNKS, "H_max": H_MAX, "points": self.points(),
            "flops": c.flops, "bytes": c.bytes, "share": min(1.0, c.blocks / gpu.sms),
            "products": products(self.D, self.C),
        }  # fmt: skip

    def figure(self) -> Figure:
        gpu, points = GPUS[self.gpu], self.points()
        fig, ax = plt.subplots(figsize=(7, 3.8))
        x = np.geomspace(4, 2000, 200)
        ax.loglog(x, np.minimum(gpu.flops, x * gpu.bandwidth) / 1e12, color=palette.REFERENCE)
        palette.label(ax, 1500, gpu.flops / 1e12, f"{gpu.flops / 1e12:.0f} TFLOP/s", "reference",
                      va="bottom", ha="right", xytext=(0, 4))  # fmt: skip
        palette.label(ax, 6, 6 * gpu.bandwidth / 1e12, f"{gpu.bandwidth / 1e12:g} TB/s",
                      "reference", xytext=(8, -2))  # fmt: skip
        for (name, (intensity, rate, seconds)), meaning in zip(
            points.items(), ("own", "peer", "own"), strict=True
        ):
            hollow = name.endswith("head")
            if hollow and rate == points["one kernel"][1]:
                continue
            color = palette.colour(meaning)
            ax.plot(intensity, rate / 1e12, "o", ms=8, mec=color, mfc="none" if hollow else color)
            ax.plot([intensity] * 2, [4, rate / 1e12], color=color, lw=1, ls=":")
            palette.label(ax, intensity, rate / 1e12, f"{name}: {seconds * 1e6:,.0f} µs", meaning,
                          xytext=(8, -8))  # fmt: skip
        ax.set(ylim=(4, 2000), xlabel="FLOP per byte moved", ylabel="TFLOP/s")
        ax.set_title(
            f"{self.gpu}, T = {self.T:,}, H = {self.H}, D = {self.D}, C = {self.C} (model)",
            fontsize=10,
        )
        return fig

    def alt(self) -> str:
        gpu = GPUS[self.gpu]
        says = "; ".join(
            f"{name}: {intensity:.0f} FLOP per byte, at least {seconds * 1e6:,.0f} microseconds"
            for name, (intensity, _, seconds) in self.points().items()
        )
        return (
            f"Roofline of an {self.gpu}, {gpu.flops / 1e12:.0f} TFLOP/s and "
            f"{gpu.bandwidth / 1e12:g} TB/s by its data sheet, with KDA's forward pass at "
            f"T={self.T}, H={self.H}, D={self.D}, chunk {self.C}. {says}."
        )
