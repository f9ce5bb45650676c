"""Reading `solutions/*.py` and `*.cu`: what an exercise says of itself, and the stub made from it."""

import ast
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

from kda_lab.grading.spec import Exercise, Function, Mutant

Edits = Sequence[tuple[str, str]]

PACKAGE = Path(__file__).resolve().parent.parent
HEADER = re.compile(
    r"(?:#|//) exercise (?P<name>\w+): (?P<points>\d+) points?, (?P<minutes>\d+) minutes, (?P<lines>\d+) lines$"
)
NOTE = re.compile(r"(?:#|//) (hint [123]|why): (.*)$")
BEGIN = re.compile(r"\s*(#|//) solution$")
END = re.compile(r"\s*(#|//) end solution$")
SUFFIXES = (".py", ".cu")


class AuthoringError(ValueError):
    """A solutions file or its tests break the rules of AUTHORING.md."""


@dataclass(frozen=True)
class Statement:
    """What the header comment of one exercise says, and the function below it."""

    id: str
    name: str
    points: int
    minutes: int
    lines: int
    hints: tuple[str, ...]
    why: str
    source: str  # the model function's text, from def to its end
    docstring: str


@dataclass(frozen=True)
class ExerciseFile:
    """One `exNN_name.py` or `.cu`: its statements in order, and the stub text."""

    key: str  # ex04
    stem: str  # ex04_recurrence
    text: str
    stub: str
    statements: dict[str, Statement]
    suffix: str = ".py"

    @property
    def filename(self) -> str:
        return self.stem + self.suffix

    @property
    def cuda(self) -> bool:
        return self.suffix == ".cu"


def course_files(name: str) -> Path:
    """A folder of the course (`solutions`, `exercises`): the clone's, else the installed copy."""
    for base in (PACKAGE.parent, PACKAGE / "course_files"):
        if (base / "solutions").is_dir():
            return base / name
    raise FileNotFoundError("neither a clone nor an installed copy of the course was found")


@cache
def exercise_files() -> dict[str, ExerciseFile]:
    """Every exercise file of the course by stem (`ex04_recurrence`), in order."""
    paths = sorted(course_files("solutions").glob("ex[0-9][0-9]_*"))
    return {
        path.stem: parse(path.stem, path.read_text(), path.suffix)
        for path in paths
        if path.suffix in SUFFIXES
    }


def notebook_files(key: str) -> list[ExerciseFile]:
    """The files of `ex04`, mostly one; or the one of `ex04_recurrence` or `ex04.kda_step`."""
    files = exercise_files().values()
    first = key.split(".")[0]
    found = [f for f in files if f.key == first or f.stem == first]
    if not found:
        raise KeyError(
            f"no exercise file {key!r}; there are {', '.join({f.key: 0 for f in files})}"
        )
    return [f for f in found if key in f.statements] or found


def exercise_file(key: str) -> ExerciseFile:
    """The file of `ex04.kda_step` or `ex04_recurrence`; of `ex04` the first."""
    return notebook_files(key)[0]


def statement(exercise_id: str) -> Statement:
    """The statement of `ex04.kda_step`."""
    files = notebook_files(exercise_id)
    if exercise_id not in files[0].statements:
        ids = ", ".join(key for file in files for key in file.statements)
        raise KeyError(f"no exercise {exercise_id!r}; {files[0].key} has {ids}")
    return files[0].statements[exercise_id]


@dataclass(frozen=True)
class Span:
    """Where a function stands: line numbers from 0; `top` is its comment's first line, or `first`."""

    top: int
    first: int
    last: int
    docstring: str


def python_functions(lines: list[str]) -> dict[str, Span]:
    spans = {}
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.FunctionDef):
            end = node.end_lineno or node.lineno
            if end < len(lines) and END.match(lines[end]):  # a comment: not in the tree
                end += 1
            first = node.lineno - 1
            spans[node.name] = Span(first, first, end - 1, ast.get_docstring(node) or "")
    return spans


DEVICE_FUNCTION = re.compile(r"(?:__global__|__device__)\b[^(;{]*?(?P<name>\w+)\s*\(")


