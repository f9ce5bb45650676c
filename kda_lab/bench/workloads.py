"""What is timed: the workloads of the contract, the gates, the inputs, and the floor under each.

A workload is named by its sequences and heads: `8192-H96` is one sequence of 8192 tokens with 96
heads, `1024x8-H96` eight of 1024, `mixed6-H96` six of mixed lengths, `1x32-H32` a decode step of 32
sequences.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = dict[str, Tensor]

D = 128  # K = V everywhere that is timed
LOWER_BOUND = -5.0
MIXED = (1300, 547, 2048, 963, 271, 3063)
GATES = {"strong": 0.5, "weak": -5.5, "long": -8.5}  # mean of the raw logits, standard deviation 1


@dataclass(frozen=True)
class Workload:
    """Sequences of `lengths` tokens with `H` heads; `direction` is forward or decode."""

    lengths: tuple[int, ...]
    H: int
    direction: str = "forward"

    @property
    def name(self) -> str:
        n, T = len(self.lengths), self.lengths[0]
        if self.lengths == MIXED:
            return f"mixed6-H{self.H}"
        return f"{T}-H{self.H}" if n == 1 else f"{T}x{n}-H{self.H}"

    @property
    def T(self) -> int:
        return sum(self.lengths)

    @property
    def N(self) -> int:
        return len(self.lengths)

    @property
    def floor_bytes(self) -> int:
        """Bytes any implementation moves: q k v g o in bf16, beta, and the fp32 state in and out."""
        return self.T * self.H * (10 * D + 2) + 8 * self.N * self.H * D * D

    @property
    def flops(self) -> int:
        """Multiply-adds counted twice of the chunk-16 form, dense (98304 + 1024 C a token and head)."""
        return self.T * self.H * 114_688


FORWARD = tuple(
    Workload(lengths, H)
    for lengths, H in (
        ((8192,), 96), (MIXED, 96), ((1024,) * 8, 96), ((8192,), 64), (MIXED, 64), ((1024,) * 8, 64),
        ((8192,), 32), ((8192,), 16), ((2048,), 12), ((65536,), 16), ((4096,) * 4, 16), ((512,), 64),
    )
)  # fmt: skip
LONGEST = Workload((1_048_576,), 16)
DECODE = tuple(
    Workload((1,) * n, H, "decode")
    for n, H in ((1, 32), (1, 96), (8, 96), (8, 32), (32, 32), (256, 32), (128, 96))
)
QUICK = ("2048-H12", "8192-H16", "1024x8-H64", "8192-H96", "1x32-H32", "1x128-H96")
ALL = {w.name: w for w in (*FORWARD, LONGEST, *DECODE)}
ORDER = list(ALL)


def make_inputs(
    w: Workload, gate: str, seed: int = 0, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> Inputs:
    """q k v g `[1,T,H,128]`, beta `[1,T,H]`, A_log, dt_bias, h0 `[N,H,V,K]`, cu `[N+1]` int64.

    q and k have unit length; g holds raw logits N(GATES[gate], 1) and beta raw logits N(0, 1).
    A decode workload is one token of N sequences, laid out `[N,1,H,128]`.
    """
    rng = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, device=device, dtype=dtype).normal_(generator=rng)

    B, T = (w.N, 1) if w.direction == "decode" else (1, w.T)
    return dict(
        q=F.normalize(normal(B, T, w.H, D), dim=-1),
        k=F.normalize(normal(B, T, w.H, D), dim=-1),
        v=normal(B, T, w.H, D),
        g=normal(B, T, w.H, D).add_(GATES[gate]),
        beta=normal(B, T, w.H),
        A_log=torch.zeros(w.H, device=device),
        dt_bias=torch.zeros(w.H, D, device=device),
        h0=normal(w.N, w.H, D, D, dtype=torch.float32).mul_(0.1),
        cu=torch.tensor([0, *torch.tensor(w.lengths).cumsum(0).tolist()], device=device),
    )


def call_arguments(w: Workload, x: Inputs) -> dict:
    """Keyword arguments of `kda_lab.chunk_kda` for one timed call: everything fused, V-first fp32 states."""
    arguments = {name: x[name] for name in ("q", "k", "v", "g", "beta", "A_log", "dt_bias")}
    if w.N > 1 and w.direction == "forward":
        arguments["cu_seqlens"] = x["cu"]
    return dict(
        **arguments, initial_state=x["h0"], output_final_state=True, use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, safe_gate=True,
        lower_bound=LOWER_BOUND, state_v_first=True,
    )  # fmt: skip
