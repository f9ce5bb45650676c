"""Checking a call once, before any implementation sees it."""

import math
import os
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

Default = TypeVar("Default", float, None)
CHUNK_SIZES = (16, 32, 64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SAFE_BOUND = -5.0  # the strongest log decay per token that a bounded-range kernel must survive


@dataclass(frozen=True)
class Call:
    """A checked call of `chunk_kda` or `fused_recurrent_kda`; gates, norm and sigmoid not yet applied.

    The fields are the arguments of those functions, with `scale` resolved to a number;
    `recurrent` is True for `fused_recurrent_kda`. Shapes and meanings: `kda_lab.chunk_kda`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor
    scale: float
    initial_state: Tensor | None = None
    output_final_state: bool = False
    use_qk_l2norm_in_kernel: bool = False
    use_gate_in_kernel: bool = False
    use_beta_sigmoid_in_kernel: bool = False
    allow_neg_eigval: bool = False
    safe_gate: bool = False
    lower_bound: float | None = None
    state_v_first: bool = False
    cu_seqlens: Tensor | None = None
    A_log: Tensor | None = None
    dt_bias: Tensor | None = None
    chunk_size: int | None = None
    recurrent: bool = False

    @property
    def B(self) -> int:
        return self.q.shape[0]

    @property
    def T(self) -> int:
        return self.q.shape[1]

    @property
    def H(self) -> int:
        return self.q.shape[2]

    @property
    def K(self) -> int:
        return self.q.shape[3]

    @property
    def HV(self) -> int:
        return self.v.shape[2]

    @property
    def V(self) -> int:
        return self.v.shape[3]

    @property
    def N(self) -> int:
        """Number of sequences: B, or what cu_seqlens delimits."""
        return self.B if self.cu_seqlens is None else self.cu_seqlens.numel() - 1

    @property
    def bounded(self) -> bool:
        """Whether the log decay is known to be at least -5 a token without looking at values."""
        if not self.use_gate_in_kernel:
            return self.safe_gate
        return self.lower_bound is not None and self.lower_bound >= SAFE_BOUND

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of the final state: the initial state's, else fp32 (fp64 with fp64 inputs)."""
        return state_dtype(self.q) if self.initial_state is None else self.initial_state.dtype

    @property
    def needs_grad(self) -> bool:
        """Whether autograd expects a graph from this call."""
        tensors = (self.q, self.k, self.v, self.g, self.beta, self.initial_state, self.A_log, self.dt_bias)
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

    def spans(self) -> list[tuple[int, int]]:
        """Start and end of every sequence in the flattened `[B*T]` tokens; reads cu_seqlens on the host.

        Offsets that `check_call` could not look at (CUDA) are brought into range here.
        """
        if self.cu_seqlens is None:
            return [(b * self.T, (b + 1) * self.T) for b in range(self.B)]
        spans, end = [], 0
        offsets = self.cu_seqlens.tolist()
        for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
            start = min(max(start, end, 0), self.T)
            end = min(max(stop, start), self.T)
            spans.append((start, end))
        return spans


def state_dtype(q: Tensor) -> torch.dtype:
    """The dtype of a state that belongs to inputs like `q`."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


# What os.environ wraps: its get() raises and catches when a name is unset, 2 us in every call.
_ENVIRONMENT: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]


def looks_at_values(q: Tensor) -> bool:
    """Whether a call's values are checked too, and not only its shapes, dtypes and devices."""
    return q.is_cpu or _ENVIRONMENT.get(b"KDA_LAB_CHECK") == b"1"


def check_call(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False,
    use_beta_sigmoid_in_kernel=False,
    allow_neg_eigval=False,
    safe_gate=False,
    lower_bound=None,
    state_v_first=False,
    cu_seqlens=None,
    A_log=None,
    dt_bias=None,
    chunk_size=None,
    recurrent=False,
) -> Call:
    """Checks every argument and returns the `Call`; raises ValueError or TypeError naming the argument.

    Shapes, dtypes and devices are always checked. Values (`cu_seqlens`, the sign of a log decay,
    the promise behind `safe_gate`) are checked on CPU, and on CUDA only with KDA_LAB_CHECK=1,
    because looking at them there would stall the stream.
    """
    flags = dict(
        output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel,
        use_gate_in_kernel=use_gate_in_kernel,
        use_beta_sigmoid_in_kernel=use_beta_sigmoid_in_kernel,
        allow_neg_eigval=allow_neg_eigval,
        safe_gate=safe_gate,
        state_v_first=state_v_first,
    )
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, not {flag!r}")
    for name, x in dict(q=q, k=k, v=v, g=g, beta=beta).items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(x).__name__}")
    tensors = dict(
        q=q, k=k, v=v, g=g, beta=beta, initial_state=initial_state, cu_seqlens=cu_seqlens,
        A_log=A_log, dt_bias=dt_bias,
    )  # fmt: skip
    for name, x in tensors.items():
        if isinstance(x, Tensor) and x.layout != torch.strided:
            raise TypeError(f"{name} has layout {x.layout}; it must be a dense tensor")
    _check_inputs(q, k, v, g, beta)
    call = Call(
        q, k, v, g, beta,
        scale=_number("scale", scale, q.shape[-1] ** -0.5),
        initial_state=initial_state,
        lower_bound=_number("lower_bound", lower_bound, None),
        cu_seqlens=cu_seqlens,
        A_log=A_log,
        dt_bias=dt_bias,
        chunk_size=chunk_size,
        recurrent=recurrent,
        **flags,
    )  # fmt: skip
    _check_gate(call)
    _check_chunk_size(chunk_size)
    _check_cu_seqlens(call)
    _check_state(call)
    if looks_at_values(q):
        _check_values(call)
    if call.dt_bias is not None:
        call = replace(call, dt_bias=call.dt_bias.reshape(call.HV, call.K))
    return call


