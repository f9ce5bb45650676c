"""From a learner's function to a verdict: cases in order, words, and the nearest wrong version."""

import copy
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kda_lab.grading import worker
from kda_lab.grading.runner import (
    EXERCISE_SECONDS,
    Gone,
    Late,
    Local,
    Raised,
    Reply,
    Submission,
    Value,
)
from kda_lab.grading.source import (
    ExerciseFile,
    Statement,
    exercises,
    model,
    mutant_functions,
    statement,
)
from kda_lab.grading.spec import (
    Case,
    Draw,
    Exercise,
    Mutant,
    Problem,
    Trial,
    distance,
    flatten,
    is_number,
    same_bits,
)


class Runner(Protocol):
    """Where the judged function lives: a Submission, or Local."""

    def call(self, name: str, args: tuple, seconds: float = ...) -> Reply: ...


@dataclass(frozen=True)
class Verdict:
    """What the grader says of one exercise; `record()` is the contract's JSON row."""

    id: str
    status: str  # passed, failed, not_attempted, error, timeout
    points: int
    max_points: int
    failed_test: str | None = None
    message: str = ""
    hint_level: int = 0
    looks_like: str | None = None  # name of the nearest wrong version
    printed: str = ""
    gpu: str = ""  # the GPU on which a CUDA exercise passed too

    def record(self) -> dict[str, Any]:
        keys = ("id", "status", "points", "max_points", "failed_test", "message", "hint_level")
        return {key: asdict(self)[key] for key in keys}


@dataclass(frozen=True)
class Outcome:
    """One case: passed, or why not."""

    case: str
    status: str
    message: str = ""
    printed: str = ""


def fresh_seed() -> int:
    return secrets.randbits(62)


def run_case(
    exercise: Exercise, said: Statement, case: Case, runner: Runner, seconds: float
) -> Outcome:
    """Draw new inputs, ask the runner, judge the answer."""
    args = case.make(Draw(fresh_seed(), case.dtype))
    want = model(said.id)(*copy.deepcopy(args)) if case.expect is None else case.expect
    reply = runner.call(exercise.name, args, seconds)
    match reply:
        case Value(value, after, printed):
            got, problem = named(exercise, value)
            if problem is None:
                right, _ = named(exercise, want)
                problem = case.judge(Trial(args, after, got, right))
            if problem is None:
                return Outcome(case.name, "passed", printed=printed)
            return Outcome(case.name, "failed", words(case, problem), printed)
        case Raised(kind, text, where, missing, printed):
            if missing:
                text = f"Not attempted yet. For the first hint run: kda-lab hint {said.id}"
                return Outcome(case.name, "not_attempted", text, printed)
            if kind == "CompileError":
                return Outcome(case.name, "error", f"it does not compile: {text}")
            what = f"[{case.name}] {kind}: {text}" if text else f"[{case.name}] {kind}"
            parts = [what, where, f"Try: {case.hint}"]
            return Outcome(case.name, "error", "\n".join(filter(None, parts)), printed)
        case Late(limit):
            text = f"[{case.name}] no answer within {limit:.0f} s. Is there a loop that never ends?"
            return Outcome(case.name, "timeout", text)
        case Gone(text):
            return Outcome(case.name, "error", f"[{case.name}] {text}")
    raise AssertionError(reply)


def named(exercise: Exercise, value: Any) -> tuple[dict[str, Any], Problem | None]:
    """Results by output name, or the problem when their number is wrong."""
    names = exercise.outputs
    if len(names) == 1:
        return {names[0]: value}, None
    if isinstance(value, tuple | list) and len(value) == len(names):
        return dict(zip(names, value, strict=True)), None
    what = f"{len(value)} values" if isinstance(value, tuple | list) else type(value).__name__
    return {}, Problem(f"it returned {what} but must return ({', '.join(names)})")


def words(case: Case, problem: Problem) -> str:
    lines = [
        f"[{case.name}] {problem.what}",
        problem.where,
        f"Why: {case.why}",
        f"Try: {case.hint}",
    ]
    return "\n".join(line for line in lines if line)


def outcomes(exercise: Exercise, said: Statement, runner: Runner) -> Iterator[Outcome]:
    """Cases in teaching order up to and with the first that does not pass."""
    end = time.monotonic() + EXERCISE_SECONDS
    for case in exercise.cases:
        outcome = run_case(exercise, said, case, runner, max(0.1, end - time.monotonic()))
        yield outcome
        if outcome.status != "passed":
            return


def verdict(exercise: Exercise, said: Statement, runner: Runner, hint_level: int = 0) -> Verdict:
    """All cases, and for a wrong answer the wrong version it is nearest to."""
    return conclude(exercise, said, runner, list(outcomes(exercise, said, runner)), hint_level)


def conclude(
    exercise: Exercise, said: Statement, runner: Runner, found: list[Outcome], hint_level: int = 0
) -> Verdict:
    """The verdict on the outcomes found."""
    last, gpu = found[-1], ""
    if last.status == "passed" and exercise.launch is not None and isinstance(runner, Submission):
        last, gpu = on_the_gpu(exercise, said, runner, last)
    if last.status == "passed":
        return Verdict(
            said.id, "passed", said.points, said.points, hint_level=hint_level,
            printed=last.printed, gpu=gpu,
        )  # fmt: skip
    message, looks_like = last.message, None
    if gpu:
        message = f"On the host every case passes; on the {gpu}:\n{message}"
    elif last.status in ("failed", "error"):
        near = nearest(exercise, said, runner)
        if near is not None:
            looks_like = near.name
            message = message.replace("\nTry: ", f"\nLooks like {near.says}.\nTry: ")
    return Verdict(
        said.id,
        last.status,
        0,
        said.points,
        last.case,
        message,
        hint_level,
        looks_like,
        last.printed,
    )


