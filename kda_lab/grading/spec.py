"""The words in which an exercise's tests are written: cases, judges, mutants.

`solutions/AUTHORING.md` shows how they are used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


class Draw:
    """Random arguments in one dtype: new ones on every run.

    All methods return a tensor of `dtype`; sizes are positional.
    """

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64):
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype = dtype

    def _random(self, sample, size) -> Tensor:
        return sample(size, generator=self.generator, dtype=torch.float64)

    def normal(self, *size: int) -> Tensor:
        """Standard normal."""
        return self._random(torch.randn, size).to(self.dtype)

    def uniform(self, low: float, high: float, *size: int) -> Tensor:
        """Uniform in [low, high)."""
        return (low + (high - low) * self._random(torch.rand, size)).to(self.dtype)

    def unit(self, *size: int) -> Tensor:
        """Normal, scaled to length one over the last axis: keys and queries."""
        x = self._random(torch.randn, size)
        return (x / x.norm(dim=-1, keepdim=True)).to(self.dtype)

    def gates(self, *size: int) -> Tensor:
        """Log decays from -5 to 0, every channel its own: strong enough to show an order."""
        return (-5 * self._random(torch.rand, size) ** 2).to(self.dtype)

    def integer(self, low: int, high: int) -> int:
        """One integer from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))


@dataclass(frozen=True)
class Problem:
    """What is wrong and where, in words for the learner."""

    what: str
    where: str = ""


@dataclass
class Trial:
    """One call of the learner's function, as a judge sees it.

    args: the arguments as they were handed over; after: as they were left.
    got, want: outputs by name, the learner's and the right ones.
    """

    args: tuple
    after: tuple
    got: dict[str, Any]
    want: dict[str, Any]


Judge = Callable[[Trial], Problem | None]


# ---- CUDA exercises: how a case's arguments become a kernel launch -----------------------------------


class Out:
    """An array that a kernel fills: NaN (or -1) before the launch, a result after it."""

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32):
        self.shape, self.dtype = shape, dtype


@dataclass(frozen=True)
class InOut:
    """An array that a kernel changes: a copy of `value` before the launch, a result after it."""

    value: Tensor


@dataclass(frozen=True)
class Launch:
    """One kernel launch. grid, block: a number or (x, y, z); shared: bytes of dynamic shared memory.

    args: in the order of the kernel's parameters: tensors and numbers that are only read, Out, InOut.
    """

    kernel: str
    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    args: tuple
    shared: int = 0


@dataclass(frozen=True)
class Case:
    """One test. `make(draw)` gives the arguments; `judge` finds the problem or None.

    expect: hand-worked results, else the model solution is asked.
    dtype: of what `draw` gives. Errors of a case never leave the grader.
    """

    name: str
    make: Callable[[Draw], tuple]
    judge: Judge
    why: str
    hint: str
    expect: Any = None
    dtype: torch.dtype = torch.float64


@dataclass(frozen=True)
class Mutant:
    """A wrong version: text edits of the model solution, or a function of its own.

    says: completes the sentence "Looks like ...".
    also: other ways to make the same mistake, each a list of edits or a function.
    """

    name: str
    says: str
    edits: list[tuple[str, str]] = field(default_factory=list)
    function: Function | None = None
    also: list[list[tuple[str, str]] | Function] = field(default_factory=list)


@dataclass(frozen=True)
class Exercise:
    """Tests of one function: its outputs by name, cases in teaching order, wrong versions.

    fingerprint: where many answers are right, `fingerprint(args, value)` gives a list of facts by
    which wrong versions are told apart, in place of the raw outputs.
    launch: of a CUDA exercise: the launch that a case's arguments ask for.
    """

    name: str
    outputs: tuple[str, ...]
    cases: list[Case]
    mutants: list[Mutant]
    fingerprint: Callable[[tuple, Any], list] | None = None
    launch: Callable[..., Launch] | None = None


# ---- judges ------------------------------------------------------------------------------------


def shape() -> Judge:
    """Structure, shapes and dtypes of every output."""

    def judge(trial: Trial) -> Problem | None:
        for name, want in trial.want.items():
            if problem := form_problem(name, trial.got[name], want):
                return problem
        return None

    return judge


def finite() -> Judge:
    """No NaN and no infinity in any output that should have none."""

    def judge(trial: Trial) -> Problem | None:
        for name, want in trial.want.items():
            problem = form_problem(name, trial.got[name], want)
            if problem := problem or finite_problem(name, trial.got[name], want):
                return problem
        return None

    return judge


def close(tol: float, only: tuple[str, ...] = ()) -> Judge:
    """Relative L2 distance of each output at most `tol` (form and finiteness first)."""

    def judge(trial: Trial) -> Problem | None:
        for name, want in trial.want.items():
            if only and name not in only:
                continue
            got = trial.got[name]
            problem = form_problem(name, got, want) or finite_problem(name, got, want)
            if problem := problem or value_problem(name, got, want, tol):
                return problem
        return None

    return judge


def zeros(where: Callable[[Tensor], Tensor], says: str, only: tuple[str, ...] = ()) -> Judge:
    """Every output is exactly 0 where `where(output)` is True; `says` names the rule broken."""

    def judge(trial: Trial) -> Problem | None:
        for name, want in trial.want.items():
            if only and name not in only:
                continue
            got = trial.got[name]
            problem = form_problem(name, got, want) or finite_problem(name, got, want)
            if problem:
                return problem
            wrong = where(got) & (got != 0)
            if bool(wrong.any()):
                index = tuple(wrong.nonzero()[0].tolist())
                return Problem(f"{at(name, index)} is {number(got[index])} but must be 0", says)
        return None

    return judge


