"""The oracle: the token recurrence of KDA in fp64, one line of code per line of the equation.

    S <- Diag(exp(g_t)) S            forget, channel by channel
    u  = beta_t (v_t - S^T k_t)      what the memory gets wrong about k_t
    S <- S + k_t u^T                 correct it
    o_t = scale * S^T q_t            read

Everything else in this repository is judged by this file. Source: Kimi Linear, arXiv 2510.26692, eq. 1.
"""

import torch
from torch import Tensor

from kda_lab.backend import Backend, register
from kda_lab.gates import activate
from kda_lab.inputs import Call


def kda_recurrence(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, S: Tensor
) -> tuple[Tensor, Tensor]:
    """One sequence, one head: q, k, g `[T,K]`, v `[T,V]`, beta `[T]`, S `[K,V]` -> o `[T,V]`, S `[K,V]`."""
    o = torch.empty_like(v)
    for t in range(len(q)):
        S = g[t].exp()[:, None] * S
        u = beta[t] * (v[t] - S.T @ k[t])
        S = S + torch.outer(k[t], u)
        o[t] = scale * S.T @ q[t]
    return o, S


def run_fp64(call: Call) -> tuple[Tensor, Tensor]:
    """The exact answer to a call: o `[B,T,HV,V]` and states `[N,HV,K,V]` (or V first), both fp64."""
    x = activate(call, torch.float64)
    o = torch.zeros(x.B * x.T, x.HV, x.V, dtype=torch.float64, device=x.q.device)
    S = torch.zeros(x.N, x.HV, x.K, x.V, dtype=torch.float64, device=x.q.device)
    if x.initial_state is not None:
        S += x.initial_state.mT if x.state_v_first else x.initial_state
    q, k, v, g, beta = (y.detach().flatten(0, 1) for y in (x.q, x.k, x.v, x.g, x.beta))
    for n, (start, end) in enumerate(call.spans()):
        t = slice(start, end)
        for hv in range(x.HV):
            h = hv // (x.HV // x.H)
            o[t, hv], S[n, hv] = kda_recurrence(
                q[t, h], k[t, h], v[t, hv], g[t, hv], beta[t, hv], x.scale, S[n, hv]
            )
    return o.view(x.B, x.T, x.HV, x.V), S.mT.contiguous() if x.state_v_first else S


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    o, S = run_fp64(call)
    return o.to(call.v.dtype), S.to(call.state_dtype) if call.output_final_state else None


register(Backend("reference", "the equation in fp64, token by token, head by head", run))