def cuda_functions(lines: list[str]) -> dict[str, Span]:
    """Functions at column 0 that end with a brace of their own, with the block comment above them."""
    spans = {}
    for first, line in enumerate(lines):
        match = DEVICE_FUNCTION.match(line)
        last = next((i for i in range(first, len(lines)) if lines[i] == "}"), None)
        if match is None or last is None:
            continue
        top = first
        if first and lines[first - 1].rstrip().endswith("*/"):
            top = next(i for i in range(first - 1, -1, -1) if lines[i].startswith("/*"))
        comment = "\n".join(lines[top:first]).removeprefix("/*").strip().removesuffix("*/")
        spans[match["name"]] = Span(top, first, last, comment.strip())
    return spans


def function_text(text: str, suffix: str, name: str) -> str | None:
    """The text of one function, or None when there is none or it does not parse."""
    lines = text.splitlines()
    try:
        span = (cuda_functions if suffix == ".cu" else python_functions)(lines).get(name)
    except (SyntaxError, ValueError):
        return None
    return "\n".join(lines[span.first : span.last + 1]) if span else None


def parse(stem: str, text: str, suffix: str = ".py") -> ExerciseFile:
    """Read one solutions file. Raises AuthoringError naming the line that is wrong."""
    key, file = stem.split("_")[0], stem + suffix
    lines = text.splitlines()
    functions = (cuda_functions if suffix == ".cu" else python_functions)(lines)
    statements: dict[str, Statement] = {}
    for start, line in enumerate(lines):
        if not line.startswith(("# exercise ", "// exercise ")):
            continue
        head = HEADER.match(line)
        if head is None:
            raise AuthoringError(f"{file}:{start + 1}: cannot read {line!r}")
        name = head["name"]
        notes, end = _notes(lines, start + 1)
        span = functions.get(name)
        if span is None or span.top != end:
            raise AuthoringError(f"{file}:{end + 1}: function {name} must follow its header")
        if sorted(notes) != ["hint 1", "hint 2", "hint 3", "why"] or not all(notes.values()):
            raise AuthoringError(f"{file}:{start + 1}: {name} needs hint 1, 2, 3 and why")
        statements[f"{key}.{name}"] = Statement(
            id=f"{key}.{name}",
            name=name,
            points=int(head["points"]),
            minutes=int(head["minutes"]),
            lines=int(head["lines"]),
            hints=tuple(notes[f"hint {i}"] for i in (1, 2, 3)),
            why=notes["why"],
            source="\n".join(lines[span.first : span.last + 1]) + "\n",
            docstring=span.docstring,
        )
    return ExerciseFile(key, stem, text, make_stub(stem, text, suffix), statements, suffix)


def _notes(lines: list[str], start: int) -> tuple[dict[str, str], int]:
    """The hint and why comments from line `start` on; and the first line after them."""
    notes: dict[str, list[str]] = {}
    current, i = None, start
    while i < len(lines) and lines[i].startswith(("#", "//")):
        if match := NOTE.match(lines[i]):
            current = notes.setdefault(match[1], [match[2]])
        elif current is not None:
            current.append(lines[i].removeprefix("//").removeprefix("#"))
        i += 1
    joined = {}
    for name, (first, *rest) in notes.items():
        joined[name] = "\n".join([first, textwrap.dedent("\n".join(rest))]).strip()
    return joined, i


def make_stub(stem: str, text: str, suffix: str = ".py") -> str:
    """The text of `exercises/<stem>.py` or `.cu`: headers shortened, solutions taken out."""
    key = stem.split("_")[0]
    mark = "//" if suffix == ".cu" else "#"
    out: list[str] = []
    lines = text.splitlines()
    owner, i = "", 0
    while i < len(lines):
        line = lines[i]
        if head := HEADER.match(line):
            owner = f"{key}.{head['name']}"
            plural = "point" if head["points"] == "1" else "points"
            out.append(
                f"{mark} {owner}: {head['points']} {plural}, {head['minutes']} minutes, "
                f"about {head['lines']} lines"
            )
            out.append(f"{mark} A hint: kda-lab hint {owner}     Your verdict: kda-lab grade {key}")
            i = _notes(lines, i + 1)[1]
            continue
        if BEGIN.match(line):
            indent = line[: len(line) - len(line.lstrip())]
            first = i
            while i < len(lines) and not END.match(lines[i]):
                i += 1
            if i == len(lines):
                raise AuthoringError(f"{stem}{suffix}:{first + 1}: no '{mark} end solution' below")
            if indent and suffix == ".cu":
                out.append(f'{indent}NOT_ATTEMPTED("{owner}");')
            elif indent:
                message = f"for the first hint run: kda-lab hint {owner}"
                out.append(f'{indent}raise NotImplementedError("{message}")')
            i += 1
            continue
        out.append(line)
        i += 1
    stub = re.sub(r"\n{4,}", "\n\n\n", "\n".join(out).strip()) + "\n"
    if suffix == ".py":
        ast.parse(stub)
    return stub