def unmodified() -> Judge:
    """No argument was changed in place."""

    def judge(trial: Trial) -> Problem | None:
        before, after = flatten("", trial.args), flatten("", trial.after)
        for name, x in before.items():
            y = after.get(name)
            if isinstance(x, Tensor) and not (isinstance(y, Tensor) and same_bits(x, y)):
                position = int(name.strip("[").split("]")[0])
                return Problem(f"argument number {position + 1} was changed in place")
        return None

    return judge


# ---- comparing values -----------------------------------------------------------------------------


def flatten(name: str, value: Any) -> dict[str, Any]:
    """Leaves of nested lists, tuples and dicts by a printable path such as `runs[2]`."""
    if isinstance(value, list | tuple):
        pairs = [(f"{name}[{i}]", x) for i, x in enumerate(value)]
    elif isinstance(value, dict):
        pairs = [(f"{name}[{key!r}]", x) for key, x in value.items()]
    else:
        return {name: value}
    return {path: leaf for key, x in pairs for path, leaf in flatten(key, x).items()}


def same_bits(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and bool(torch.equal(_bytes(x), _bytes(y)))


def _bytes(x: Tensor) -> Tensor:
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def kind(x: Any) -> str:
    return "a tensor" if isinstance(x, Tensor) else f"{type(x).__name__} {str(x)[:40]!r}"


def dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def form_problem(name: str, got: Any, want: Any) -> Problem | None:
    """The first difference in structure, shape or dtype."""
    if isinstance(want, list | tuple | dict):
        if not isinstance(got, list | tuple | dict) or len(got) != len(want):
            return Problem(f"{name} is {kind(got)} but must have {len(want)} parts")
        theirs, ours = flatten(name, got), flatten(name, want)
        if list(theirs) != list(ours):
            return Problem(f"the parts of {name} are {list(theirs)[:6]}, not {list(ours)[:6]}")
        problems = (form_problem(path, theirs[path], x) for path, x in ours.items())
        return next((p for p in problems if p), None)
    if isinstance(want, Tensor):
        if not isinstance(got, Tensor):
            return Problem(f"{name} is {kind(got)} but must be a tensor of {list(want.shape)}")
        if got.shape != want.shape:
            return Problem(f"{name} has shape {list(got.shape)} but must have {list(want.shape)}")
        if got.dtype != want.dtype:
            return Problem(f"{name} is {dtype_name(got)} but must be {dtype_name(want)}")
        return None
    if is_number(want):
        if is_number(got) or (isinstance(got, Tensor) and got.numel() == 1):
            return None
        return Problem(f"{name} is {kind(got)} but must be a number")
    if type(got) is not type(want):
        return Problem(f"{name} is {kind(got)} but must be {type(want).__name__}")
    return None


def finite_problem(name: str, got: Any, want: Any) -> Problem | None:
    """The first NaN or infinity where the right answer is finite (form already agrees)."""
    theirs, ours = flatten(name, got), flatten(name, want)
    for path, x in ours.items():
        if not (isinstance(x, Tensor) or is_number(x)):
            continue
        a, b = torch.as_tensor(theirs[path]), torch.as_tensor(x)
        if a.dtype.is_floating_point:
            wrong = ~a.reshape(b.shape).isfinite() & b.isfinite()
            if bool(wrong.any()):
                index = tuple(wrong.nonzero()[0].tolist())
                value = float(a.reshape(b.shape)[index])
                return Problem(
                    f"{at(path, index)} is {value}", f"{int(wrong.sum())} such in {path}"
                )
    return None


def value_problem(name: str, got: Any, want: Any, tol: float) -> Problem | None:
    """The first value that is off, when the relative L2 distance exceeds `tol`."""
    theirs, ours = flatten(name, got), flatten(name, want)
    for path, x in ours.items():
        if isinstance(x, Tensor) or is_number(x):
            error = distance(theirs[path], x)
            if not error <= tol:
                a = torch.as_tensor(theirs[path]).double().reshape(torch.as_tensor(x).shape)
                b = torch.as_tensor(x).double()
                rms = b.square().mean().sqrt().clamp_min(1e-300)
                wrong = ~((a - b).abs() <= tol * rms) & ~(a == b)
                index = tuple(wrong.nonzero()[0].tolist()) if bool(wrong.any()) else (0,) * b.dim()
                digits = 6 if number(a[index]) != number(b[index]) else 15
                what = f"{at(path, index)} is {number(a[index], digits)} but must be {number(b[index], digits)}"
                where = f"{path} is off by {error:.1e} (relative L2), allowed {tol:.0e}"
                if b.dim():
                    where = f"first difference at {list(index)} of {list(b.shape)}; " + where
                return Problem(what, where)
        elif theirs[path] != x:
            return Problem(f"{path} is {theirs[path]!r} but must be {x!r}")
    return None


def distance(got: Any, want: Any) -> float:
    """Relative L2 distance of two values of one shape; equal infinities count as equal."""
    a, b = torch.as_tensor(got).double(), torch.as_tensor(want).double()
    if a.numel() != b.numel():
        return float("inf")
    a = a.reshape(b.shape)
    difference = torch.where(a == b, torch.zeros_like(b), a - b).norm()
    size = torch.where(b.isfinite(), b, torch.zeros_like(b)).norm()
    return float(difference / size) if size > 0 else float(difference)


def at(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{','.join(map(str, index))}]" if index else name


def number(x: Tensor, digits: int = 6) -> str:
    return f"{float(x):.{digits}g}"
