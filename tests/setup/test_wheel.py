"""A built wheel in an environment without the clone: what the course needs travels with it."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAVELS = {  # folder of the clone: where it lies in the wheel
    "kda_lab": "kda_lab",
    "kernels": "kda_lab/kernels",
    "notebooks": "kda_lab/course_files/notebooks",
    "exercises": "kda_lab/course_files/exercises",
    "solutions": "kda_lab/course_files/solutions",
}


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built with no compiler on PATH."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run(*command, "-w", folder, ROOT, cwd=folder, PATH="/nowhere")
    return next(folder.glob("kda_lab-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The commands of an environment with the wheel, and the packages it needs from ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", where, cwd=folder).strip())
    (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "venv/bin"


def test_holds_what_git_holds(wheel):
    listed = run("git", "ls-files", *TRAVELS, cwd=ROOT).splitlines()
    expected = set()
    for name in listed:
        top, rest = name.split("/", 1)
        if (ROOT / name).exists():
            expected.add(f"{TRAVELS[top]}/{rest}")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert expected - held == set()


def test_holds_nothing_of_this_machine(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert not [
        n for n in names if n.endswith((".so", ".pyc")) or ".kda_lab" in n or "/tests/" in n
    ]


def test_works_outside_a_clone(installed, tmp_path):
    kda = installed / "kda-lab"
    assert "notebooks" in run(kda, "start", "course", cwd=tmp_path)
    course = tmp_path / "course"
    notebooks = [p.name for p in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert [p.name for p in sorted((course / "notebooks").glob("*.ipynb"))] == notebooks
    exercises = [p.name for p in sorted((ROOT / "exercises").glob("*.py"))]
    assert [p.name for p in sorted((course / "exercises").glob("*.py"))] == exercises
    script = (
        "import torch, kda_lab; from kda_lab.native.rungs import kernels_dir;"
        "q = torch.randn(1, 20, 2, 8); g = -torch.rand(1, 20, 2, 8); b = torch.rand(1, 20, 2);"
        "o, s = kda_lab.chunk_kda(q, q, q, g, b, output_final_state=True);"
        "print(kda_lab.__file__, o.shape, s.shape, kernels_dir())"
    )
    told = run(installed / "python", "-c", script, cwd=course)
    assert str(ROOT) not in told, "the clone is not what was tested"
    assert "[1, 20, 2, 8]" in told and "[1, 2, 8, 8]" in told
    found = json.loads(run(kda, "doctor", "--json", cwd=course))
    assert {x["name"]: x["state"] for x in found["findings"]}["course folder"] == "ok"
    run(kda, "ledger", "show", "--json", cwd=course)


def test_grades_outside_a_clone(installed, tmp_path):
    kda = installed / "kda-lab"
    run(kda, "start", "course", cwd=tmp_path)
    course = tmp_path / "course"
    told = subprocess.run(
        [kda, "grade", "ex01", "--json", "out.json"], cwd=course, capture_output=True, text=True
    )
    graded = json.loads((course / "out.json").read_text())["exercises"]
    assert {x["status"] for x in graded} == {"not_attempted"}, told.stderr


def test_start_leaves_what_is_there_alone(installed, tmp_path):
    (tmp_path / "course/exercises").mkdir(parents=True)
    mine = tmp_path / "course/exercises/ex01_memory.py"
    mine.write_text("mine")
    told = subprocess.run(
        [installed / "kda-lab", "start", "course"], cwd=tmp_path, capture_output=True, text=True
    )
    assert told.returncode == 1 and "nothing was changed" in told.stderr
    assert mine.read_text() == "mine" and not (tmp_path / "course/notebooks").exists()
