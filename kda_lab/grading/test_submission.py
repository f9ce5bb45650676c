"""The exercise tests, as pytest sees them: one item a case, in teaching order.

    pytest kda_lab/grading/test_submission.py -k ex04        # in a clone
    pytest --pyargs kda_lab.grading.test_submission -k ex04  # anywhere

Grades the exercises of the course folder, or the folder in `KDA_LAB_SUBMISSION`. `kda-lab grade`
runs the same items. The learner's code never runs in this process.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kda_lab.grading import source, store
from kda_lab.grading.engine import Outcome, Verdict, conclude, run_case
from kda_lab.grading.runner import EXERCISE_SECONDS, Submission


def folder() -> Path:
    return Path(os.environ.get("KDA_LAB_SUBMISSION") or store.exercises_folder())


def items() -> Iterator:
    for file in source.exercise_files().values():
        try:
            tests = source.exercises(file)
        except (ImportError, source.AuthoringError):
            continue  # being written: whoever asks for it hears that there is no verdict
        for key, exercise in tests.items():
            for i, case in enumerate(exercise.cases):
                yield pytest.param(key, i, id=f"{key}-{case.name.replace(' ', '_')}")


class Desk:
    """One exercise file on the desk at a time; verdicts as they fall."""

    def __init__(self):
        self.submission: Submission | None = None
        self.outcomes: dict[str, list[Outcome]] = {}
        self.ends: dict[str, float] = {}
        self.verdicts: dict[str, Verdict] = {}

    def grade(self, exercise_id: str, index: int) -> Outcome:
        """The outcome of one case, or of the earlier one that decided the exercise."""
        file, said = source.exercise_file(exercise_id), source.statement(exercise_id)
        exercise = source.exercises(file)[exercise_id]
        found = self.outcomes.setdefault(exercise_id, [])
        if found and found[-1].status != "passed":
            return found[-1]
        if self.submission is None or self.submission.filename != file.filename:
            self.close()
            self.submission = Submission(folder(), file.filename)
        end = self.ends.setdefault(exercise_id, time.monotonic() + EXERCISE_SECONDS)
        seconds = max(0.1, end - time.monotonic())
        found.append(run_case(exercise, said, exercise.cases[index], self.submission, seconds))
        if found[-1].status != "passed" or len(found) == len(exercise.cases):
            taken = store.progress_of(folder())
            level = store.hint_level(exercise_id, taken) if taken else 0
            self.verdicts[exercise_id] = conclude(exercise, said, self.submission, found, level)
        return found[-1]

    def close(self) -> None:
        if self.submission is not None:
            self.submission.stop()


@pytest.fixture(scope="session")
def desk(request):
    desk = Desk()
    request.config.kda_lab_desk = desk  # where `kda-lab grade` finds the verdicts
    yield desk
    desk.close()


@pytest.mark.parametrize(("exercise_id", "index"), list(items()))
def test_case(desk, exercise_id, index):
    if found := desk.verdicts.get(exercise_id):
        pytest.skip(f"{exercise_id} is decided: {found.status} at {found.failed_test}")
    outcome = desk.grade(exercise_id, index)
    if outcome.status != "passed":
        verdict = desk.verdicts[exercise_id]
        pytest.fail(f"{exercise_id}: {verdict.status}\n{verdict.message}", pytrace=False)
