"""The correctness suite of a rung: what `kda-lab gpu-check` runs on a GPU, case by case.

Every call goes through the public functions with its outputs and workspaces poisoned with NaN and
fenced, its inputs copied between fences of NaN, and its answer compared with the fp64 recurrence.
The same cases run on CPU tensors for the PyTorch implementations, which is how the suite is tested.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import kda_lab
from kda_lab.bench.gold import gold, relative_l2, sample
from kda_lab.inputs import check_call
from kda_lab.native.call import run_in_place
from kda_lab.native.rungs import RUNGS

FENCE = 4096  # bytes on either side of every buffer
POISON = 0xFF  # all bits set: NaN in bf16, fp16 and fp32, -1 in integers
FP32_ARITHMETIC = ("v0", "v1", "decode")
PYTORCH = ("reference", "recurrent", "chunked", "cpu")


class CheckFailed(Exception):
    """A case did not hold; the text says what was found."""


class NotRun(Exception):
    """A case could not be run here; the text says why. It never counts as passed."""


class Declined(Exception):
    """The rung declined a call that it is allowed to decline; the text is its reason."""


# ---------------------------------------------------------------- fences and poison


def fence(x: Tensor) -> tuple[Tensor, Tensor]:
    """A poisoned tensor of x's shape, strides and dtype between fences, and the buffer that holds it all."""
    size = x.untyped_storage().nbytes()
    room = -(-size // 256) * 256
    buffer = torch.full((room + 2 * FENCE,), POISON, dtype=torch.uint8, device=x.device)
    inside = torch.empty(0, dtype=x.dtype, device=x.device).set_(
        buffer.untyped_storage(),
        FENCE // x.element_size() + x.storage_offset(),
        x.shape,
        x.stride(),
    )
    return inside, buffer


class Guarded(TorchFunctionMode):
    """Inside it every `torch.empty` on `device` is poisoned and fenced; `intact()` looks at the fences."""

    ALLOCATORS = (torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty)

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.buffers: list[tuple[Tensor, int]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function in self.ALLOCATORS and out.device.type == self.device:
            out = self.poisoned(out)
        return out

    def poisoned(self, like: Tensor) -> Tensor:
        inside, buffer = fence(like)
        self.buffers.append((buffer, like.untyped_storage().nbytes()))
        return inside

    def intact(self) -> bool:
        return all(
            bool((b[:FENCE] == POISON).all()) and bool((b[FENCE + size :] == POISON).all())
            for b, size in self.buffers
        )


def between_nans(x: Tensor) -> Tensor:
    """A copy of x, same strides, with NaN before and after it: a read past either end spoils the answer."""
    if not x.is_floating_point():
        return x
    inside, _ = fence(x)
    return inside.copy_(x)


# ---------------------------------------------------------------- a rung on a device

Result = tuple[Tensor, Tensor | None]
Case = Callable[["Target"], dict]


@dataclass
class Target:
    """A rung to judge: its name, the device and dtype of its inputs, and how long to look for a race."""

    rung: str
    device: str = "cuda"
    launches: int = 1000
    seed: int = 0
    worst: dict[str, float] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def rng(self) -> torch.Generator:
        """A generator nobody has drawn from before."""
        self.seed += 1
        return torch.Generator().manual_seed(self.seed)

    def tolerance(self, arguments: dict, hard: bool) -> tuple[float, float]:
        """Allowed relative L2 of o and of the final state (the contract's accuracy table)."""
        dtype, state = arguments["q"].dtype, arguments.get("initial_state")
        narrow_state = state is not None and state.dtype == torch.bfloat16
        if dtype == torch.float64:
            return 1e-12, 1e-12
        if dtype == torch.float32:
            return 1e-5, 6e-3 if narrow_state else 1e-5
        if self.rung in FP32_ARITHMETIC:
            return 6e-3, 6e-3 if narrow_state else 1e-5
        loose = 3e-2 if hard and self.rung not in PYTORCH else 6e-3
        return loose, loose

    def raw(self, **arguments) -> Result:
        """The call as a user would make it."""
        function = kda_lab.fused_recurrent_kda if self.rung == "decode" else kda_lab.chunk_kda
        with torch.no_grad():
            return function(**arguments, backend=self.rung)

    def call(self, **arguments) -> Result:
        """The call with poisoned outputs, fences, and a check of what came back."""
        inputs = {
            name: between_nans(x) if isinstance(x, Tensor) else x for name, x in arguments.items()
        }
        with Guarded(self.device) as guard:
            o, state = self.raw(**inputs)
        v = arguments["v"]
        if o.shape != v.shape or o.dtype != v.dtype:
            raise CheckFailed(f"o is {o.dtype} {list(o.shape)}, v is {v.dtype} {list(v.shape)}")
        if (state is None) == arguments.get("output_final_state", False):
            raise CheckFailed(
                "a final state was asked for and not given, or given and not asked for"
            )
        if not guard.intact():
            raise CheckFailed("wrote outside an output or workspace")
        for name, x in inputs.items():
            if isinstance(x, Tensor) and not _equal(x, arguments[name]):
                raise CheckFailed(f"changed its input {name}")
        return o, state

    def close(
        self, result: Result, exact: Result, arguments: dict, hard: bool = False, what: str = "",
        slack: float = 1,
    ) -> None:  # fmt: skip
        """Raises CheckFailed unless o and the state are within tolerance of fp64; remembers the worst.

        slack widens the limits of fp32 arithmetic alone, where rounding adds up over very many tokens.
        """
        limits = [x * slack if x <= 1e-5 else x for x in self.tolerance(arguments, hard)]
        for name, got, want, limit in zip(("o", "state"), result, exact, limits, strict=True):
            if got is None:
                continue
            error = relative_l2(got, want)
            self.worst[name] = max(self.worst.get(name, 0.0), error)
            if not error <= limit:
                raise CheckFailed(f"{what}{name} is {error:.2e} from fp64, allowed is {limit:.0e}")

    def agree(self, hard: bool = False, what: str = "", slack: float = 1, **arguments) -> Result:
        """Runs the call and compares it with gold."""
        result = self.call(**arguments)
        self.close(result, gold(**arguments), arguments, hard, what, slack)
        return result


def _equal(x: Tensor, y: Tensor) -> bool:
    """Bitwise equality, NaN equal to NaN."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[x.element_size()]
    return torch.equal(x.contiguous().view(kind), y.contiguous().view(kind))


# ---------------------------------------------------------------- inputs


def offsets(lengths: list[int], device: str, dtype: torch.dtype = torch.int64) -> Tensor:
    """cu_seqlens `[N+1]` of these lengths."""
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=dtype, device=device)


def inputs(
    t: Target, T: int, H: int = 2, HV: int | None = None, K: int = 128, V: int = 128, B: int = 1,
    N: int | None = None, gate: str = "strong", v_first: bool = False, state: bool = True,
) -> dict:  # fmt: skip
    """Arguments of one call. Gates of `RAW` are fused (norm, gate and sigmoid inside the call), those of
    `LOG` come activated; N states (default B)."""
    HV = HV or H
    rng = t.rng()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    q, k = (F.normalize(normal(B, T, H, K), dim=-1) for _ in range(2))
    v = normal(B, T, HV, V)
    x = dict(q=q, k=k, v=v)
    if gate in RAW:
        x["g"] = normal(B, T, HV, K) + RAW[gate]
        x["beta"] = normal(B, T, HV)
        fused = dict(
            use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True
        )
        parameters = dict(A_log=0.3 * normal(HV), dt_bias=0.1 * normal(HV, K))
        bound = {} if gate == "softplus" else dict(safe_gate=True, lower_bound=-5.0)
        options = fused | {n: y.to(t.device) for n, y in parameters.items()} | bound
    else:
        x["g"] = LOG[gate](normal(B, T, HV, K), torch.rand(B, T, HV, K, generator=rng))
        x["beta"] = torch.rand(B, T, HV, generator=rng)
        options = dict(safe_gate=gate in BOUNDED)
    arguments = {name: y.to(t.device, t.dtype) for name, y in x.items()} | options
    if state:
        shape = (N or B, HV, V, K) if v_first else (N or B, HV, K, V)
        arguments["initial_state"] = (0.1 * normal(*shape)).to(t.device)
    return arguments | dict(output_final_state=True, state_v_first=v_first)


def example(t: Target, gate: str = "weak") -> dict:
    """A call of the kind the rung is for: three packed sequences, one of them empty, or a decode step."""
    if t.rung == "decode":
        return inputs(t, 1, B=70, H=3, gate=gate)
    lengths = [100, 0, 333]
    a = inputs(t, sum(lengths), N=3, H=3, gate=gate)
    return a | dict(cu_seqlens=offsets(lengths, t.device))


RAW = {"strong": 0.5, "weak": -5.5, "long": -8.5, "softplus": 0.0}
LOG: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "floor": lambda n, u: torch.full_like(n, -5.0),
    "zero": lambda n, u: torch.zeros_like(n),
    "alternating": lambda n, u: (
        -5.0 * (torch.arange(n.shape[1]) % 2)[None, :, None, None].expand_as(n)
    ),
    "mixture": lambda n, u: (
        -torch.logspace(-4, 0.69897, n.shape[-1]).clamp(max=5).expand_as(n) * (0.5 + u / 2)
    ),
    "deep": lambda n, u: torch.where(u < 0.3, -30.0, -0.1 * u),
    "gone": lambda n, u: torch.where(u < 0.05, float("-inf"), -0.1 * u),
    "steep": lambda n, u: torch.full_like(n, -30.0),
}
BOUNDED = ("floor", "zero", "alternating", "mixture")


# ---------------------------------------------------------------- the cases

CASES: dict[str, Case] = {}
DECODE_CASES: dict[str, Case] = {}
MAY_DECLINE: set[str] = set()
CUDA_ONLY: set[str] = set()


def case(
    cuda: bool = False, may_decline: bool = False, decode: bool = False
) -> Callable[[Case], Case]:
    """Registers a case of the forward rungs, and with `decode` of the decode rungs too, under its function's name."""

    def put(function: Case) -> Case:
        name = function.__name__
        CASES[name] = function
        if decode:
            DECODE_CASES[name] = function
        if cuda:
            CUDA_ONLY.add(name)
        if may_decline:
            MAY_DECLINE.add(name)
        return function

    return put


def cases_of(rung: str) -> dict[str, Case]:
    """The cases that judge a rung, in the order in which they run."""
    return DECODE_CASES if rung == "decode" else CASES


def run_case(t: Target, name: str) -> dict:
    """One case's row: status, seconds, the worst errors seen and what the case reports."""
    t.worst = {}
    t.seed = sum(map(ord, name)) * 1000
    start = time.monotonic()
    row: dict = {"rung": t.rung, "case": name}
    try:
        if name in CUDA_ONLY and t.device != "cuda":
            raise NotRun("needs a CUDA device")
        row |= {"status": "passed"} | (cases_of(t.rung)[name](t) or {})
    except NotRun as error:
        row |= {"status": "not_run", "message": str(error)}
    except Declined as error:
        row |= {"status": "declined", "message": str(error)}
    except (CheckFailed, torch.OutOfMemoryError) as error:
        row |= {"status": "failed", "message": str(error)}
    except ValueError as error:
        reason = str(error)
        declined = "cannot serve this call" in reason and name in MAY_DECLINE
        row |= {"status": "declined" if declined else "failed", "message": reason}
    except Exception as error:  # a launch failure, say: the case failed, whatever was raised
        row |= {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    row["message"] = row.get("message", "")[:400]
    row["seconds"] = round(time.monotonic() - start, 2)
    return row | {
        f"worst_{what}": float(f"{error:.3g}") for what, error in t.worst.items() if error < 1e30
    }


@case()
def gold_is_the_recurrence(t: Target) -> dict:
    """The fp64 answer used here agrees with the oracle's own loop, with the chunked form too."""
    for gate in ("strong", "long", "mixture"):
        a = inputs(t, 70, H=1, gate=gate)
        wide = {
            n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
            for n, x in a.items()
        }
        oracle = kda_lab.chunk_kda(**wide, backend="reference")
        chunked = kda_lab.chunk_kda(**wide, backend="chunked")
        for other in (gold(**a), chunked):
            for x, y in zip(other, oracle, strict=True):
                if relative_l2(x, y) > 1e-11:
                    raise CheckFailed(f"gold differs from the oracle by {relative_l2(x, y):.1e}")
    return {}


@case()
def lengths(t: Target) -> dict:
    """Every T from 1 to 129, each with fresh buffers; outputs are prefixes, states are compared at each T."""
    for gate in ("strong", "weak"):
        a = inputs(t, 129, gate=gate)
        per_token = ("q", "k", "v", "g", "beta")
        for T in range(1, 130):
            short = a | {name: a[name][:, :T].contiguous() for name in per_token}
            result = t.call(**short)
            if T in (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129):
                t.close(result, gold(**short), short, what=f"T={T}, {gate}: ")
            elif not all(torch.isfinite(x).all() for x in result):
                raise CheckFailed(f"T={T}, {gate}: not finite")
    packed = inputs(t, 129 * 65, N=129, gate="strong")
    t.agree(
        **packed,
        cu_seqlens=offsets(list(range(1, 130)), t.device),
        what="lengths 1 to 129, packed: ",
    )
    return {}


@case()
def gates_raw(t: Target) -> dict:
    """Strong, weak and long gates as raw logits, everything fused."""
    for gate in ("strong", "weak", "long"):
        t.agree(**inputs(t, 1041, gate=gate), what=f"{gate}: ")
    return {}


@case()
def gates_log(t: Target) -> dict:
    """Log gates: all exactly -5, all 0, alternating 0 and -5, mixtures per channel."""
    for gate in BOUNDED:
        t.agree(**inputs(t, 1041, gate=gate), what=f"{gate}: ")
    return {}


@case(may_decline=True)
def gate_softplus(t: Target) -> dict:
    """The softplus gate, which has no lower bound."""
    t.agree(**inputs(t, 1041, gate="softplus"))
    strong = inputs(t, 300, gate="softplus")
    strong["A_log"] = strong["A_log"] + 3.0
    t.agree(**strong, what="A_log + 3: ")
    return {}


@case(may_decline=True)
def gates_unbounded(t: Target) -> dict:
    """Log gates without a promise: -30 here and there, -30 everywhere, -inf here and there."""
    for gate in ("deep", "steep", "gone"):
        t.agree(**inputs(t, 521, gate=gate), what=f"{gate}: ")
    return {}


@case(may_decline=True)
def lower_bound_below_five(t: Target) -> dict:
    """The sigmoid gate with a bound of -12, where a bounded-range kernel must decline."""
    a = inputs(t, 521, gate="strong") | dict(safe_gate=False, lower_bound=-12.0)
    t.agree(**a)
    return {}


@case()
def identical_keys(t: Target) -> dict:
    """One key for all tokens, beta near 1, almost no decay: the inverse at its worst."""
    a = inputs(t, 1041, gate="zero")
    a["k"] = a["k"][:, :1].expand_as(a["k"]).contiguous()
    a["g"] = torch.full_like(a["g"], -1e-5)
    a["beta"] = torch.full_like(a["beta"], 0.9997)
    t.agree(**a, hard=True, what="log gates: ", slack=10)
    a = inputs(t, 16_384, H=1, gate="strong")
    a["k"] = a["k"][:, :1].expand_as(a["k"]).contiguous()
    a["g"], a["beta"] = torch.full_like(a["g"], -12.0), torch.full_like(a["beta"], 8.0)
    # fp32 states: only errors along the one key are ever erased; 16,384 roundings across it add up
    t.agree(**a, hard=True, what="raw gate -12, raw beta 8, T=16384: ", slack=100)
    return {}


@case()
def hard_keys(t: Target) -> dict:
    """Zero keys and queries under the norm, keys of length 1000 under the norm, keys a little longer than 1."""
    a = inputs(t, 257, gate="weak")
    a["k"][:, ::3] = 0
    a["q"][:, ::5] = 0
    t.agree(**a, what="zero keys: ")
    a = inputs(t, 257, gate="weak")
    a["q"], a["k"] = a["q"] * 1000, a["k"] * 1000
    t.agree(**a, what="large keys, normalised inside: ")
    a = inputs(t, 257, gate="mixture")
    a["k"] = a["k"] * 1.2
    t.agree(**a, what="keys of length 1.2: ")
    return {}


@case()
def hard_logits(t: Target) -> dict:
    """Raw logits of +-60 for gate and beta, and beta up to 2 (allow_neg_eigval)."""
    a = inputs(t, 521, gate="strong")
    a["g"] = a["g"].sign() * 60
    a["beta"] = a["beta"].sign() * 60
    t.agree(**a, what="logits +-60: ")
    t.agree(**inputs(t, 521, gate="weak"), allow_neg_eigval=True, what="beta in (0,2): ")
    return {}


@case()
def arguments_optional(t: Target) -> dict:
    """No state in, no state out, no A_log, no dt_bias, dt_bias flat, a scale, norm or sigmoid left out."""
    a = inputs(t, 100, gate="weak", state=False)
    t.agree(**a | dict(output_final_state=False), what="no states: ")
    t.agree(**a, what="no initial state: ")
    t.agree(**a | dict(A_log=None), what="A_log=None: ")
    t.agree(**a | dict(dt_bias=None), what="dt_bias=None: ")
    t.agree(**a | dict(A_log=None, dt_bias=None), what="A_log=dt_bias=None: ")
    t.agree(**a | dict(dt_bias=a["dt_bias"].reshape(-1)), what="dt_bias flat: ")
    t.agree(**a, scale=0.37, what="scale: ")
    t.agree(**a | dict(use_qk_l2norm_in_kernel=False), what="norm outside: ")
    plain = a | dict(use_beta_sigmoid_in_kernel=False, beta=a["beta"].sigmoid())
    t.agree(**plain, what="sigmoid outside: ")
    t.agree(**a | dict(lower_bound=-1.3), what="lower_bound -1.3: ")
    return {}


@case()
def dtypes_wide(t: Target) -> dict:
    """fp32 gates and beta beside q, k, v in their own dtype."""
    for gate in ("strong", "mixture"):
        a = inputs(t, 257, gate=gate)
        t.agree(**a | dict(g=a["g"].float(), beta=a["beta"].float()), what=f"{gate}: ")
    return {}


@case(may_decline=True)
def fp32_inputs(t: Target) -> dict:
    """Everything in fp32."""
    a = inputs(t, 257, gate="weak")
    t.agree(**{n: x.float() if isinstance(x, Tensor) else x for n, x in a.items()})
    return {}


@case(may_decline=True)
def state_bf16(t: Target) -> dict:
    """A bf16 state in and out."""
    a = inputs(t, 257, gate="weak")
    t.agree(**a | dict(initial_state=a["initial_state"].bfloat16()))
    return {}


@case(may_decline=True)
def shapes_other(t: Target) -> dict:
    """K and V other than 128, among them sizes that are no power of two."""
    for K, V in ((64, 64), (128, 256), (256, 128), (100, 72), (16, 48)):
        t.agree(**inputs(t, 130, K=K, V=V), what=f"K={K}, V={V}: ")
    return {}


@case()
def grouped_values(t: Target) -> dict:
    """Two and four value heads a query head; odd head counts."""
    for H, HV in ((2, 4), (1, 4), (3, 3), (3, 6), (5, 5)):
        t.agree(**inputs(t, 193, H=H, HV=HV), what=f"H={H}, HV={HV}: ")
    return {}


@case()
def batches(t: Target) -> dict:
    """B > 1 without cu_seqlens, at a T that is no multiple of a tile."""
    for B, T in ((2, 100), (5, 33), (3, 64)):
        t.agree(**inputs(t, T, B=B), what=f"B={B}, T={T}: ")
    return {}


@case()
def empty_sequences(t: Target) -> dict:
    """Empty sequences leading, in the middle, trailing and in a row: their final state is their initial state."""
    for lengths in ([0, 70, 33], [70, 0, 33], [70, 33, 0], [0, 0, 17, 0, 0, 64, 0, 1, 0, 0]):
        for state in (True, False):
            a = inputs(t, sum(lengths), N=len(lengths), gate="weak", state=state)
            _, final = t.agree(**a, cu_seqlens=offsets(lengths, t.device), what=f"{lengths}: ")
            for n, length in enumerate(lengths):
                want = a["initial_state"][n] if state else torch.zeros_like(final[n])
                if length == 0 and not torch.equal(final[n], want):
                    raise CheckFailed(f"{lengths}: sequence {n} is empty but its state changed")
    return {}


@case()
def nothing_at_all(t: Target) -> dict:
    """All sequences empty, with no tokens, and with tokens that belong to none."""
    for T in (0, 40):
        a = inputs(t, T, N=3, gate="weak")
        cu = torch.zeros(4, dtype=torch.int64, device=t.device)
        o, final = t.call(**a, cu_seqlens=cu)
        if bool((o != 0).any()) or not torch.equal(final, a["initial_state"]):
            raise CheckFailed(f"T={T}: o must be 0 and the states unchanged")
    o, final = t.call(**inputs(t, 0, B=2))
    return {}


@case()
def offsets_int32(t: Target) -> dict:
    """int32 and int64 cu_seqlens give the same bits."""
    lengths = [100, 7, 64]
    a = inputs(t, sum(lengths), N=3)
    short, long = (
        t.agree(**a, cu_seqlens=offsets(lengths, t.device, d)) for d in (torch.int32, torch.int64)
    )
    same_bits(short, long, "int32")
    return {}


@case()
def offsets_end_early(t: Target) -> dict:
    """cu_seqlens that end before T: o is 0 past the end, whatever stands in q, k, v, g, beta there."""
    lengths = [50, 31]
    a = inputs(t, 128, N=2)
    for name in ("q", "k", "v", "g", "beta"):
        a[name][:, 81:] = float("nan")
    o, final = t.call(**a, cu_seqlens=offsets(lengths, t.device))
    if bool((o[:, 81:] != 0).any()):
        raise CheckFailed("o is not 0 past the end of cu_seqlens")
    inside = a | {name: a[name][:, :81].contiguous() for name in ("q", "k", "v", "g", "beta")}
    t.close((o[:, :81], final), gold(**inside, cu_seqlens=offsets(lengths, t.device)), a)
    return {}


@case(cuda=True)
def offsets_corrupt(t: Target) -> dict:
    """cu_seqlens with values that break the rules: the answer is free, but nothing is touched out of bounds."""
    T = 128
    big = 2**31 - 1
    wrong = [
        [0, 500, 128], [0, -7, 128], [5, 64, 128], [0, 100, 50], [-1, -1, -1], [big, 0, big],
        [0, big, 128], [128, 64, 0], [0, 64, 10_000],
    ]  # fmt: skip
    for values in wrong:
        for dtype in (torch.int32, torch.int64):
            a = inputs(t, T, N=2)
            t.call(**a, cu_seqlens=torch.tensor(values, dtype=dtype, device=t.device))
            torch.cuda.synchronize()
    a = inputs(t, T, N=2)
    huge = torch.tensor([0, 2**62, 128], device=t.device)
    t.call(**a, cu_seqlens=huge)
    torch.cuda.synchronize()
    return {"tried": 2 * len(wrong) + 1}


@case()
def many_sequences(t: Target) -> dict:
    """Over 1024 sequences of 0 to 7 tokens."""
    lengths = [(7 * n) % 8 for n in range(1500)]
    a = inputs(t, sum(lengths), H=1, N=len(lengths), gate="weak")
    t.agree(**a, cu_seqlens=offsets(lengths, t.device))
    return {}


@case()
def mixed_lengths(t: Target) -> dict:
    """The six mixed lengths of the public benchmarks, and lengths around the tile sizes."""
    for lengths in (
        [1300, 547, 2048, 963, 271, 3063],
        [1, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1],
    ):
        a = inputs(t, sum(lengths), N=len(lengths), gate="weak")
        t.agree(**a, cu_seqlens=offsets(lengths, t.device), what=f"{len(lengths)} sequences: ")
    return {}


@case()
def state_layouts(t: Target) -> dict:
    """V-first states give the transposed bits of K-first ones."""
    a = inputs(t, 193, B=2, gate="weak")
    o, final = t.agree(**a)
    flipped = a | dict(initial_state=a["initial_state"].mT.contiguous(), state_v_first=True)
    o_v, final_v = t.agree(**flipped, what="state_v_first: ")
    same_bits((o_v, final_v.mT), (o, final), "state_v_first")
    return {}


@case()
def strided_inputs(t: Target) -> dict:
    """q, k, v cut out of one packed projection, heads before tokens, and every second channel."""
    a = inputs(t, 150, B=2)
    packed = a | dict(
        zip("qkv", torch.cat([a["q"], a["k"], a["v"]], -1).split(128, -1), strict=True)
    )
    heads_first = a | {
        n: a[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("q", "k", "v", "g", "beta")
    }
    every_second = a | {n: torch.stack([a[n]] * 2, -1).flatten(-2)[..., ::2] for n in "qkvg"}
    exact, declined = gold(**a), []
    for what, b in (
        ("packed", packed),
        ("heads first", heads_first),
        ("every second", every_second),
    ):
        try:
            t.close(t.call(**b), exact, b, what=f"{what}: ")
        except ValueError as error:
            if "cannot serve this call" not in str(error):
                raise
            declined.append(what)
    return {"declined": declined}


@case()
def continuation(t: Target) -> dict:
    """A sequence in pieces, state handed on, equals one shot."""
    a = inputs(t, 777, gate="weak")
    exact = gold(**a)
    for cuts in ([0, 64, 128, 320, 777], [0, 1, 38, 100, 555, 777]):
        state, parts = a["initial_state"], []
        for start, stop in pairwise(cuts):
            piece = {n: a[n][:, start:stop].contiguous() for n in ("q", "k", "v", "g", "beta")}
            o, state = t.call(**a | piece | dict(initial_state=state))
            parts.append(o)
        t.close((torch.cat(parts, 1), state), exact, a, what=f"cut at {cuts[1:-1]}: ")
    return {}


@case()
def long_memory(t: Target) -> dict:
    """65,536 tokens with a decay of 1e-4 a token, and 8192 with raw gates."""
    a = inputs(t, 65_536 if t.device == "cuda" else 4096, H=1, gate="zero")
    a["g"] = torch.full_like(a["g"], -1e-4)
    t.agree(**a, what="g = -1e-4: ", slack=10)
    if t.device == "cuda":
        for gate in ("strong", "long"):
            t.agree(**inputs(t, 8192, H=4, gate=gate), what=f"8192 tokens, {gate}: ")
    return {}


@case(cuda=True)
def past_two_to_the_31(t: Target) -> dict:
    """More than 2^31 elements a tensor (44 sequences of 4096 tokens, 96 heads): the last rows and heads are right."""
    length, N, H, K = 4096, 44, 96, 128
    need = 12 * N * length * H * K * 2
    free = torch.cuda.mem_get_info()[0]
    if free < need:
        raise NotRun(
            f"needs {need / 2**30:.0f} GiB of free GPU memory, {free / 2**30:.0f} are free"
        )
    rng = torch.Generator("cuda").manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_(generator=rng)

    T = N * length
    fused = dict(
        use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, use_beta_sigmoid_in_kernel=True,
        safe_gate=True, lower_bound=-5.0, output_final_state=True, A_log=torch.zeros(H, device="cuda"),
    )  # fmt: skip
    a = {name: normal(1, T, H, K) for name in ("q", "k", "v")}
    a |= dict(g=normal(1, T, H, K).sub_(5.5), beta=normal(1, T, H)) | fused
    o, final = t.raw(**a, cu_seqlens=offsets([length] * N, "cuda"))
    for n in (0, N // 2, N - 1):
        piece = {x: a[x][:, n * length : (n + 1) * length] for x in ("q", "k", "v", "g", "beta")}
        few = sample(a | piece, 3)
        exact, heads = gold(**few.sampled()), list(few.heads)
        got = o[:, n * length : (n + 1) * length, heads], final[n : n + 1, heads]
        t.close(got, exact, a, what=f"sequence {n}: ")
    del a, o, final
    torch.cuda.empty_cache()
    return {"elements": T * H * K}


@case(cuda=True, decode=True)
def side_streams(t: Target) -> dict:
    """Calls on four streams at once, each behind a busy stream, give the bits of calls one after the other."""
    batch = [example(t) for _ in range(4)]
    want = [t.raw(**a) for a in batch]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batch]
    for _ in range(5):
        got = []
        for a, stream in zip(batch, streams, strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(2_000_000)
                got.append(t.raw(**a))
        torch.cuda.synchronize()
        for x, y in zip(got, want, strict=True):
            same_bits(x, y, "a call on a side stream")
    return {}


@case(cuda=True, decode=True)
def cuda_graph(t: Target) -> dict:
    """Captured once, replayed on other inputs in the same buffers: the bits of an eager call."""
    static = example(t)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            t.raw(**static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = t.raw(**static)
    for _ in range(3):
        fresh = example(t)
        for name, x in fresh.items():
            if isinstance(x, Tensor):
                static[name].copy_(x)
        for x in captured:
            x.fill_(float("nan"))
        graph.replay()
        same_bits(captured, t.raw(**fresh), "a replay")
    return {}


@case(cuda=True, decode=True)
def no_synchronisation(t: Target) -> dict:
    """The host comes back while the stream is still busy with what stood before the call."""
    a = example(t)
    for _ in range(3):
        t.raw(**a)
    torch.cuda.synchronize()
    busy = torch.cuda.Event()
    torch.cuda._sleep(600_000_000)  # about 0.3 s
    busy.record()
    start = time.perf_counter()
    torch.cuda.set_sync_debug_mode("error")
    try:
        t.raw(**a)
    except RuntimeError as error:
        raise CheckFailed(f"synchronised: {error}") from None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    host_ms = (time.perf_counter() - start) * 1e3
    still_busy = not busy.query()
    torch.cuda.synchronize()
    if not still_busy:
        raise CheckFailed(f"the call took {host_ms:.0f} ms of host time behind a busy stream")
    return {"host_ms": round(host_ms, 3)}


@case(cuda=True, decode=True)
def deterministic(t: Target) -> dict:
    """The same bits launch after launch, at 2048 tokens and 12 heads (a decode step: 256 sequences)."""
    a = inputs(t, 1, B=256, H=12) if t.rung == "decode" else inputs(t, 2048, H=12, gate="weak")
    want = t.raw(**a)
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(t.launches):
        for x, y in zip(t.raw(**a), want, strict=True):
            different += torch.ne(x, y).any()
    if int(different):
        raise CheckFailed(
            f"{int(different)} outputs of {t.launches} launches differ from the first"
        )
    return {"launches": t.launches}


@case(may_decline=True, decode=True)
def state_in_place(t: Target) -> dict:
    """The final state written over the initial state's own buffer: the same bits, nothing around it touched."""
    a = example(t)
    want = t.raw(**a)
    state, o = in_place(t, a, a["initial_state"])
    same_bits((o, state), want, "a call in place")
    return {}


def in_place(
    t: Target, a: dict, state: Tensor, indices: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Runs `native.call.run_in_place` over a fenced copy of `state`; returns that copy and o."""
    if t.rung not in RUNGS:
        raise Declined("a PyTorch implementation has no in-place entry")
    unset = dict(initial_state=None, output_final_state=False)
    with Guarded(t.device) as guard:
        buffer = guard.poisoned(state)
        buffer.copy_(state)
        o = run_in_place(t.rung, check_call(**a | unset), buffer, indices)
    if not guard.intact():
        raise CheckFailed("wrote outside the state, the output or the workspace")
    return buffer, o


def same_bits(got: Result, want: Result, what: str) -> None:
    """Raises CheckFailed unless both results are bitwise equal."""
    for name, x, y in zip(("o", "state"), got, want, strict=True):
        if not _equal(x, y):
            raise CheckFailed(f"{what} gives other bits in {name}")


# ---------------------------------------------------------------- decode


def _only_decode(function: Case) -> Case:
    DECODE_CASES[function.__name__] = function
    return function


@_only_decode
def one_token(t: Target) -> dict:
    """A step of 1 to 130 sequences at every gate, both state layouts, grouped values."""
    for gate in (*RAW, *LOG):
        t.agree(**inputs(t, 1, B=7, gate=gate), what=f"{gate}: ")
        t.agree(**inputs(t, 1, B=7, gate=gate, v_first=True), what=f"{gate}, V first: ")
    for B in (1, 2, 33, 130):
        t.agree(**inputs(t, 1, B=B, H=3, gate="weak"), what=f"B={B}: ")
    for H, HV in ((1, 4), (2, 4), (5, 5)):
        t.agree(**inputs(t, 1, B=5, H=H, HV=HV), what=f"H={H}, HV={HV}: ")
    t.agree(**inputs(t, 1, B=5, gate="weak"), allow_neg_eigval=True, what="beta in (0,2): ")
    return {}


@_only_decode
def few_tokens(t: Target) -> dict:
    """Two to eight tokens at once."""
    for T in range(2, 9):
        t.agree(**inputs(t, T, B=5, gate="weak"), what=f"T={T}: ")
    return {}


@_only_decode
def options(t: Target) -> dict:
    """No initial state, no final state, fp32 gates, no A_log, no dt_bias, norm and sigmoid outside."""
    a = inputs(t, 1, B=5, gate="weak")
    t.agree(**a | dict(initial_state=None), what="no initial state: ")
    t.agree(**a | dict(output_final_state=False), what="no final state: ")
    t.agree(**a | dict(g=a["g"].float(), beta=a["beta"].float()), what="fp32 g and beta: ")
    t.agree(**a | dict(A_log=None, dt_bias=None), what="A_log=dt_bias=None: ")
    t.agree(**a | dict(use_qk_l2norm_in_kernel=False), what="norm outside: ")
    return {}


@_only_decode
def states_bf16(t: Target) -> dict:
    """A bf16 state, both layouts."""
    for v_first in (False, True):
        a = inputs(t, 1, B=9, gate="weak", v_first=v_first)
        t.agree(
            **a | dict(initial_state=a["initial_state"].bfloat16()), what=f"V first {v_first}: "
        )
    return {}


@_only_decode
def steps_equal_prefill(t: Target) -> dict:
    """Forty tokens one at a time equal one call over forty."""
    a = inputs(t, 40, B=3, gate="weak")
    state, parts = a["initial_state"], []
    for i in range(40):
        step = {n: a[n][:, i : i + 1].contiguous() for n in ("q", "k", "v", "g", "beta")}
        o, state = t.call(**a | step | dict(initial_state=state))
        parts.append(o)
    t.close((torch.cat(parts, 1), state), gold(**a), a)
    return {}


@_only_decode
def slots(t: Target) -> dict:
    """State indices into a larger cache: the right slots advance, all others keep their bits, negative ones skip."""
    for dtype in (torch.float32, torch.bfloat16):
        a = inputs(t, 1, B=6, gate="weak")
        cache = torch.randn(20, 2, 128, 128, generator=t.rng()).to(t.device, dtype) * 0.1
        picked = [7, -1, 0, 19, -1, 3]
        indices = torch.tensor(picked, dtype=torch.int32, device=t.device)
        after, o = in_place(t, a, cache, indices)
        for n, slot in enumerate(picked):
            if slot < 0:
                if bool((o[n] != 0).any()):
                    raise CheckFailed(f"sequence {n} is skipped but its o is not 0")
                continue
            one = {x: a[x][n : n + 1] for x in ("q", "k", "v", "g", "beta")}
            b = a | one | dict(initial_state=cache[slot : slot + 1])
            t.close((o[n : n + 1], after[slot : slot + 1]), gold(**b), b, what=f"slot {slot}: ")
        rest = [slot for slot in range(20) if slot not in picked]
        if not _equal(after[rest], cache[rest]):
            raise CheckFailed("a slot that no sequence owns was written")
    return {}


@_only_decode
def slots_outside(t: Target) -> dict:
    """Indices past the cache's end: nothing outside the cache is touched."""
    a = inputs(t, 1, B=4, gate="weak")
    cache = torch.zeros(5, 2, 128, 128, device=t.device)
    indices = torch.tensor([5, 2**31 - 1, 1000, 0], dtype=torch.int32, device=t.device)
    in_place(t, a, cache, indices)
    return {}


@_only_decode
def inputs_strided(t: Target) -> dict:
    """q, k, v cut out of one packed projection."""
    a = inputs(t, 1, B=9)
    parts = torch.cat([a["q"], a["k"], a["v"]], -1).split(128, -1)
    t.agree(**a | dict(zip("qkv", parts, strict=True)))
    return {}