def body_lines(source: str) -> int:
    """Lines of code between the solution markers of one function: no blanks, no comments."""
    lines = source.splitlines()
    first = next(i for i, line in enumerate(lines) if BEGIN.match(line))
    last = next(i for i, line in enumerate(lines) if END.match(line))
    code = [line.strip() for line in lines[first + 1 : last]]
    return sum(bool(line) and not line.startswith(("#", "//")) for line in code)


# ---- tests and functions that belong to a file -------------------------------------------------


def exercises(file: ExerciseFile) -> dict[str, Exercise]:
    """Cases and mutants by id, in the order of the solutions file."""
    module = import_module(f"kda_lab.grading.exercises.{file.stem}")
    tests = {f"{file.key}.{e.name}": e for e in module.EXERCISES}
    if set(tests) != set(file.statements):
        odd = ", ".join(sorted(set(tests) ^ set(file.statements)))
        raise AuthoringError(f"{file.stem}: statement without tests or tests without one: {odd}")
    return {key: tests[key] for key in file.statements}


def load(text: str, name: str) -> ModuleType:
    """Run trusted source text as a module of its own (never a learner's file while grading)."""
    module = ModuleType(name)
    module.__file__ = f"<{name}>"
    sys.modules[name] = module  # dataclasses and doctest look modules up here
    exec(compile(text, f"<{name}>", "exec"), module.__dict__)
    return module


@cache
def model_module(stem: str) -> ModuleType:
    file = exercise_file(stem)
    return load(file.text, f"kda_lab_model_{file.stem}")


def model(exercise_id: str):
    """The model solution's function; of a CUDA exercise, one that launches it on the host."""
    file = exercise_file(exercise_id)
    if file.cuda:
        return _cuda(exercise_id, "")
    return getattr(model_module(file.stem), statement(exercise_id).name)


def _cuda(exercise_id: str, text: str) -> Function:
    """The model solution of a CUDA exercise as a function, or the version that `text` makes of it."""
    from kda_lab.grading.cuda import variants

    return variants.function(exercise_id, text)


def edited(exercise_id: str, name: str, edits: Edits) -> str:
    """The text of the exercise file with a mutant's edits. Raises AuthoringError."""
    said = statement(exercise_id)
    source = said.source
    for old, new in edits:
        if source.count(old) != 1:
            times = source.count(old)
            raise AuthoringError(f"{exercise_id}, mutant {name!r}: {old!r} occurs {times} times")
        source = source.replace(old, new)
    return exercise_file(exercise_id).text.replace(said.source, source)


@cache
def _mutated(exercise_id: str, name: str, edits: tuple[tuple[str, str], ...]):
    text = edited(exercise_id, name, edits)
    file = exercise_file(exercise_id)
    if file.cuda:
        return _cuda(exercise_id, text)
    return getattr(load(text, f"kda_lab_mutant_{file.key}"), statement(exercise_id).name)


def mutant_function(exercise_id: str, mutant: Mutant) -> Function:
    """The wrong version as a function."""
    return mutant.function or _mutated(exercise_id, mutant.name, tuple(mutant.edits))


def mutant_functions(exercise_id: str, mutant: Mutant) -> list[Function]:
    """The wrong version and the other ways to make the same mistake."""
    others = [
        way if callable(way) else _mutated(exercise_id, mutant.name, tuple(way))
        for way in mutant.also
    ]
    return [mutant_function(exercise_id, mutant), *others]
