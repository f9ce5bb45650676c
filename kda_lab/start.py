"""`kda-lab start DIR`: a course folder outside a clone, with the notebooks and the exercises."""

import argparse
import shutil
import sys
from pathlib import Path

from kda_lab.grading.source import course_files

LAID_OUT = ("notebooks", "exercises")
LEFT_OUT = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.pyc")


def lay_out(folder: Path) -> list[Path]:
    """Copies the course into `folder`; returns the files. FileExistsError if one is there."""
    taken = [folder / name for name in LAID_OUT if (folder / name).exists()]
    if taken:
        raise FileExistsError(f"{taken[0]} exists; nothing was changed, name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in LAID_OUT:
        shutil.copytree(course_files(name), folder / name, ignore=LEFT_OUT)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text(".kda_lab/\n.ipynb_checkpoints/\n__pycache__/\n")
    return sorted(p for name in LAID_OUT for p in (folder / name).rglob("*") if p.is_file())


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kda-lab start", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder, made if need be")
    folder = parser.parse_args(argv).folder
    try:
        files = lay_out(folder)
    except OSError as error:
        print(f"kda-lab start: {error}", file=sys.stderr)
        return 1
    notebooks = sum(p.suffix == ".ipynb" for p in files)
    print(f"{folder}: {notebooks} notebooks, and the exercises that go with them. Next:\n")
    print(f"    cd {folder}\n    kda-lab lab")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
