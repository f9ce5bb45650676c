"""Launching exercises on the host: the model solution and its mutants here, a learner's in the worker."""

import ctypes
from functools import cache

import torch
from torch import Tensor

from kda_lab.grading import source, worker
from kda_lab.grading.cuda import compile
from kda_lab.grading.spec import Draw, Exercise, Function, InOut, Out

DTYPES = {
    "float": torch.float32, "double": torch.float64, "int": torch.int32, "int64_t": torch.int64,
    "uint32_t": torch.int32, "uint8_t": torch.uint8, "bf16": torch.bfloat16,
    "__nv_bfloat16": torch.bfloat16,
}  # fmt: skip


def three(n: int | tuple[int, ...]) -> list[int]:
    sizes = [n] if isinstance(n, int) else list(n)
    return sizes + [1] * (3 - len(sizes))


class Prepared:
    """A launch in the form in which it is run, and what becomes of the arrays after it."""

    def __init__(self, exercise: Exercise, model: str, args: tuple):
        assert exercise.launch is not None
        self.args, self.launch = args, exercise.launch(*args)
        parameters = compile.kernels(model)[self.launch.kernel]
        self.shape = [*three(self.launch.grid), *three(self.launch.block), self.launch.shared]
        self.parameters = [[p.name, p.type, p.written] for p in parameters]
        if len(parameters) != len(self.launch.args):
            raise source.AuthoringError(f"{self.launch.kernel} takes {len(parameters)} arguments")
        self.values = [self._value(a) for a in self.launch.args]
        for p, value in zip(parameters, self.values, strict=True):
            if p.array != isinstance(value, Tensor) or (
                isinstance(value, Tensor) and value.dtype != DTYPES[p.type]
            ):
                raise source.AuthoringError(f"{self.launch.kernel}: {p.name} is {p.spelled}")

    @staticmethod
    def _value(a):
        if isinstance(a, Out):
            fill = (
                float("nan") if a.dtype.is_floating_point else 0 if a.dtype == torch.uint8 else -1
            )
            return torch.full(a.shape, fill, dtype=a.dtype)
        if isinstance(a, InOut):
            return a.value.clone().contiguous()
        return a.contiguous() if isinstance(a, Tensor) else a

    def results(self, values) -> object:
        """The exercise's outputs among the arrays as the kernel left them."""
        written = [
            v for a, v in zip(self.launch.args, values, strict=True) if isinstance(a, Out | InOut)
        ]
        return written[0] if len(written) == 1 else tuple(written)

    def after(self, values) -> tuple:
        """The exercise's arguments as the kernel left them."""
        left = {
            id(a): v for a, v in zip(self.launch.args, values, strict=True) if isinstance(a, Tensor)
        }
        return tuple(left.get(id(a), a) for a in self.args)


def of(exercise_id: str) -> Exercise:
    return source.exercises(source.exercise_file(exercise_id))[exercise_id]


def kernel_names(exercise: Exercise) -> list[str]:
    """The kernels that an exercise's cases launch."""
    assert exercise.launch is not None
    names = (exercise.launch(*c.make(Draw(1, c.dtype))).kernel for c in exercise.cases)
    return list(dict.fromkeys(names))


def texts(exercise_id: str) -> list[str]:
    """The file's text with the model solution, and with each wrong version of this exercise."""
    found = [source.exercise_file(exercise_id).text]
    for mutant in of(exercise_id).mutants:
        for edits in [mutant.edits, *mutant.also]:
            if callable(edits):
                raise source.AuthoringError(
                    f"{exercise_id}, mutant {mutant.name!r}: text edits only"
                )
            found.append(source.edited(exercise_id, mutant.name, edits))
    return found


@cache
def library(exercise_id: str) -> tuple[ctypes.CDLL, dict[str, int]]:
    """All versions of one exercise, compiled together, and the number of each text's version."""
    versions = list(dict.fromkeys(texts(exercise_id)))
    text = compile.variants_text(versions, kernel_names(of(exercise_id)))
    path = compile.library("model", f"{exercise_id}'s model", text, learners=False)
    loaded = ctypes.CDLL(str(path))
    loaded.kda_launch.restype = None
    return loaded, {version: i for i, version in enumerate(versions)}


def function(exercise_id: str, text: str) -> Function:
    """One version as a function of the case's arguments, which are left as the kernel leaves them."""

    def call(*args):
        file, exercise = source.exercise_file(exercise_id), of(exercise_id)
        loaded, numbers = library(exercise_id)
        prepared = Prepared(exercise, file.text, args)
        kernel = f"{numbers[text or file.text]}:{prepared.launch.kernel}"
        worker.launch(loaded, kernel, prepared.shape, prepared.parameters, prepared.values)
        return prepared.results(prepared.values)

    return call
