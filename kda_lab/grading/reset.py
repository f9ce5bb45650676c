"""`kda-lab reset ex04`: put the stub of an exercise file back; yours is kept aside."""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from kda_lab.grading import source, store


def reset(file: source.ExerciseFile) -> tuple[Path, Path | None]:
    """Write the file's stub; returns its path and where the old file went, if there was one."""
    path = store.exercises_folder() / file.filename
    kept = None
    if path.exists() and path.read_bytes() != file.stub.encode():
        folder = store.progress_folder() / "kept"
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / f"{file.stem}-{datetime.now():%Y%m%d-%H%M%S-%f}{file.suffix}"
        kept.write_bytes(path.read_bytes())
    path.write_text(file.stub, encoding="utf-8")
    return path, kept


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("kda-lab reset", description=__doc__)
    parser.add_argument("file", help="such as ex04, or ex13_pipelines for one of two")
    options = parser.parse_args(argv)
    try:
        files = source.notebook_files(options.file)
    except KeyError as error:
        print(f"kda-lab reset: {error.args[0]}", file=sys.stderr)
        return 2
    for path, kept in map(reset, files):
        print(f"{path} is the stub again." + (f" Yours is kept in {kept}" if kept else ""))
    return 0
