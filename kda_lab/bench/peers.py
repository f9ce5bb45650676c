"""The public implementations a user would pick instead, called with our inputs.

Each maker takes a workload and `workloads.make_inputs` and returns the call to time: one run over
the same tensors, fp32 states in and out. It raises ImportError where the package is missing.
"""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kda_lab import chunked
from kda_lab.bench.workloads import LOWER_BOUND, D, Inputs, Workload, call_arguments
from kda_lab.gates import activate
from kda_lab.inputs import Call, check_call

os.environ.setdefault(
    "FLA_FLASH_KDA", "0"
)  # fla's own kernels, not another backend behind its name

Work = Callable[[], object]


def fla(w: Workload, x: Inputs) -> Work:
    """flash-linear-attention: chunk_kda, or fused_recurrent_kda for decode (Triton)."""
    from fla.ops.kda import chunk_kda, fused_recurrent_kda

    shared = dict(
        initial_state=x["h0"], output_final_state=True, use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True, A_log=x["A_log"],
        dt_bias=x["dt_bias"].reshape(-1), lower_bound=LOWER_BOUND, state_v_first=True,
    )  # fmt: skip
    tensors = [x[name] for name in ("q", "k", "v", "g", "beta")]
    if w.direction == "decode":
        return lambda: fused_recurrent_kda(*tensors, **shared)
    cu = x["cu"] if w.N > 1 else None
    return lambda: chunk_kda(*tensors, **shared, safe_gate=True, cu_seqlens=cu)


def flash_kda(w: Workload, x: Inputs) -> Work:
    """FlashKDA: CUTLASS kernels of the authors of KDA; forward only."""
    if w.direction != "forward":
        raise ValueError("FlashKDA has no decode")
    from flash_kda import fwd

    o, final_state = torch.empty_like(x["v"]), torch.empty_like(x["h0"])
    packed = {"cu_seqlens": x["cu"]} if w.N > 1 else {}
    tensors = [x[name] for name in ("q", "k", "v", "g", "beta")]
    return lambda: fwd(
        *tensors, D**-0.5, o, A_log=x["A_log"], dt_bias=x["dt_bias"], lower_bound=LOWER_BOUND,
        initial_state=x["h0"], final_state=final_state, **packed,
    )  # fmt: skip


def _cudnn(w: Workload, x: Inputs, g: Tensor, beta: Tensor, **fused) -> Work:
    if w.direction != "forward":
        raise ValueError("cuDNN's plan is a prefill")
    from cudnn.linear_attention.ops import kimi_delta_attention

    q, k, v = (x[name][0].contiguous() for name in ("q", "k", "v"))
    cu = x["cu"].int()
    return lambda: kimi_delta_attention(
        q, k, v, g, beta, cu, initial_state=x["h0"], output_final_state=True,
        plan_name="kda_hopper_cuda", **fused,
    )  # fmt: skip


def cudnn_fused(w: Workload, x: Inputs) -> Work:
    """cuDNN's Hopper kernel with norm, gate and sigmoid inside the call, as a model uses it."""
    return _cudnn(
        w, x, x["g"][0].contiguous(), x["beta"][0].contiguous(), use_qk_l2norm_in_kernel=True,
        use_beta_sigmoid_in_kernel=True, safe_gate=True, gate_lower_bound=LOWER_BOUND,
        a_log=x["A_log"], dt_bias=x["dt_bias"],
    )  # fmt: skip


def cudnn_plain(w: Workload, x: Inputs) -> Work:
    """The same kernel on inputs activated outside the timing (fp32 log gate and beta, unit q and k)."""
    g = (LOWER_BOUND * torch.sigmoid(x["g"][0].float())).contiguous()
    return _cudnn(w, x, g, torch.sigmoid(x["beta"][0].float()).contiguous())


def torch_compile(w: Workload, x: Inputs) -> Work:
    """Compiled PyTorch: the library's own chunked form, products in TF32.

    What needs no state is one compiled function over all chunks, a chunk's step of the state
    another: unrolled into one, hundreds of steps would compile for many minutes.
    """
    if w.direction != "forward" or w.N > 1:
        raise ValueError("compiled PyTorch is timed on one sequence, forward")
    call = check_call(**call_arguments(w, x))
    device = call.q.device
    tokens, mask, _ = chunked.schedule(call.spans(), [0], chunked.DEFAULT_CHUNK)
    tokens, mask = tokens.to(device), mask.to(device)

    @partial(torch.compile, fullgraph=True, dynamic=False)
    def prepare(call: Call) -> list[Tensor]:
        part = chunked.prepare(activate(call, torch.float32), tokens, mask, bounded=True)
        return [part[n] for n in ("reads", "U0", "M", "k_out", "decay")]

    @partial(torch.compile, fullgraph=True, dynamic=False)
    def step(
        S: Tensor, reads: Tensor, U0: Tensor, M: Tensor, k_out: Tensor, decay: Tensor
    ) -> tuple:
        inside, outside = (reads @ S).chunk(2, -2)
        U = U0 - inside
        return outside + M @ U, decay * S + k_out.mT @ U

    def run() -> tuple[Tensor, Tensor | None]:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")  # TF32: what a user would ask for
        try:
            S, outputs = chunked.initial_states(call, torch.float32)[0], []
            for part in zip(*prepare(call), strict=True):
                o, S = step(S, *part)
                outputs.append(o)
            o = torch.cat(outputs, 1)[:, : call.T].transpose(0, 1)  # [T,HV,V]
            return o[None].to(call.v.dtype), chunked.final_states(call, S[None])
        finally:
            torch.set_float32_matmul_precision(precision)

    return run


PEERS: dict[str, Callable[[Workload, Inputs], Work]] = {
    "flash_kda": flash_kda, "cudnn_fused": cudnn_fused, "cudnn_plain": cudnn_plain, "fla": fla,
    "torch_compile": torch_compile,
}  # fmt: skip
ON_REQUEST = ("torch_compile",)  # compiles for longer than all others run: timed only when named
NO_GRAPH = ("fla",)  # timed eagerly in forward: its kernels are chosen while it runs


def versions() -> dict[str, str]:
    """Installed versions of the peers' packages."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("fla-core", "nvidia-cudnn-frontend", "flash_kda"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