def _number(name: str, x, default: Default) -> float | Default:
    if x is None:
        return default
    if isinstance(x, bool) or not isinstance(x, int | float):
        raise TypeError(f"{name} must be a number or None, not {x!r}")
    if not math.isfinite(x):
        raise ValueError(f"{name} must be finite, not {x}")
    return float(x)


def _shape(name: str, x: Tensor, want: tuple[int, ...], letters: str) -> None:
    if tuple(x.shape) != want:
        raise ValueError(f"{name} has shape {list(x.shape)}; it must be {letters} = {list(want)}")


def _device(name: str, x: Tensor, q: Tensor) -> None:
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device}; it must be on q's device, {q.device}")


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> None:
    if q.dtype not in FLOATS:
        raise TypeError(f"q has dtype {q.dtype}; it must be float16, bfloat16, float32 or float64")
    for name, x in (("q", q), ("v", v)):
        if x.dim() != 4:
            axes = "[B,T,H,K]" if name == "q" else "[B,T,HV,V]"
            raise ValueError(f"{name} has shape {list(x.shape)}; it must have four axes {axes}")
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    for name, size in (("q", H), ("q", K), ("v", HV), ("v", V)):
        if size == 0:
            x = q if name == "q" else v
            raise ValueError(f"{name} has shape {list(x.shape)}; heads and channels must not be 0")
    _shape("k", k, (B, T, H, K), "q's [B,T,H,K]")
    _shape("v", v, (B, T, HV, V), "[B,T,HV,V] with q's B and T")
    if HV % H:
        raise ValueError(f"v has {HV} heads; HV must be a multiple of q's H = {H}")
    _shape("g", g, (B, T, HV, K), "[B,T,HV,K]")
    _shape("beta", beta, (B, T, HV), "[B,T,HV]")
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"{name} has dtype {x.dtype}; it must be q's dtype, {q.dtype}")
    for name, x in (("g", g), ("beta", beta)):
        if x.dtype not in (q.dtype, torch.float32):
            raise TypeError(f"{name} has dtype {x.dtype}; it must be q's dtype, {q.dtype}, or float32")
    for name, x in (("k", k), ("v", v), ("g", g), ("beta", beta)):
        _device(name, x, q)


