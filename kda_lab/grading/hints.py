"""`kda-lab hint ex04.kda_step`: the next of three hints; those already taken are shown again."""

import argparse
import sys

from kda_lab.grading import source, store

NAMES = ("direction", "key identity", "all but one line")


def next_hint(exercise_id: str) -> str:
    """The hints so far and one more, which is written down as taken. KeyError for a wrong id."""
    said = source.statement(exercise_id)
    level = min(store.hint_level(exercise_id) + 1, 3)
    store.put("hints", exercise_id, level)
    parts = [
        f"{exercise_id}, hint {i} of 3 ({name})\n\n{indent(hint)}\n"
        for i, (name, hint) in enumerate(zip(NAMES, said.hints, strict=True), 1)
        if i <= level
    ]
    if level < 3:
        parts.append(f"The next hint: kda-lab hint {exercise_id}")
    else:
        parts.append("That was the last hint. The model solution is shown once yours passes.")
    return "\n".join(parts)


def indent(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.splitlines())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("kda-lab hint", description=__doc__)
    parser.add_argument("exercise", help="such as ex04.kda_step")
    options = parser.parse_args(argv)
    try:
        if "." not in options.exercise:
            files = source.notebook_files(options.exercise)
            ids = ", ".join(key for file in files for key in file.statements)
            raise KeyError(f"{options.exercise} is no exercise; its exercises are {ids}")
        print(next_hint(options.exercise))
    except KeyError as error:
        print(f"kda-lab hint: {error.args[0]}", file=sys.stderr)
        return 2
    return 0
