"""From a checked `Call` to the C ABI and back: arguments, workspace, stream, output.

Nothing here waits for the GPU, and no tensor's values are looked at.
"""

from functools import lru_cache, partial
from types import ModuleType

import torch
from torch import Tensor

from kda_lab.backend import Backend
from kda_lab.inputs import SAFE_BOUND, Call
from kda_lab.native import build, toolchain
from kda_lab.native.rungs import RUNGS, Rung

DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # kda_dtype
GATE_KINDS = {
    "log": 0,
    "log_bounded": 1,
    "softplus": 2,
    "sigmoid": 3,
    "sigmoid_wide": 3,
}  # kda_gate
WORKSPACE_ALIGNMENT = 256
_broken: dict[str, str] = {}  # rungs that failed to build or load in this process, and why


@lru_cache
def binding() -> ModuleType:
    """The pybind11 module, compiled for this Python on first use. Raises toolchain.Unbuildable."""
    return build.import_module("kda_lab.native._binding", build.binding_library())


@lru_cache
def load(name: str):
    """A rung's library behind the binding, compiled on first use. Raises toolchain.Unbuildable."""
    module = binding()
    return module.load(str(build.library(RUNGS[name])), name)


def gate_kind(call: Call) -> str:
    """Which of `rungs.GATES` a call brings."""
    if not call.use_gate_in_kernel:
        return "log_bounded" if call.safe_gate else "log"
    if call.lower_bound is None:
        return "softplus"
    return "sigmoid" if call.lower_bound >= SAFE_BOUND else "sigmoid_wide"


@lru_cache
def unavailable(rung: Rung) -> str | None:
    """None if the rung can run on this machine, else the reason; compiles nothing."""
    if rung.cuda:
        arch = toolchain.gpu_arch()
        if arch is None:
            return "no CUDA GPU here (or a CPU build of PyTorch)"
        if not rung.runs_on(arch):
            wanted = " or ".join("sm_" + a for a in rung.architectures)
            return f"it is for {wanted}, this GPU is sm_{arch}"
    return build.why_not(rung)


def declines(rung: Rung, call: Call) -> str | None:
    """None if the rung serves the call exactly, else why not: by its row, then by its library."""
    if rung.name in _broken:
        return _broken[rung.name]
    dtype = str(call.q.dtype).removeprefix("torch.")
    if dtype not in rung.inputs:
        return f"it takes {' or '.join(rung.inputs)} inputs, not {dtype}"
    if rung.shapes and (call.K, call.V) not in rung.shapes:
        shapes = ", ".join(f"({K}, {V})" for K, V in rung.shapes)
        return f"it serves (K, V) of {shapes}, not ({call.K}, {call.V})"
    if (gate := gate_kind(call)) not in rung.gates:
        return _gate_refusal(rung, gate)
    state = str(call.state_dtype).removeprefix("torch.")
    if (call.initial_state is not None or call.output_final_state) and state not in rung.states:
        return f"it keeps states in {' or '.join(rung.states)}, not {state}"
    try:
        library = load(rung.name)
    except (toolchain.Unbuildable, RuntimeError, ImportError) as reason:
        _broken[rung.name] = str(reason)
        return str(reason)
    return library.declines(_Arguments(call).args)


def _gate_refusal(rung: Rung, gate: str) -> str:
    if gate == "log" and "log_bounded" in rung.gates:
        return "it needs the promise that g >= -5: pass safe_gate=True if that holds"
    if gate == "sigmoid_wide":
        return "it serves lower_bound in [-5, 0) only"
    if gate == "softplus":
        return "the softplus gate has no lower bound, and it serves bounded gates only"
    return f"it does not serve the {gate} gate"


def _stream(device: int) -> int:
    """The current cudaStream_t of a device; torch.cuda.current_stream() is thirty times as slow."""
    return torch._C._cuda_getCurrentRawStream(device)


