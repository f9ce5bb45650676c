"""`kda-lab stubs [--check]`: write `exercises/` from `solutions/`, or refuse drift.

The check compares committed files, so that a learner who has solved an exercise breaks nothing; outside a git
clone it compares what is on disk.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from kda_lab.grading.source import SUFFIXES, course_files, exercise_files, parse


def write(folder: Path) -> list[Path]:
    """Write every stub into `folder`; returns those that changed."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for file in exercise_files().values():
        path = folder / file.filename
        if not path.exists() or path.read_text() != file.stub:
            path.write_text(file.stub)
            changed.append(path)
    return changed


def committed(root: Path, path: str) -> str | None:
    """The text of `path` as committed (staged when it is new), or None."""
    for revision in ("HEAD:", ":"):
        command = ["git", "-C", str(root), "show", f"{revision}{path}"]
        shown = subprocess.run(command, capture_output=True, text=True)
        if shown.returncode == 0:
            return shown.stdout
    return None


def drift(root: Path) -> list[str]:
    """Sentences about committed stubs that do not follow from the committed solutions."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "solutions", "exercises"],
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        return []
    names = [n for n in listed.stdout.split() if n.endswith(SUFFIXES)]
    problems = []
    for name in (n for n in names if n.startswith("solutions/ex")):
        target = f"exercises/{Path(name).name}"
        stub = committed(root, target)
        if stub is None:
            problems.append(f"{target} is not committed: run kda-lab stubs")
        elif stub != parse(Path(name).stem, committed(root, name) or "", Path(name).suffix).stub:
            problems.append(f"{target} does not follow from {name}: run kda-lab stubs")
    for name in (n for n in names if n.startswith("exercises/ex")):
        if f"solutions/{Path(name).name}" not in names:
            problems.append(f"{name} has no solutions file")
    return problems


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("kda-lab stubs", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare committed files, write none")
    parser.add_argument("--to", type=Path, help="folder to write to (default: exercises/)")
    options = parser.parse_args(argv)
    if options.check:
        problems = drift(course_files("solutions").parent)
        print("\n".join(problems) or "stubs follow from their solutions")
        return 1 if problems else 0
    changed = write(options.to or course_files("exercises"))
    print("\n".join(f"wrote {path}" for path in changed) or "nothing changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
