"""A backend of flash-linear-attention's own dispatch: `register()`, and its KDA models run on our kernels.

    from kda_lab.integrations import fla
    fla.register()

Needs fla-core 0.6 (`fla.backends`), imported when `register` is called. A call that we decline goes on
to fla's own kernels; `logging.basicConfig(level=logging.INFO)` shows fla saying why, and so does
`refusal`. FLA_KDA_LAB=0 turns the backend off, as FLA_DISABLE_BACKEND_DISPATCH=1 does with all.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kda_lab.native.rungs import RUNGS
from kda_lab.ops import AUTO_CUDA, serve

# v1 would serve more, but slower than the kernels it would replace
FASTER = tuple(name for name in AUTO_CUDA if name in RUNGS and name != "v1")
_serving: tuple[str, ...] = ()  # backends that may serve; () is unregistered
_checked = (
    threading.local()
)  # .run: the call that fla's dispatch has just asked about in this thread


def register(backends: tuple[str, ...] = FASTER) -> None:
    """Makes fla ask us first for every `chunk_kda`; calling it again changes `backends`.

    backends: names from `kda_lab.backends()` that may serve, the first that can does; those that
        are faster than fla's own kernels by default.

    Raises ImportError without fla-core 0.6, and RuntimeError when FLA_DISABLE_BACKEND_DISPATCH=1.
    """
    global _serving
    try:
        import fla.backends
        from fla.ops.kda.chunk import chunk_kda
    except ImportError as error:
        raise ImportError(f"fla-core 0.6 or newer is needed: {error}") from error
    if fla.backends._DISPATCH_DISABLED:
        raise RuntimeError("FLA_DISABLE_BACKEND_DISPATCH=1 keeps fla from asking any backend")

    class KdaLab(fla.backends.BaseBackend):
        """KDA Lab's kernels, forward only."""

        backend_type = "kda_lab"
        env_var = "FLA_KDA_LAB"
        priority = 2  # FlashKDA has 3; lower is asked first

        @classmethod
        def is_available(cls) -> bool:
            return bool(_serving)

        def chunk_kda_verifier(self, *args, **kwargs) -> tuple[bool, str | None]:
            try:
                _checked.run = ready(*args, **kwargs)
            except (TypeError, ValueError) as reason:
                return False, str(reason)
            return True, None

        def chunk_kda(self, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
            run, _checked.run = _checked.run, None
            return run()

    fla.backends.register(chunk_kda)(KdaLab)
    _serving = tuple(backends)


def unregister() -> None:
    """Makes fla ask us no longer (it has no removal of its own: the backend says that it is not there)."""
    global _serving
    _serving = ()


def ready(
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
    disable_recompute: bool = False,
    return_intermediate_states: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    cp_context: Any = None,
    use_graph: bool = False,
    max_num_seqs: int | None = None,
    *,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    chunk_size: int = 64,
    **others,
) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """A call of fla's `chunk_kda`, ready to run here; raises ValueError or TypeError with what we decline.

    What changes speed and not the answer is left to our kernels: chunk_size, disable_recompute,
    cu_seqlens_cpu, and use_graph with max_num_seqs (ours are captured as they are, and empty
    sequences at the end cost nothing).
    """
    for name in others:
        raise ValueError(f"{name} is not served")
    if cp_context is not None:
        raise ValueError("cp_context is not served: sequences are whole on one GPU")
    if return_intermediate_states:
        raise ValueError("return_intermediate_states is not served: no kernel here stores them")
    if chunk_size not in (32, 64):
        raise ValueError(f"chunk_size is {chunk_size}, which fla refuses")
    if isinstance(initial_state, Tensor) and initial_state.dtype != torch.float32:
        raise ValueError(f"initial_state has dtype {initial_state.dtype}, which fla refuses")
    if not use_gate_in_kernel:  # fla ignores them then
        A_log = dt_bias = None
    if A_log is not None and A_log.dim() != 1:
        A_log = A_log.reshape(-1)
    if dt_bias is not None and dt_bias.dim() != 1:
        dt_bias = dt_bias.reshape(-1)
    tensors = (q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state, None, None)
    options = (
        scale, output_final_state, use_qk_l2norm_in_kernel, use_gate_in_kernel,
        use_beta_sigmoid_in_kernel, allow_neg_eigval, safe_gate, lower_bound, state_v_first, None, False,
    )  # fmt: skip
    return serve(tensors, options, _serving)


def refusal(**arguments) -> str | None:
    """Why this call of fla's `chunk_kda` would go on to fla's own kernels; None if we serve it."""
    try:
        ready(**arguments)
    except (TypeError, ValueError) as reason:
        return str(reason)
    return None