class _Arguments:
    """kda_args of a call, and the tensors that its pointers point into.

    Until the outputs are allocated, o and the final state stand at v's and q's address: `declines`
    looks at pointers only for NULL and alignment.
    """

    def __init__(self, call: Call):
        self.keep: list[Tensor] = []
        q, v = call.q, call.v
        cu_seqlens, state = call.cu_seqlens, call.initial_state
        raw_gate = call.use_gate_in_kernel
        o = self.tensor(v)
        self.args = binding().Args(
            (
                *q.shape,
                *v.shape[2:],
                call.N,
                *self.tensor(q),
                *self.tensor(call.k),
                *o,
                *self.tensor(call.g),
                *self.tensor(call.beta),
                GATE_KINDS[gate_kind(call)],
                self.address(call.A_log) if raw_gate else 0,
                self.address(call.dt_bias) if raw_gate else 0,
                call.lower_bound or 0.0,
                (1 + call.allow_neg_eigval) if call.use_beta_sigmoid_in_kernel else 0,
                call.use_qk_l2norm_in_kernel,
                call.scale,
                0 if cu_seqlens is None else 8 * cu_seqlens.element_size(),
                self.address(cu_seqlens),
                self.address(state),
                DTYPES.get(call.state_dtype, 0),
                call.state_v_first,
                _stream(q.device.index) if q.is_cuda else 0,
                0 if q.is_cuda else torch.get_num_threads(),
            )
        )
        self.args.o = o
        if call.output_final_state:
            self.args.final_state = q.data_ptr()

    def tensor(self, x: Tensor) -> tuple[int, ...]:
        """Address, strides of batch, token, head, dtype; copied unless channels are adjacent."""
        strides = x.stride()
        if strides[-1] != 1 and len(strides) == 4 and x.shape[3] != 1:
            x = x.contiguous()
            self.keep.append(x)
            strides = x.stride()
        return x.data_ptr(), *strides[:3], DTYPES[x.dtype]

    def address(self, x: Tensor | None) -> int:
        if x is None:
            return 0
        if not x.is_contiguous():
            x = x.contiguous()
            self.keep.append(x)
        return x.data_ptr()


def _forward(rung: Rung, arguments: _Arguments, device: torch.device) -> None:
    library, args = load(rung.name), arguments.args
    if size := library.workspace_bytes(args):
        # from PyTorch's own cache: reused in stream order, and kept by a graph that captured it
        space = torch.empty(size + WORKSPACE_ALIGNMENT, dtype=torch.uint8, device=device)
        address = space.data_ptr()
        args.workspace = address + -address % WORKSPACE_ALIGNMENT
        args.workspace_bytes = size
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            library.forward(args)
    else:
        library.forward(args)


class Prepared:
    """A rung ready for every call that differs from one in addresses only.

    Same shapes, dtypes, device, options, contiguous where that call was and with its strides where it
    was not, and aligned alike (`kda_lab.ops` sees to that): what is left is the memory and the launch.
    """

    def __init__(self, rung: Rung, call: Call, arguments: _Arguments):
        self.library, self.args = load(rung.name), arguments.args
        self.workspace_bytes = self.library.workspace_bytes(self.args)
        self.args.workspace_bytes = self.workspace_bytes
        _, T, HV, V = call.v.shape
        self.args.o = (0, T * HV * V, HV * V, V, DTYPES[call.v.dtype])
        axes = (call.V, call.K) if call.state_v_first else (call.K, call.V)
        self.state_shape = (call.N, call.HV, *axes) if call.output_final_state else None
        self.state_dtype = call.state_dtype
        self.device: int = call.q.get_device()  # -1: CPU
        self.only_device = self.device < 0 or torch.cuda.device_count() == 1

    def __call__(
        self, tensors: tuple[Tensor | None, ...], addresses: list[int]
    ) -> tuple[Tensor, Tensor | None]:
        """o `[B,T,HV,V]`, and the final state or None.

        tensors: q, k, v, g, beta, A_log, dt_bias, cu_seqlens, initial_state, and contiguous o and
            final_state to write, or None for new ones. addresses: theirs, 0 for None.
        """
        v, initial_state, o, final_state = tensors[2], *tensors[8:]
        assert v is not None
        if o is None:
            o = torch.empty_like(v, memory_format=torch.contiguous_format)
            addresses[9] = o.data_ptr()
        if final_state is None and self.state_shape is not None:
            if initial_state is None:
                final_state = v.new_empty(self.state_shape, dtype=self.state_dtype)
            else:
                final_state = torch.empty_like(initial_state)
            addresses[10] = final_state.data_ptr()
        address = 0
        if self.workspace_bytes:  # as in _forward; `space` must live until the launch
            space = v.new_empty(self.workspace_bytes + WORKSPACE_ALIGNMENT, dtype=torch.uint8)
            address = space.data_ptr()
            address += -address % WORKSPACE_ALIGNMENT
        stream = 0 if self.device < 0 else _stream(self.device)
        if self.only_device or self.device == torch.cuda.current_device():
            self.library.forward_again(self.args, (*addresses, address, stream))
        else:
            with torch.cuda.device(self.device):
                self.library.forward_again(self.args, (*addresses, address, stream))
        return o, final_state


def prepare(rung: Rung, call: Call) -> Prepared | None:
    """The rung ready for calls like this one, which it does not decline; None if each needs more than a launch."""
    if call.N == 0:
        return None
    arguments = _Arguments(call)
    return None if arguments.keep else Prepared(rung, call, arguments)


