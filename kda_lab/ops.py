"""The public functions: check the call once, choose an implementation, hand over."""

from torch import Tensor

from kda_lab import chunked, native, recurrent, reference  # noqa: F401  (they register their backends)
from kda_lab.backend import BACKENDS, Backend
from kda_lab.inputs import Call, check_call

# Who is asked first by backend="auto"; the first that can serve a call gets it.
AUTO_CPU = ("cpu", "chunked")
AUTO_CUDA = ("v4", "v3", "v2", "v1", "chunked")
AUTO_RECURRENT = ("decode", "v1", "recurrent")


def backends() -> dict[str, str | None]:
    """Every implementation by name: None if it can run here, else the reason why it cannot."""
    return {name: backend.unavailable() for name, backend in BACKENDS.items()}


def choose(call: Call, backend: str) -> Backend:
    """The backend named, or the first of the `auto` order that serves the call."""
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a name or 'auto', not {backend!r}")
    if backend != "auto":
        if backend not in BACKENDS:
            names = ", ".join(["auto", *BACKENDS])
            raise ValueError(f"backend is {backend!r}; it must be one of {names}")
        reason = BACKENDS[backend].refusal(call)
        if reason:
            raise ValueError(f"backend {backend!r} cannot serve this call: {reason}")
        return BACKENDS[backend]
    order: tuple[str, ...]
    if call.recurrent:
        order = AUTO_RECURRENT
    else:
        order = AUTO_CPU if call.q.device.type == "cpu" else AUTO_CUDA
    served = (BACKENDS[n] for n in order if n in BACKENDS and not BACKENDS[n].refusal(call))
    return next(served)  # the last of each order takes every call


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
    call = check_call(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
        state_v_first, cu_seqlens, A_log, dt_bias, chunk_size,
    )  # fmt: skip
    return choose(call, backend).run(call)


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
    call = check_call(
        q, k, v, g, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel,
        use_gate_in_kernel, use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound,
        state_v_first, cu_seqlens, A_log, dt_bias, recurrent=True,
    )  # fmt: skip
    return choose(call, backend).run(call)
