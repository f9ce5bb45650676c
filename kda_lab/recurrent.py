"""The token recurrence in PyTorch, all heads and sequences at once; differentiable.

Two rearrangements make it fast without changing the result. The decay is moved onto the vectors
that multiply the old state, so that S is read once a token for both products:

    S^T (a k)  and  S^T (a q)      with a = exp(g), S the state before its decay
    u = beta (v - S^T (a k))
    S <- a S + k u^T
    o = scale (S_old^T (a q) + (q.k) u)

and sequences of different lengths advance together, the longest first, so that the ones still
running are always the leading rows of the state.
"""

import torch
from torch import Tensor

from kda_lab.backend import Backend, register
from kda_lab.gates import activate, compute_dtype
from kda_lab.inputs import Call


def initial_states(call: Call, dtype: torch.dtype) -> Tensor:
    """The states to start from, `[N,HV,K,V]` in `dtype`: a copy of the initial state, or zeros."""
    if call.initial_state is None:
        return call.q.new_zeros(call.N, call.HV, call.K, call.V, dtype=dtype)
    S = call.initial_state.mT if call.state_v_first else call.initial_state
    return S.to(dtype, copy=True, memory_format=torch.contiguous_format)


def final_states(call: Call, S: Tensor) -> Tensor | None:
    """S `[N,HV,K,V]` in the layout and dtype the caller asked for, or None."""
    if not call.output_final_state:
        return None
    return (S.mT if call.state_v_first else S).to(call.state_dtype).contiguous()


def longest_first(spans: list[tuple[int, int]]) -> list[int]:
    """Sequence numbers by falling length: the ones still running are always a prefix."""
    return sorted(range(len(spans)), key=lambda n: spans[n][0] - spans[n][1])


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    dtype = compute_dtype(call)
    x = activate(call, dtype)
    group = x.HV // x.H
    spans = call.spans()
    order = longest_first(spans)
    device = x.q.device

    q, k, v, g, beta = (y.flatten(0, 1) for y in (x.q, x.k, x.v, x.g, x.beta))
    if group > 1:
        q, k = q.repeat_interleave(group, 1), k.repeat_interleave(group, 1)
    a = g.exp()  # [B*T,HV,K]
    reads = torch.stack((a * k, a * q), -2)  # [B*T,HV,2,K]
    qk = (q * k).sum(-1, keepdim=True)  # [B*T,HV,1]

    rank = torch.tensor(order, dtype=torch.long, device=device)
    S = initial_states(call, dtype)[rank]
    starts = torch.tensor([spans[n][0] for n in order], device=device)
    lengths = [spans[n][1] - spans[n][0] for n in order]
    tokens, outputs, finished = [], [], []
    running = len(order)
    for t in range(max(lengths, default=0)):
        while lengths[running - 1] <= t:
            running -= 1
        if running < len(S):
            finished.append(S[running:])
            S = S[:running]
        i = starts[:running] + t
        read = reads[i] @ S  # [n,HV,2,V]
        u = beta[i, :, None] * (v[i] - read[:, :, 0])  # [n,HV,V]
        S = torch.addcmul(a[i, :, :, None] * S, k[i, :, :, None], u[:, :, None])
        tokens.append(i)
        outputs.append(x.scale * (read[:, :, 1] + qk[i] * u))
    S = torch.cat([S, *reversed(finished)])[torch.argsort(rank)]

    o = torch.zeros_like(v)
    if tokens:
        o = o.index_copy(0, torch.cat(tokens), torch.cat(outputs))
    return o.view(x.B, x.T, x.HV, x.V).to(call.v.dtype), final_states(call, S)


register(
    Backend(
        "recurrent", "token by token in PyTorch, every head and sequence at once", run,
        differentiable=True,
    )  # fmt: skip
)