def workspace_bytes(rung: Rung | str, call: Call) -> int:
    """Scratch bytes that a rung asks for to serve `call`."""
    name = rung if isinstance(rung, str) else rung.name
    return load(name).workspace_bytes(_Arguments(call).args)


def run(rung: Rung, call: Call) -> tuple[Tensor, Tensor | None]:
    """A call that the rung does not decline: o `[B,T,HV,V]`, and the final state or None."""
    arguments = _Arguments(call)
    args = arguments.args
    o = torch.empty(call.v.shape, dtype=call.v.dtype, device=call.v.device)
    args.o = arguments.tensor(o)
    final_state = None
    if call.output_final_state:
        axes = (call.V, call.K) if call.state_v_first else (call.K, call.V)
        final_state = torch.empty(
            (call.N, call.HV, *axes), dtype=call.state_dtype, device=call.v.device
        )
        args.final_state = final_state.data_ptr()
    if call.N > 0:  # a grid of no blocks is an error to CUDA
        _forward(rung, arguments, call.q.device)
    return o, final_state


def run_in_place(
    rung: Rung | str, call: Call, state: Tensor, state_indices: Tensor | None = None
) -> Tensor:
    """Advances cached states in place, as decoding does; returns o `[B,T,HV,V]`.

    state: `[slots,HV,K,V]` (`[slots,HV,V,K]` with the call's state_v_first), contiguous, fp32 or
        bf16; sequence n reads and writes slot n, or slot state_indices[n].
    state_indices: `[N]` int32 on the same device; a negative index skips the sequence: its o rows
        are left as zeros and no slot is touched. The values are the caller's responsibility; on
        the device they are kept from leaving the buffer.

    The call carries neither an initial state nor `output_final_state`. Raises ValueError or
    TypeError naming the argument, and ValueError when the rung declines.
    """
    rung = RUNGS[rung] if isinstance(rung, str) else rung
    if call.initial_state is not None or call.output_final_state:
        raise ValueError(
            "initial_state and output_final_state must be unset: state is both, in place"
        )
    axes = (call.V, call.K) if call.state_v_first else (call.K, call.V)
    if state.dim() != 4 or tuple(state.shape[1:]) != (call.HV, *axes):
        letters = "[slots,HV,V,K] (state_v_first)" if call.state_v_first else "[slots,HV,K,V]"
        raise ValueError(
            f"state has shape {list(state.shape)}; it must be {letters} = "
            f"[slots, {call.HV}, {axes[0]}, {axes[1]}]"
        )
    if str(state.dtype).removeprefix("torch.") not in rung.states:
        raise TypeError(f"state has dtype {state.dtype}; it must be {' or '.join(rung.states)}")
    if state.device != call.q.device:
        raise ValueError(f"state is on {state.device}; it must be on q's device, {call.q.device}")
    if not state.is_contiguous():
        raise ValueError("state must be contiguous: it is written in place")
    if state_indices is None:
        if state.shape[0] != call.N:
            raise ValueError(
                f"state has {state.shape[0]} slots; without state_indices it must have N = {call.N}"
            )
    elif state_indices.dtype != torch.int32:
        raise TypeError(f"state_indices has dtype {state_indices.dtype}; it must be int32")
    elif tuple(state_indices.shape) != (call.N,) or state_indices.device != call.q.device:
        raise ValueError(
            f"state_indices has shape {list(state_indices.shape)} on {state_indices.device}; "
            f"it must be [N] = [{call.N}] on {call.q.device}"
        )
    reason = unavailable(rung) or declines(rung, call)
    if reason:
        raise ValueError(f"backend {rung.name!r} cannot serve this call: {reason}")
    arguments = _Arguments(call)
    args = arguments.args
    make = torch.empty if state_indices is None else torch.zeros
    o = make(call.v.shape, dtype=call.v.dtype, device=call.v.device)
    args.o = arguments.tensor(o)
    args.initial_state = args.final_state = state.data_ptr()
    args.state_dtype = DTYPES[state.dtype]
    if state_indices is not None:
        args.state_indices = arguments.address(state_indices)
        args.state_slots = state.shape[0]
    _forward(rung, arguments, call.q.device)
    return o


def backend(rung: Rung) -> Backend:
    """The rung as an implementation of the contract."""
    return Backend(
        rung.name,
        rung.idea,
        run=partial(run, rung),
        unavailable=partial(unavailable, rung),
        declines=partial(declines, rung),
        devices=("cuda",) if rung.cuda else ("cpu",),
        prepare=partial(prepare, rung),
    )