def _check_gate(call: Call) -> None:
    if call.allow_neg_eigval and not call.use_beta_sigmoid_in_kernel:
        raise ValueError(
            "allow_neg_eigval is True, which doubles the sigmoid of beta; "
            "it needs use_beta_sigmoid_in_kernel=True"
        )
    bound = call.lower_bound
    if bound is not None and bound >= 0:
        raise ValueError(f"lower_bound is {bound}; it must be negative")
    if call.safe_gate and call.use_gate_in_kernel:
        if bound is None:
            raise ValueError(
                "lower_bound is None; safe_gate with use_gate_in_kernel needs one in [-5, 0)"
            )
        if bound < SAFE_BOUND:
            raise ValueError(f"lower_bound is {bound}; with safe_gate it must be in [-5, 0)")
    parameters = (("A_log", call.A_log), ("dt_bias", call.dt_bias))
    for name, x in parameters:
        if x is None:
            continue
        if not call.use_gate_in_kernel:
            raise ValueError(
                f"{name} is given, but g is already a log decay; it must be None "
                "unless use_gate_in_kernel=True"
            )
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor or None, not {type(x).__name__}")
        want = state_dtype(call.q)
        if x.dtype != want:
            raise TypeError(f"{name} has dtype {x.dtype}; with q in {call.q.dtype} it must be {want}")
        _device(name, x, call.q)
    if not call.use_gate_in_kernel:
        return
    if call.A_log is None and bound is None:
        raise ValueError(
            "A_log is None; use_gate_in_kernel needs it [HV] unless lower_bound is given"
        )
    if call.A_log is not None:
        _shape("A_log", call.A_log, (call.HV,), "[HV]")
    if call.dt_bias is not None and call.dt_bias.dim() == 1:
        _shape("dt_bias", call.dt_bias, (call.HV * call.K,), "[HV,K] or [HV*K]")
    elif call.dt_bias is not None:
        _shape("dt_bias", call.dt_bias, (call.HV, call.K), "[HV,K] or [HV*K]")


def _check_chunk_size(chunk_size) -> None:
    if chunk_size is None:
        return
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size must be 16, 32, 64 or None, not {chunk_size!r}")
    if chunk_size not in CHUNK_SIZES:
        raise ValueError(f"chunk_size is {chunk_size}; it must be 16, 32, 64 or None")


def _check_cu_seqlens(call: Call) -> None:
    cu = call.cu_seqlens
    if cu is None:
        return
    if not isinstance(cu, Tensor):
        raise TypeError(f"cu_seqlens must be a torch.Tensor or None, not {type(cu).__name__}")
    if cu.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens has dtype {cu.dtype}; it must be int32 or int64")
    if cu.dim() != 1 or cu.numel() < 2:
        raise ValueError(f"cu_seqlens has shape {list(cu.shape)}; it must be [N+1] with N >= 1")
    if call.B != 1:
        raise ValueError(
            f"cu_seqlens needs sequences packed along T with B = 1; q has B = {call.B}"
        )
    _device("cu_seqlens", cu, call.q)


def _check_state(call: Call) -> None:
    state = call.initial_state
    if state is None:
        return
    if not isinstance(state, Tensor):
        raise TypeError(f"initial_state must be a torch.Tensor or None, not {type(state).__name__}")
    want = state_dtype(call.q)
    allowed = (want,) if want == torch.float64 else (want, torch.bfloat16)
    if state.dtype not in allowed:
        names = " or ".join(str(d) for d in allowed)
        raise TypeError(
            f"initial_state has dtype {state.dtype}; with q in {call.q.dtype} it must be {names}"
        )
    axes = (call.V, call.K) if call.state_v_first else (call.K, call.V)
    letters = "[N,HV,V,K] (state_v_first)" if call.state_v_first else "[N,HV,K,V]"
    _shape("initial_state", state, (call.N, call.HV, *axes), letters)
    _device("initial_state", state, call.q)


def _check_values(call: Call) -> None:
    end = call.T
    if call.cu_seqlens is not None:
        offsets = call.cu_seqlens.tolist()
        if offsets[0] != 0:
            raise ValueError(f"cu_seqlens starts at {offsets[0]}; it must start at 0")
        for n, (a, b) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
            if b < a:
                raise ValueError(
                    f"cu_seqlens falls from {a} to {b} at sequence {n}; it must never decrease"
                )
        end = offsets[-1]
        if end > call.T:
            raise ValueError(f"cu_seqlens ends at {end}; it must not pass T = {call.T}")
    g = call.g.detach()[:, :end]
    if call.use_gate_in_kernel or g.numel() == 0:
        return
    low, high = (x.item() for x in torch.aminmax(g))
    if not high <= 0:
        raise ValueError(f"g reaches {high}; a log decay must be <= 0 (raw logits need use_gate_in_kernel)")
    if call.safe_gate and not low >= SAFE_BOUND:
        raise ValueError(f"g reaches {low}, but safe_gate promises g >= -5")
