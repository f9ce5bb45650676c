"""Where a learner's progress is kept: `.kda_lab/progress.json` of the course folder.

Nothing in it is trusted for points: it holds hints taken, attempts, guesses and earlier verdicts.
`KDA_LAB_PROGRESS` names another folder for it, as the tests do.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from kda_lab.grading.source import course_files

FILE = "progress.json"
PARTS = ("hints", "attempts", "guesses", "verdicts")


def course_folder() -> Path:
    """The folder that holds `exercises/`: here or above (a notebook runs in `notebooks/`)."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if any((folder / "exercises").glob("ex[0-9][0-9]_*")):
            return folder
    return course_files("exercises").parent


def exercises_folder() -> Path:
    """What is graded when no other folder is named."""
    return course_folder() / "exercises"


def progress_folder() -> Path:
    named = os.environ.get("KDA_LAB_PROGRESS")
    return Path(named) if named else course_folder() / ".kda_lab"


def read(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """Everything kept, by part; empty where there is nothing or nothing readable."""
    try:
        kept = json.loads(((folder or progress_folder()) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        kept = {}
    if not isinstance(kept, dict):
        kept = {}
    return {part: kept[part] if isinstance(kept.get(part), dict) else {} for part in PARTS}


def put(part: str, key: str, value: Any) -> None:
    """Keep one value. A folder that cannot be written is no reason to stop a lesson."""
    kept = read()
    kept[part][key] = value
    folder = progress_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            json.dump(kept, f, indent=1, sort_keys=True)
        os.replace(name, folder / FILE)
    except OSError:
        pass


def hint_level(exercise_id: str, folder: Path | None = None) -> int:
    """Hints taken, 0 to 3. folder: the progress folder of somebody else."""
    level = read(folder)["hints"].get(exercise_id, 0)
    return level if type(level) is int and 0 <= level <= 3 else 0


def progress_of(submission: Path) -> Path | None:
    """The progress folder that belongs to a folder of exercise files; None when there is none."""
    submission = submission.resolve()
    if submission == exercises_folder().resolve():
        return progress_folder()
    for folder in (submission / ".kda_lab", submission.parent / ".kda_lab"):
        if (folder / FILE).is_file() and (
            folder.parent == submission or submission.name == "exercises"
        ):
            return folder
    return None


def remember(records: list[dict[str, Any]]) -> None:
    """Keep the verdicts on the learner's own files, and count the attempts."""
    attempts = read()["attempts"]
    for record in records:
        key = record["id"]
        if record["status"] != "not_attempted":
            count = attempts.get(key, 0)
            put("attempts", key, (count if type(count) is int else 0) + 1)
        put("verdicts", key, {name: record[name] for name in ("status", "points", "failed_test")})