def on_the_gpu(
    exercise: Exercise, said: Statement, submission: Submission, host: Outcome
) -> tuple[Outcome, str]:
    """The outcome on this machine's GPU and its name; the host's outcome where there is none."""
    from kda_lab.grading.cuda import gpu

    name = gpu.here()
    if name is None or submission.cuda is None:
        return host, ""
    if submission.device is None:
        submission.device = gpu.Gpu(submission.cuda, submission.text, submission.left)
    found = list(outcomes(exercise, said, submission.device))
    if "requires .target" in found[-1].message:  # an instruction that this GPU is too old for
        return host, ""
    return (host if found[-1].status == "passed" else found[-1]), name


# ---- the nearest wrong version -------------------------------------------------------------------


NEAR = 0.05  # a wrong version this close over all cases is worth naming


def nearest(exercise: Exercise, said: Statement, runner: Runner) -> Mutant | None:
    """The mutant whose answers over all cases are by far closest to the runner's, or None."""
    trials = []
    for case in exercise.cases if exercise.fingerprint is None else exercise.cases[-1:]:
        args = case.make(Draw(fresh_seed(), case.dtype))
        reply = runner.call(exercise.name, args, 2.0)
        if isinstance(reply, Gone | Late):
            return None
        trials.append((args, reply))
    if not any(isinstance(reply, Value) or telling(reply) for _, reply in trials):
        return None

    def away(function, limit: float) -> float:
        """Mean distance over the trials; anything above `limit` once it is clear."""
        total = 0.0
        for args, reply in trials:
            total += apart(exercise, args, Local(function).call("", args), reply) / len(trials)
            if total > limit:
                break
        return total

    best, found = NEAR, None
    for mutant in exercise.mutants:
        for function in mutant_functions(said.id, mutant):
            if (mean := away(function, best)) < best:
                best, found = mean, mutant
    return found if best < 0.2 * away(model(said.id), 1.0) else None


def apart(exercise: Exercise, args: tuple, a: Reply, b: Reply) -> float:
    """How far two answers to the same arguments are from each other, 0 to 1."""
    if not (isinstance(a, Value) and isinstance(b, Value)):
        if isinstance(a, Raised) and isinstance(b, Raised) and (telling(a) or telling(b)):
            return 1.0 if a.kind != b.kind else 0.0 if told(a) == told(b) else NEAR / 2
        return 0.0 if type(a) is type(b) else 1.0
    if changed(args, a.after) != changed(args, b.after):
        return 1.0
    if exercise.fingerprint is not None:
        pairs = list(zip(*(exercise.fingerprint(args, x.value) for x in (a, b)), strict=True))
        return sum(x != y for x, y in pairs) / len(pairs)
    first, second = flatten("", a.value), flatten("", b.value)
    if first.keys() != second.keys():
        return 1.0
    return max((leaf_apart(x, second[path]) for path, x in first.items()), default=0.0)


def told(error: Raised) -> str:
    """What an error says that depends neither on where lines and shared arrays stand nor on their names."""
    return re.sub(r" \(line \d+\)|(?<=shared memory)\[\d+\]", "", error.nameless or error.text)


FAULTS = {fault.__name__ for fault in worker.FAULTS.values()}


def telling(reply: Reply) -> bool:
    """Whether an error says by its kind which mistake it was: what a watched kernel did."""
    return isinstance(reply, Raised) and reply.kind in FAULTS


def changed(args: tuple, after: tuple) -> list[str]:
    before, now = flatten("", args), flatten("", after)
    return [
        path
        for path, x in before.items()
        if isinstance(x, Tensor)
        and not (isinstance(now.get(path), Tensor) and same_bits(x, now[path]))
    ]


def leaf_apart(x: Any, y: Any) -> float:
    if not all(isinstance(z, Tensor) or is_number(z) for z in (x, y)):
        return float(type(x) is not type(y) or x != y)
    a, b = torch.as_tensor(x), torch.as_tensor(y)
    if a.shape != b.shape or (
        isinstance(x, Tensor) and isinstance(y, Tensor) and a.dtype != b.dtype
    ):
        return 1.0
    a, b = a.double(), b.double()
    strange = ~a.isfinite() | ~b.isfinite()
    if bool(((a == b) | (a.isnan() & b.isnan()) | ~strange).all()):
        return min(1.0, distance(a.masked_fill(strange, 0), b.masked_fill(strange, 0)))
    return 1.0


# ---- whole files -------------------------------------------------------------------------------------


def grade_file(
    file: ExerciseFile, folder: Path, hint_level=lambda exercise_id: 0
) -> Iterator[Verdict]:
    """Every exercise of one file of one submission."""
    with Submission(folder, file.filename) as submission:
        for key, exercise in exercises(file).items():
            yield verdict(exercise, statement(key), submission, hint_level(key))
