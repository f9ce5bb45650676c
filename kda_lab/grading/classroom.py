"""`kda-lab class DIR`: grade one folder per student, as a table, CSV and JSON.

DIR holds one folder per student; in it the exercise files, or an `exercises` folder with them.
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path

from kda_lab.grading import grade
from kda_lab.grading.engine import Verdict

FIELDS = ("student", "id", "status", "points", "max_points", "failed_test", "hint_level", "message")


def students(folder: Path) -> dict[str, Path]:
    """Each student's name and the folder that holds the exercise files."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            found[path.name] = path / "exercises" if (path / "exercises").is_dir() else path
    return found


def as_csv(results: dict[str, list[Verdict]]) -> str:
    """One row for each student and exercise, for a gradebook."""
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
    writer.writeheader()
    for student, verdicts in results.items():
        writer.writerows(
            {"student": _cell(student), **v.record(), "message": _cell(v.message)} for v in verdicts
        )
    return out.getvalue()


def _cell(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text


def as_json(results: dict[str, list[Verdict]]) -> str:
    rows = [
        {
            "student": student,
            "points": sum(v.points for v in verdicts),
            "max_points": sum(v.max_points for v in verdicts),
            "exercises": [v.record() for v in verdicts],
        }
        for student, verdicts in results.items()
    ]
    return json.dumps({"students": rows}, indent=2) + "\n"


def table(results: dict[str, list[Verdict]]) -> str:
    """Points per file and student."""
    keys = list(
        dict.fromkeys(v.id.split(".")[0] for verdicts in results.values() for v in verdicts)
    )
    width = max(len("student"), *map(len, results))
    lines = [
        f"{'student':{width}}  "
        + "  ".join(f"{key:>7}" for key in keys)
        + "    total  passed  hints"
    ]
    for student, verdicts in results.items():
        cells = []
        for key in keys:
            own = [v for v in verdicts if v.id.split(".")[0] == key]
            cells.append(f"{sum(v.points for v in own)}/{sum(v.max_points for v in own)}")
        total = f"{sum(v.points for v in verdicts)}/{sum(v.max_points for v in verdicts)}"
        passed = f"{sum(v.status == 'passed' for v in verdicts)}/{len(verdicts)}"
        hints = sum(v.hint_level for v in verdicts)
        row = "  ".join(f"{cell:>7}" for cell in cells)
        lines.append(f"{student:{width}}  {row}  {total:>7}  {passed:>6}  {hints:>5}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("kda-lab class", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="one folder per student")
    parser.add_argument(
        "target", nargs="*", default=["all"], help="ex04, ex04.kda_step or all (default)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="one row a student and exercise")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the same as JSON")
    options = parser.parse_args(argv)
    try:
        grade.selected(options.target)
    except KeyError as error:
        print(f"kda-lab class: {error.args[0]}", file=sys.stderr)
        return 2
    if not options.folder.is_dir() or not (found := students(options.folder)):
        print(f"kda-lab class: no student folders in {options.folder}", file=sys.stderr)
        return 2
    results: dict[str, list[Verdict]] = {}
    for number, (student, folder) in enumerate(found.items(), 1):
        results[student] = grade.run(options.target, folder)
        points = sum(v.points for v in results[student])
        print(f"{number}/{len(found)} {student}: {points} points", file=sys.stderr, flush=True)
    print(table(results))
    if options.csv:
        grade.write(options.csv.absolute(), as_csv(results))
    if options.json:
        grade.write(options.json.absolute(), as_json(results))
    return 0
