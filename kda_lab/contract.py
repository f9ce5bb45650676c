"""The contract as cases: inputs of every kind, and the verdict on any implementation of them.

`cases()` yields named calls; `judge()` runs one on a backend and compares it with the fp64 oracle by
the contract's accuracy table. `tests/contract` puts every backend that can run here through them, so
a new implementation only has to register. `kda-lab gpu-check` has a suite of its own on top, for what
only a GPU can get wrong (`kda_lab.bench.suite`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from kda_lab.backend import BACKENDS
from kda_lab.inputs import Call, check_call
from kda_lab.reference import run_fp64

BOUNDED_KINDS = ("strong", "weak", "long", "minus5", "zero", "alternating", "mixture")
UNBOUNDED_KINDS = ("minus30", "minus_inf", "spread", "softplus")
GATE_KINDS = (*BOUNDED_KINDS, *UNBOUNDED_KINDS)
LOGIT_MEAN = {"strong": 0.5, "weak": -5.5, "long": -8.5}

PYTORCH = ("reference", "recurrent", "chunked")
TOKEN_RUNGS = ("v0", "v1", "decode")  # CUDA rungs that compute in fp32, token by token


def gate_inputs(kind: str, rng: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> dict:
    """g `[B,T,HV,K]` of one gate kind, with the flags and parameters that make sense of it."""
    HV, K = shape[-2:]
    fp = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size: int, to: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=rng, dtype=torch.float64).to(to)

    if kind in LOGIT_MEAN:
        return dict(
            g=(normal(*shape) + LOGIT_MEAN[kind]).to(dtype), use_gate_in_kernel=True, safe_gate=True,
            lower_bound=-5.0, A_log=0.1 * normal(HV, to=fp), dt_bias=0.1 * normal(HV, K, to=fp),
        )  # fmt: skip
    if kind == "softplus":
        return dict(
            g=normal(*shape), use_gate_in_kernel=True, A_log=normal(HV, to=fp),
            dt_bias=normal(HV * K, to=fp),
        )  # fmt: skip
    noise = normal(*shape, to=torch.float64)
    even = (torch.arange(shape[1]) % 2 == 0)[None, :, None, None]
    g = {
        "minus5": torch.full(shape, -5.0),
        "zero": torch.zeros(shape),
        "alternating": torch.zeros(shape).masked_fill(~even, -5.0),
        "mixture": -(10 ** (-4 + 4.69897 * torch.linspace(0, 1, K).expand(shape))).clamp(max=5),
        "minus30": torch.full(shape, -30.0),
        "minus_inf": (-noise.abs()).masked_fill(noise > 0.8, -torch.inf),
        "spread": -(10 ** (noise - 0.5)),
    }[kind]
    return dict(g=g.to(dtype), safe_gate=kind in BOUNDED_KINDS)


def make_call(
    kind: str,
    dtype: torch.dtype,
    lengths: tuple[int, ...] = (75,),
    B: int = 1,
    packed: bool = False,
    spare: int = 0,
    H: int = 2,
    HV: int = 4,
    K: int = 24,
    V: int = 20,
    state: bool = True,
    state_v_first: bool = False,
    index_dtype: torch.dtype = torch.int64,
    chunk_size: int | None = None,
    keys: str = "random",
    beta_max: float = 2.0,
    activate_inside: bool = False,
    seed: int = 0,
) -> dict:
    """Keyword arguments of `chunk_kda`: seeded, on CPU. `packed` puts `lengths` behind cu_seqlens.

    `spare` tokens after the last sequence hold NaN: they belong to nobody and must not be read.
    `keys` is "random", "identical" or "zero". With `activate_inside`, q and k have any length and
    beta holds logits, to be normalised and squashed inside the call.
    """
    rng = torch.Generator().manual_seed(seed)
    T = sum(lengths) + spare if packed else lengths[0]
    N = len(lengths) if packed else B
    fp = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=rng, dtype=torch.float64)

    q, k = normal(B, T, H, K), normal(B, T, H, K)
    if keys == "identical":
        k = k[:, :1].expand_as(k).clone()
    elif keys == "zero":
        k = k.masked_fill((torch.arange(T) % 3 == 0)[:, None, None], 0)
    beta = beta_max * torch.rand((B, T, HV), generator=rng, dtype=torch.float64)
    if keys == "identical":
        beta = 0.9997 + 0 * beta
    if activate_inside:
        beta = torch.logit((beta / beta_max).clamp(1e-4, 1 - 1e-4))
    else:
        q, k = (F.normalize(x, dim=-1) for x in (q, k))
    arguments = dict(
        q=q.to(dtype), k=k.to(dtype), v=normal(B, T, HV, V).to(dtype), beta=beta.to(dtype),
        **gate_inputs(kind, rng, (B, T, HV, K), dtype), output_final_state=True,
        state_v_first=state_v_first, use_qk_l2norm_in_kernel=activate_inside,
        use_beta_sigmoid_in_kernel=activate_inside,
        allow_neg_eigval=activate_inside and beta_max > 1, chunk_size=chunk_size,
    )  # fmt: skip
    if packed:
        ends = torch.tensor([0, *lengths]).cumsum(0)
        arguments["cu_seqlens"] = ends.to(index_dtype)
        if spare:
            for name in ("q", "k", "v", "g", "beta"):
                arguments[name][:, -spare:] = torch.nan
    if state:
        axes = (V, K) if state_v_first else (K, V)
        arguments["initial_state"] = normal(N, HV, *axes).to(fp)
    return arguments


@dataclass(frozen=True)
class Case:
    """One call of the contract: `options` of `make_call`, under a name that says what it exposes."""

    name: str
    options: dict = field(default_factory=dict)

    def arguments(self, dtype: torch.dtype, K: int, V: int, seed: int = 0) -> dict:
        return make_call(**{"dtype": dtype, "K": K, "V": V, "seed": seed, **self.options})


RAGGED = (1, 15, 0, 16, 17, 31, 0, 0, 33)
EDGES = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)


def cases() -> Iterator[Case]:
    """Every case of the contract that any implementation must serve or decline."""
    for kind in GATE_KINDS:
        yield Case(f"gate {kind}", dict(kind=kind, lengths=(75,), B=2))
        yield Case(f"gate {kind}, packed", dict(kind=kind, lengths=RAGGED, packed=True, spare=3))
    for T in EDGES:
        yield Case(f"T = {T}", dict(kind="strong", lengths=(T,), H=1, HV=1))
    for size in (16, 32, 64):
        yield Case(f"chunk_size {size}", dict(kind="weak", lengths=(100,), chunk_size=size))
        yield Case(f"chunk_size {size}, -5", dict(kind="minus5", lengths=(100,), chunk_size=size))
        yield Case(f"chunk_size {size}, -inf", dict(kind="minus_inf", lengths=(100,), chunk_size=size))
    yield Case("T = 0", dict(kind="weak", lengths=(0,), B=2))
    yield Case("no initial state", dict(kind="weak", lengths=(40,), state=False))
    yield Case("state V first", dict(kind="weak", lengths=(40,), state_v_first=True))
    yield Case(
        "int32 offsets", dict(kind="weak", lengths=RAGGED, packed=True, index_dtype=torch.int32)
    )
    yield Case("empty first and last", dict(kind="long", lengths=(0, 0, 20, 0), packed=True))
    yield Case("all sequences empty", dict(kind="weak", lengths=(0, 0, 0), packed=True, spare=5))
    yield Case(
        "all empty, V first, no state",
        dict(kind="weak", lengths=(0, 0), packed=True, spare=2, state=False, state_v_first=True),
    )
    for HV in (2, 4, 8):
        yield Case(f"GVA {HV // 2}", dict(kind="weak", lengths=(33,), H=2, HV=HV))
    yield Case("identical keys, beta near 1", dict(kind="long", lengths=(200,), keys="identical"))
    yield Case("zero keys", dict(kind="weak", lengths=(50,), keys="zero"))
    for kind in ("strong", "long"):
        yield Case(
            f"norm and sigmoid inside, {kind}",
            dict(kind=kind, lengths=(70,), activate_inside=True, beta_max=1.0),
        )
    yield Case(
        "negative eigenvalues inside",
        dict(kind="weak", lengths=RAGGED, packed=True, activate_inside=True, beta_max=2.0),
    )
    yield Case(
        "zero keys, norm inside",
        dict(kind="weak", lengths=(50,), keys="zero", activate_inside=True, beta_max=1.0),
    )


def tolerances(backend: str, case: Case, dtype: torch.dtype) -> tuple[float, float]:
    """The contract's bounds on the relative L2 error of o and of the final state."""
    if dtype == torch.float64:
        return 1e-12, 1e-12
    if dtype == torch.float32:
        return 1e-5, 1e-5
    if backend in (*PYTORCH, "cpu"):
        return 6e-3, 6e-3
    if backend in TOKEN_RUNGS:
        return 6e-3, 1e-5
    return (3e-2, 3e-2) if case.options.get("keys") == "identical" else (6e-3, 6e-3)


