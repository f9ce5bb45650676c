"""`python -m kda_lab.grading.matrix [ex04 ...]`: which case catches which wrong version."""

import sys

from kda_lab.grading.engine import run_case
from kda_lab.grading.runner import Local
from kda_lab.grading.source import (
    exercise_file,
    exercise_files,
    exercises,
    mutant_function,
    notebook_files,
    statement,
)


def kills(exercise_id: str) -> dict[str, dict[str, str]]:
    """For each mutant of an exercise the status of every case, by name."""
    said = statement(exercise_id)
    exercise = exercises(exercise_file(exercise_id))[exercise_id]
    table: dict[str, dict[str, str]] = {}
    for mutant in exercise.mutants:
        runner = Local(mutant_function(exercise_id, mutant))
        table[mutant.name] = {
            case.name: run_case(exercise, said, case, runner, 10.0).status
            for case in exercise.cases
        }
    return table


def matrix(exercise_id: str) -> str:
    """The kill matrix as text: x wrong answer, E error, . not noticed."""
    table = kills(exercise_id)
    cases = list(next(iter(table.values())))
    width = max(len(name) for name in table)
    lines = [exercise_id, *(f"{'':{width}}  {'| ' * i}{case}" for i, case in enumerate(cases))]
    signs = {"passed": ".", "failed": "x"}
    for name, row in table.items():
        lines.append(f"{name:{width}}  " + " ".join(signs.get(row[case], "E") for case in cases))
    caught = sum(any(status != "passed" for status in row.values()) for row in table.values())
    return "\n".join([*lines, f"caught {caught} of {len(table)}"])


if __name__ == "__main__":
    for key in sys.argv[1:] or exercise_files():
        ids = [exercise_id for file in notebook_files(key) for exercise_id in file.statements]
        print("\n\n".join(matrix(exercise_id) for exercise_id in ids))
