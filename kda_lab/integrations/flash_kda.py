"""FlashKDA's function on this library's kernels: change `from flash_kda import fwd`, and nothing else.

    from kda_lab.integrations.flash_kda import fwd

Interface: MoonshotAI/FlashKDA at 1ce47ea, README, "flash_kda.fwd".
"""

import torch
from torch import Tensor

from kda_lab.inputs import state_dtype
from kda_lab.ops import serve


def fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    out: Tensor,
    A_log: Tensor | None,
    dt_bias: Tensor | None,
    lower_bound: float,
    initial_state: Tensor | None = None,
    final_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> None:
    """KDA forward on raw inputs: q and k get unit length, beta its sigmoid, g the bounded gate inside.

    Arguments (B batch, T tokens, H heads, K and V channels):
        q, k: `[B,T,H,K]`. v: `[B,T,H,V]`.
        g: `[B,T,H,K]`, gate logits; log decay = lower_bound * sigmoid(exp(A_log) (g + dt_bias)).
        beta: `[B,T,H]`, logits.
        scale: of the output.
        out: `[B,T,H,V]`, written.
        A_log: `[H]` fp32. dt_bias: `[H,K]` fp32. None counts as 0.
        lower_bound: in [-5, 0], natural log per token.
        initial_state: `[N,H,V,K]` fp32 or bf16, zeros if None; N = B, or the number of sequences.
        final_state: the same shape, written; initial_state's dtype if there is one. The two may be
            one tensor.
        cu_seqlens: `[N+1]`, B = 1: sequence n is tokens cu_seqlens[n] to cu_seqlens[n+1]; rows of out
            past the last become 0.

    FlashKDA takes contiguous bf16 of K = V = 128 with as many value heads as key heads, int64
    cu_seqlens, and both parameters. Here q, k, v may have any floating dtype, strides and sizes, v, g
    and beta a multiple of H heads, g and beta fp32, and cu_seqlens int32. A state carried in bf16 is
    rounded once, at the end, not in every chunk. Nothing is recorded for autograd.

    Raises ValueError or TypeError naming the argument.
    """
    for name, x in dict(q=q, v=v, g=g, out=out).items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(x).__name__}")
    forgets = lower_bound != 0 or isinstance(lower_bound, bool)
    if forgets:
        inputs = (q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state)
    else:  # the gate is 0, whatever its logits
        inputs = (q, k, v, torch.zeros_like(g), beta, None, None, cu_seqlens, initial_state)
    dtype = initial_state.dtype if isinstance(initial_state, Tensor) else state_dtype(q)
    o = out if _can_be_written(out, inputs) else None
    state = None
    if isinstance(final_state, Tensor) and final_state.dtype == dtype:
        others = inputs[:-1] if _same(final_state, initial_state) else inputs
        state = final_state if _can_be_written(final_state, others) else None
    options = (
        scale, final_state is not None, True, forgets, True, False, True,
        lower_bound if forgets else None, True, None, False,
    )  # fmt: skip
    with torch.no_grad():
        run = serve((*inputs, o, state), options)
        _check("out", out, v.shape, (v.dtype,), v.device)
        if final_state is not None:
            N = q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
            shape = (N, *v.shape[2:], q.shape[3])
            dtypes = (dtype,) if initial_state is not None else (dtype, torch.bfloat16)
            _check("final_state", final_state, shape, dtypes, q.device)
        results = run()
        if o is None:
            out.copy_(results[0])
        if final_state is not None and state is None:
            assert results[1] is not None
            final_state.copy_(results[1])


def _same(x: Tensor, y: Tensor | None) -> bool:
    """Whether both are one state: each block of a kernel reads its part before it writes it."""
    if not isinstance(y, Tensor) or x.data_ptr() != y.data_ptr():
        return False
    return x.shape == y.shape and x.dtype == y.dtype and x.stride() == y.stride()


def _can_be_written(x: Tensor, inputs: tuple[Tensor | None, ...]) -> bool:
    """Whether a kernel may write x while others of its blocks still read the inputs."""
    start, end = x.data_ptr(), x.data_ptr() + x.nbytes
    return x.is_contiguous() and not any(
        isinstance(y, Tensor) and y.data_ptr() < end and start < _end(y) for y in inputs
    )


def _end(x: Tensor) -> int:
    """The address after x's last element."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr() + (last + 1) * x.element_size()


def _check(name: str, x: Tensor, shape: tuple, dtypes: tuple, device: torch.device) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, not {type(x).__name__}")
    if x.shape != shape:
        raise ValueError(f"{name} has shape {list(x.shape)}; it must be {list(shape)}")
    if x.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {x.dtype}; it must be {' or '.join(map(str, dtypes))}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}; it must be on q's device, {device}")