def relative(got: Tensor, want: Tensor) -> float:
    """Relative L2 distance; NaN anywhere gives inf."""
    got, want = got.double(), want.double()
    error = (got - want).norm() / want.norm().clamp_min(1e-30)
    return torch.inf if torch.isnan(error) else error.item()


@dataclass(frozen=True)
class Verdict:
    """What became of one case: declined with a reason, or the errors and what is wrong with them."""

    case: str
    declined: str | None = None
    error_o: float = 0.0
    error_state: float = 0.0
    problem: str | None = None


def _to(x, device: str):
    return x.to(device) if isinstance(x, Tensor) else x


def judge(
    backend: str, case: Case, dtype: torch.dtype, K: int = 24, V: int = 20, device: str = "cpu", seed: int = 0
) -> Verdict:
    """Runs a case on a backend and compares o and every sequence's state with the oracle."""
    arguments = case.arguments(dtype, K, V, seed)
    gold_o, gold_state = run_fp64(check_call(**arguments))
    moved = {name: _to(x, device) for name, x in arguments.items()}
    before = {name: x.clone() for name, x in moved.items() if isinstance(x, Tensor)}
    call: Call = check_call(**moved)
    refusal = BACKENDS[backend].refusal(call)
    if refusal:
        return Verdict(case.name, declined=refusal)
    o, state = BACKENDS[backend].run(call)
    if state is None:
        return Verdict(case.name, problem="no final state although it was asked for")
    problems = [
        f"{name} has {what} {got}; it must be {want}"
        for name, what, got, want in (
            ("o", "dtype", o.dtype, call.v.dtype),
            ("o", "shape", tuple(o.shape), tuple(gold_o.shape)),
            ("final_state", "dtype", state.dtype, call.state_dtype),
            ("final_state", "shape", tuple(state.shape), tuple(gold_state.shape)),
        )
        if got != want
    ]
    problems += [
        f"{name} was changed by the call"
        for name, x in before.items()
        if not torch.equal(x.nan_to_num(123.0), moved[name].nan_to_num(123.0))
    ]
    if problems:
        return Verdict(case.name, problem="; ".join(problems))
    o, state = o.cpu(), state.cpu()
    error_o = relative(o, gold_o)
    error_state = max((relative(a, b) for a, b in zip(state, gold_state, strict=True)), default=0.0)
    bound_o, bound_state = tolerances(backend, case, dtype)
    if not error_o <= bound_o:
        problems.append(f"o is off by {error_o:.2e}; allowed {bound_o:.0e}")
    if not error_state <= bound_state:
        problems.append(f"final_state is off by {error_state:.2e}; allowed {bound_state:.0e}")
    return Verdict(case.name, None, error_o, error_state, "; ".join(problems) or None)
