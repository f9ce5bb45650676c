"""`kda-lab grade ex04 | ex04.kda_step | all`: verdicts and points, as a table and as JSON.

pytest runs the exercise tests; the learner's code runs in another process, with limits on time and
memory, no right answers and no way to this one. Exit status 0 only if everything graded passed.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kda_lab.grading import source, store
from kda_lab.grading.engine import Verdict


def selected(targets: list[str]) -> list[str]:
    """Exercise ids named by `all`, `ex04` or `ex04.kda_step`. KeyError for anything else."""
    ids: list[str] = []
    for target in targets:
        if target == "all":
            ids += [key for file in source.exercise_files().values() for key in file.statements]
        elif "." in target:
            ids.append(source.statement(target).id)
        else:
            ids += [key for file in source.notebook_files(target) for key in file.statements]
    return list(dict.fromkeys(ids))


class Plugin:
    """Selects items, and reports each verdict once it has fallen."""

    def __init__(self, ids: list[str], report: Callable[[Verdict], None]):
        self.ids, self.report, self.config = ids, report, None
        self.told: set[str] = set()

    def pytest_configure(self, config):
        self.config = config

    def pytest_collection_modifyitems(self, items):
        items[:] = [i for i in items if i.callspec.params["exercise_id"] in self.ids]

    def verdicts(self) -> dict[str, Verdict]:
        desk = getattr(self.config, "kda_lab_desk", None)
        return {} if desk is None else desk.verdicts

    def pytest_runtest_logfinish(self):
        for key, verdict in self.verdicts().items():
            if key not in self.told:
                self.told.add(key)
                self.report(verdict)


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for the time being."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def compile_first(ids: list[str], submission: Path) -> None:
    """Compile CUDA files before pytest hides what is printed; trouble comes up again as a verdict."""
    from kda_lab.grading.cuda import variants
    from kda_lab.native.toolchain import Unbuildable

    for key in ids:
        file = source.exercise_file(key)
        if file.cuda and (submission / file.filename).is_file():
            with suppress(Unbuildable, ValueError, ImportError):
                variants.library(key)


def run(
    targets: list[str], submission: Path, report: Callable[[Verdict], None] = lambda verdict: None
) -> list[Verdict]:
    """Grade a folder with pytest; one verdict for every exercise asked for."""
    ids = selected(targets)
    compile_first(ids, submission)
    plugin = Plugin(ids, report)
    arguments = [
        "--noconftest", "-c", os.devnull, "--rootdir", str(source.PACKAGE), "--import-mode=importlib",
        "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:faulthandler", "-W", "ignore",
        str(Path(__file__).with_name("test_submission.py")),
    ]  # fmt: skip
    with environment(
        KDA_LAB_SUBMISSION=str(submission),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        PYTEST_ADDOPTS="",
        PYTEST_PLUGINS="",
    ):
        pytest.main(arguments, plugins=[plugin])
    found = plugin.verdicts()
    rows = []
    for key in ids:
        points = source.statement(key).points
        lost = Verdict(key, "error", 0, points, message="the grader came to no verdict")
        rows.append(found.get(key, lost))
    return rows


def as_json(verdicts: list[Verdict]) -> str:
    return json.dumps({"exercises": [v.record() for v in verdicts]}, indent=2) + "\n"


def write(path: Path, text: str) -> None:
    """Write in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w", encoding="utf-8") as f:
        f.write(text)
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(name, 0o666 & ~mask)
    os.replace(name, path)


def line(verdict: Verdict) -> str:
    """One verdict as a row of the table, its message below."""
    status = verdict.status.replace("_", " ")
    row = f"{status:13s} {verdict.points}/{verdict.max_points}  {verdict.id}"
    if verdict.hint_level:
        row += f"  ({verdict.hint_level} hint{'s' * (verdict.hint_level > 1)})"
    if verdict.gpu:
        row += f"  (on the host and on the {verdict.gpu})"
    if verdict.status in ("passed", "not_attempted"):
        return row
    return "\n".join([row, *(f"    {text}" for text in verdict.message.splitlines())])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("kda-lab grade", description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="+", help="ex04, ex04.kda_step or all")
    parser.add_argument(
        "--submission", type=Path, metavar="DIR", help="folder with exNN_*.py (default: exercises/)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there")
    options = parser.parse_args(argv)
    folder = (options.submission or store.exercises_folder()).resolve()
    try:
        selected(options.target)
    except KeyError as error:
        print(f"kda-lab grade: {error.args[0]}", file=sys.stderr)
        return 2
    if not folder.is_dir():
        print(f"kda-lab grade: --submission: no folder {folder}", file=sys.stderr)
        return 2
    verdicts = run(options.target, folder, lambda verdict: print(line(verdict), flush=True))
    points, most = sum(v.points for v in verdicts), sum(v.max_points for v in verdicts)
    passed = sum(v.status == "passed" for v in verdicts)
    print(f"\n{points} of {most} points, {passed} of {len(verdicts)} exercises passed")
    if options.json:
        write(options.json.absolute(), as_json(verdicts))
    if folder == store.exercises_folder().resolve():
        store.remember([v.record() for v in verdicts])
    return 0 if passed == len(verdicts) else 1
