"""`kda-lab progress`: points, attempts and hints so far, as last graded."""

import argparse

from kda_lab.grading import source, store


def rows() -> list[tuple[str, str, int, int, int, int]]:
    """For every exercise: id, status, points, most points, attempts, hints."""
    kept = store.read()
    table = []
    for file in source.exercise_files().values():
        for key, said in file.statements.items():
            last = kept["verdicts"].get(key)
            status = last.get("status") if isinstance(last, dict) else None
            attempts = kept["attempts"].get(key, 0)
            table.append((
                key,
                str(status or "not_attempted"),
                said.points if status == "passed" else 0,
                said.points,
                attempts if type(attempts) is int else 0,
                store.hint_level(key),
            ))  # fmt: skip
    return table


def main(argv: list[str]) -> int:
    argparse.ArgumentParser("kda-lab progress", description=__doc__).parse_args(argv)
    table = rows()
    width = max((len(row[0]) for row in table), default=8)
    print(f"{'exercise':{width}}  {'status':13s} points  attempts  hints")
    for key, status, points, most, attempts, hints in table:
        status = status.replace("_", " ")
        print(f"{key:{width}}  {status:13s} {points:>3}/{most}   {attempts:>7}   {hints:>5}")
    done = sum(row[1] == "passed" for row in table)
    print(
        f"\n{sum(r[2] for r in table)} of {sum(r[3] for r in table)} points, {done} of {len(table)} passed"
    )
    return 0
