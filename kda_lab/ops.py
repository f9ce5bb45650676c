"""The public functions: check the call once, choose an implementation, hand over.

On a GPU checking and choosing would take longer than a short call's kernels. Both depend only on what
`signature` says of a call, so a call like one that was served before goes straight to its rung.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kda_lab import chunked, native, recurrent, reference  # noqa: F401  (they register their backends)
from kda_lab.backend import BACKENDS, Backend
from kda_lab.inputs import Call, check_call, looks_at_values
from kda_lab.native.rungs import RUNGS


def proven(*names: str) -> tuple[str, ...]:
    """Without the rungs that still fail a case of `kda-lab gpu-check`."""
    return tuple(name for name in names if name not in RUNGS or not RUNGS[name].unproven)


# Who is asked first by backend="auto"; the first that can serve a call gets it.
AUTO_CPU = ("cpu", "chunked")
AUTO_CUDA = proven("v3", "v4", "v2", "v1", "chunked")
AUTO_CUDA_FEW = proven("v4", "v3", "v2", "v1", "chunked")
AUTO_RECURRENT = ("decode", "v1", "recurrent")

# Pairs of a sequence and a value head, each a serial chain. Fewer leave multiprocessors idle, and then the chain's
# length decides: a quarter of the steps (v4). More, and the bytes of the workspace do: v3 moves fewer.
FEW = 64


def backends() -> dict[str, str | None]:
    """Every implementation by name: None if it can run here, else the reason why it cannot."""
    return {name: backend.unavailable() for name, backend in BACKENDS.items()}


def order(call: Call) -> tuple[str, ...]:
    """The backends that "auto" asks, in turn; the last takes every call."""
    if call.recurrent:
        return AUTO_RECURRENT
    if call.q.device.type == "cpu":
        return AUTO_CPU
    return AUTO_CUDA_FEW if call.N * call.HV < FEW else AUTO_CUDA


def choose(call: Call, backend: str | tuple[str, ...]) -> Backend:
    """The backend named, or the first that serves the call in the `auto` order: of several, or of all.

    Raises ValueError with the reason of each when none does.
    """
    if not isinstance(backend, str | tuple):
        raise TypeError(f"backend must be a name or 'auto', not {backend!r}")
    if backend == "auto":
        names = [name for name in order(call) if name in BACKENDS]
    elif isinstance(backend, str):
        names = [backend]
    else:
        turn = order(call)
        names = sorted(backend, key=lambda name: turn.index(name) if name in turn else len(turn))
    reasons = []
    for name in names:
        if name not in BACKENDS:
            known = ", ".join(["auto", *BACKENDS])
            raise ValueError(f"backend is {name!r}; it must be one of {known}")
        reason = BACKENDS[name].refusal(call)
        if reason is None:
            return BACKENDS[name]
        reasons.append(f"backend {name!r} cannot serve this call: {reason}")
    raise ValueError("; ".join(reasons))


# ---------------------------------------------------------------- calls like one served before

Result = tuple[Tensor, Tensor | None]
Served = tuple[Backend, Callable[..., Result]]
_served: dict[tuple, Served] = {}  # by signature: who serves such calls, and how
OPTIONS = (
    "scale", "output_final_state", "use_qk_l2norm_in_kernel", "use_gate_in_kernel",
    "use_beta_sigmoid_in_kernel", "allow_neg_eigval", "safe_gate", "lower_bound", "state_v_first",
    "chunk_size", "recurrent",
)  # fmt: skip
SIGNATURES = 4096  # then all are forgotten: lengths may differ in every call


def signature(tensors: tuple, options: tuple) -> tuple[tuple | None, list[int]]:
    """All that checks, choice and launch depend on, and the tensors' addresses.

    None instead when values have to be looked at, autograd has to be served, or it is no proper call.
    """
    key: list = [options, tuple(map(type, options))]  # True == 1 == 1.0, which are not alike here
    addresses = []
    try:
        if looks_at_values(tensors[0]):
            return None, []
        for x in tensors:
            if x is None:
                key.append(None)
                addresses.append(0)
                continue
            address = x.data_ptr()
            addresses.append(address)
            key += (
                x.shape, x.is_contiguous() or x.stride(), x.dtype, x.get_device(),
                address % 256,  # no copy engine or vector load asks for more
            )  # fmt: skip
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
            return None, []
        hash(options)
    except (AttributeError, TypeError, RuntimeError):  # check_call has the words for it
        return None, []
    return tuple(key), addresses


def serve(
    tensors: tuple, options: tuple, backend: str | tuple[str, ...] = "auto"
) -> Callable[[], Result]:
    """A checked call and a backend for it, ready to run.

    tensors: q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state, and o and final_state to
        write into, contiguous and like the results, or None for new ones.
    options: values of OPTIONS.

    Raises ValueError or TypeError naming the argument, or when no backend asked for serves the call.
    """
    key, addresses = signature(tensors, (*options, backend))
    found = None if key is None else _served.get(key)
    if found is not None and BACKENDS.get(found[0].name) is found[0]:
        return partial(found[1], tensors, addresses)
    q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state, o, final_state = tensors
    call = check_call(
        q, k, v, g, beta, initial_state=initial_state, cu_seqlens=cu_seqlens, A_log=A_log,
        dt_bias=dt_bias, **dict(zip(OPTIONS, options, strict=True)),
    )  # fmt: skip
    chosen = choose(call, backend)
    prepared = None if key is None else chosen.prepare(call)
    if key is None or prepared is None:
        return partial(_run_into, o, final_state, chosen, call)
    if len(_served) >= SIGNATURES:
        _served.clear()
    _served[key] = (chosen, prepared)
    return partial(prepared, tensors, addresses)


def _run_into(o: Tensor | None, final_state: Tensor | None, backend: Backend, call: Call) -> Result:
    results = backend.run(call)
    if o is not None:
        o.copy_(results[0])
    if final_state is not None and results[1] is not None:
        final_state.copy_(results[1])
    return results


def chunk_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Kimi Delta Attention: a matrix memory, corrected by the delta rule, forgetting per channel.

    Per sequence and value head, with S `[K,V]`: `S <- Diag(exp(g_t)) S`;
    `u = beta_t (v_t - S^T k_t)`; `S <- S + k_t u^T`; `o_t = scale S^T q_t`.

    Arguments (B batch, T tokens, H query/key heads, HV value heads, a multiple of H, K and V channels):
        q, k: `[B,T,H,K]`, one floating dtype for q, k, v; value head h uses q/k head h // (HV/H).
        v: `[B,T,HV,V]`.
        g: `[B,T,HV,K]`, natural-log decay per token, <= 0; raw logits with `use_gate_in_kernel`.
            q's dtype or fp32.
        beta: `[B,T,HV]`, write strength; logits with `use_beta_sigmoid_in_kernel`. q's dtype or fp32.
        scale: of the output; K^-0.5 by default.
        initial_state: `[N,HV,K,V]` fp32 (fp64 with fp64 q; bf16 where the backend serves it), zeros
            if None; N = B, or the number of sequences in cu_seqlens.
        output_final_state: return the states after the last token too.
        use_qk_l2norm_in_kernel: bring q and k to unit length first.
        use_gate_in_kernel: g is raw; decay = -exp(A_log) softplus(g + dt_bias), or, with
            `lower_bound`, lower_bound * sigmoid(exp(A_log) (g + dt_bias)).
        use_beta_sigmoid_in_kernel: beta is raw; `allow_neg_eigval` doubles its sigmoid.
        safe_gate: with `use_gate_in_kernel`, requires lower_bound in [-5, 0); without, the caller's
            promise that g >= -5.
        state_v_first: states are `[N,HV,V,K]`.
        cu_seqlens: `[N+1]` int32 or int64, B = 1: sequence n is tokens cu_seqlens[n] to
            cu_seqlens[n+1]; tokens past the last give o = 0.
        A_log, dt_bias: `[HV]`; `[HV,K]` or `[HV*K]`; fp32 (fp64 with fp64 q), only with
            `use_gate_in_kernel`.
        chunk_size: 16, 32 or 64; None lets the backend choose.
        backend: a name from `kda_lab.backends()`, or "auto".

    Returns o `[B,T,HV,V]` in v's dtype, and the final state or None.

    Raises ValueError or TypeError naming the argument; `ValueError: backend 'v2' cannot serve this
    call: ...` when a named backend declines.

    Source: Kimi Linear, arXiv 2510.26692; argument names of flash-linear-attention.
    """
    tensors = (q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state, None, None)
    options = (
        scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel,
        use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound, state_v_first,
        chunk_size, False,
    )  # fmt: skip
    return serve(tensors, options, backend)()


def fused_recurrent_kda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    safe_gate: bool = False,
    lower_bound: float | None = None,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """The same function as `chunk_kda`, token by token: for decoding, and for reading.

    Arguments, result and errors are those of `chunk_kda`, without `chunk_size`.
    """
    tensors = (q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state, None, None)
    options = (
        scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel,
        use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound, state_v_first, None, True,
    )  # fmt: skip
    return serve(tensors, options, backend)()
