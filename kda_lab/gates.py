"""From what a model produces to what the recurrence uses: gates, beta, and the norm of q and k.

Source: Kimi Linear (arXiv 2510.26692) for the softplus gate; FlashKDA and flash-linear-attention for
the bounded one. All functions keep the dtype they are given.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kda_lab.inputs import Call

L2_EPS = 1e-6


def softplus_gate(g: Tensor, A_log: Tensor, dt_bias: Tensor | None = None) -> Tensor:
    """Log decay `-exp(A_log) * softplus(g + dt_bias)`: any value below 0.

    g `[..., HV, K]` raw logits; A_log `[HV]`; dt_bias `[HV, K]` or None (0). Returns g's shape,
    natural log per token.
    """
    x = g if dt_bias is None else g + dt_bias
    return -A_log.exp()[:, None] * F.softplus(x)


def sigmoid_gate(
    g: Tensor, lower_bound: float, A_log: Tensor | None = None, dt_bias: Tensor | None = None
) -> Tensor:
    """Log decay `lower_bound * sigmoid(exp(A_log) * (g + dt_bias))`: between lower_bound and 0.

    g `[..., HV, K]` raw logits; lower_bound < 0; A_log `[HV]` or None (0); dt_bias `[HV, K]` or
    None (0). Returns g's shape, natural log per token.
    """
    x = g if dt_bias is None else g + dt_bias
    return lower_bound * torch.sigmoid(x if A_log is None else A_log.exp()[:, None] * x)


def beta_sigmoid(beta: Tensor, allow_neg_eigval: bool = False) -> Tensor:
    """Write strength `sigmoid(beta)` in (0, 1), or twice that, in (0, 2), with `allow_neg_eigval`.

    Above 1 the erase overshoots: I - beta k k^T gets the negative eigenvalue 1 - beta.
    """
    return torch.sigmoid(beta) * (2 if allow_neg_eigval else 1)


def l2_normalize(x: Tensor) -> Tensor:
    """`x / sqrt(sum(x^2) + 1e-6)` over the last axis: unit length, and 0 stays 0."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


def activate(call: Call, dtype: torch.dtype) -> Call:
    """The same call in `dtype` with norm, gate and sigmoid applied: q k v g beta as the recurrence uses them."""
    q, k, v, g, beta = (x.to(dtype) for x in (call.q, call.k, call.v, call.g, call.beta))
    if call.use_qk_l2norm_in_kernel:
        q, k = l2_normalize(q), l2_normalize(k)
    if call.use_gate_in_kernel:
        A_log = None if call.A_log is None else call.A_log.to(dtype)
        dt_bias = None if call.dt_bias is None else call.dt_bias.to(dtype)
        if call.lower_bound is not None:
            g = sigmoid_gate(g, call.lower_bound, A_log, dt_bias)
        elif A_log is not None:
            g = softplus_gate(g, A_log, dt_bias)
    if call.use_beta_sigmoid_in_kernel:
        beta = beta_sigmoid(beta, call.allow_neg_eigval)
    return replace(
        call, q=q, k=k, v=v, g=g, beta=beta, safe_gate=call.bounded, A_log=None, dt_bias=None,
        lower_bound=None, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False,
        use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False,
    )  # fmt: skip


def compute_dtype(call: Call) -> torch.dtype:
    """The dtype in which the PyTorch implementations compute: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if call.q.dtype == torch.float64 else torch.float32
