"""A pytest plugin for nbval (`python -m pytest -p tests.notebooks.nbval_hooks --nbval notebooks`).

Strict is the default for every cell. Not compared: pictures, widgets and HTML (nbval cannot), and
cells whose output belongs to the learner: those with a line that calls check, predict, reveal or
yours. Notebooks are read as committed and know nothing of this clone's progress, so that what a
learner saves breaks nothing.
"""

import atexit
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import nbformat
import nbval.plugin

WIDGET = "application/vnd.jupyter.widget-view+json"
LEARNERS_OWN = re.compile(
    r"^(?:\w+(?:, *\w+)* *= *)?(?:check|predict|reveal|yours)\(", re.MULTILINE
)
differing: list[str] = []


def committed_text(path: Path) -> str:
    """The file at `path` as in the last commit; as it lies there when git does not know it."""
    show = ["git", "show", f"HEAD:./{path.name}"]
    shown = subprocess.run(show, cwd=path.parent, capture_output=True, encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    if shown.returncode == 0 and shown.stdout != text:
        differing.append(path.name)
        return shown.stdout
    return text


def committed(path: str, as_version: int) -> nbformat.NotebookNode:
    return nbformat.reads(committed_text(Path(path)), as_version=as_version)


def pytest_configure(config):
    nbval.plugin.nbformat = SimpleNamespace(read=committed, from_dict=nbformat.from_dict)
    folder = tempfile.mkdtemp(prefix="kda-lab-progress-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["KDA_LAB_PROGRESS"] = folder  # a newcomer's: nothing predicted, nothing solved


def pytest_itemcollected(item):
    if type(item).__name__ == "IPyNbCell" and not comparable(item.cell):
        item.options["check"] = False


def pytest_report_collectionfinish(config):
    return [f"{name}: changed here, tested as committed" for name in differing]


def comparable(cell: nbformat.NotebookNode) -> bool:
    """Whether two runs of `cell` must print the same."""
    if LEARNERS_OWN.search(cell.source):
        return False
    shown = [out.get("data", {}) for out in cell.get("outputs", [])]
    return not any(WIDGET in data or "text/html" in data for data in shown)
