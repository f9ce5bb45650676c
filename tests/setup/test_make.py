"""The Makefile's set-up, with a stand-in for Python: no network, no second environment."""

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = """#!/bin/sh
echo "$@" >> {log}
case "$1 $2" in
    "--version ") echo "Python {version}" ;;
    "-c "*) exit {too_old} ;;
    "-m venv") {venv} mkdir -p .venv/bin && cp $0 .venv/bin/python ;;
    "-m pip") test ! -e {folder}/no-network ;;
    "-m kda_lab.cli") echo "serving" ;;
esac
"""


class Course:
    """A folder with the Makefile and a Python that only writes down how it was called."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "calls.log"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder / name)
        self.python()

    def python(self, version: str = "3.12.1", too_old: int = 0, venv: str = "") -> None:
        stand_in = self.folder / "python"
        stand_in.write_text(
            STAND_IN.format(
                log=self.log, folder=self.folder, version=version, too_old=too_old, venv=venv
            )
        )
        stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)

    def make(self, target: str, python: str = "./python") -> subprocess.CompletedProcess:
        command = ["make", target, f"PYTHON={python}"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)

    def calls(self) -> list[str]:
        """How Python was called since the last look."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return lines


@pytest.fixture
def course(tmp_path):
    return Course(tmp_path)


def test_first_and_second_run(course):
    first = course.make("lab")
    assert first.returncode == 0, first.stderr
    assert "serving" in first.stdout
    calls = course.calls()
    assert "-m venv --clear .venv" in calls
    assert "-m pip install -c constraints.txt -e ." in calls
    assert course.make("lab").returncode == 0
    assert course.calls() == ["-m kda_lab.cli lab"], "the second run installs nothing"


def test_an_interrupted_install_starts_over(course):
    (course.folder / "no-network").touch()
    assert course.make("lab").returncode != 0
    assert "serving" not in course.make("lab").stdout
    (course.folder / "no-network").unlink()
    course.calls()
    assert "serving" in course.make("lab").stdout
    assert "-m pip install -c constraints.txt -e ." in course.calls()


def test_a_torn_environment_is_made_anew(course):
    (course.folder / ".venv/bin").mkdir(parents=True)
    assert course.make("lab").returncode == 0
    assert "-m venv --clear .venv" in course.calls()


def test_new_pins_are_installed(course):
    course.make("lab")
    course.calls()
    pins = course.folder / "constraints.txt"
    pins.write_text(pins.read_text() + "# newer\n")
    course.make("lab")
    assert "-m pip install -c constraints.txt -e ." in course.calls()


def test_too_old(course):
    course.python(version="3.9.2", too_old=1)
    told = course.make("lab")
    assert told.returncode != 0
    assert "Python 3.9.2 is too old, the course needs 3.11 or newer" in told.stdout + told.stderr
    assert not (course.folder / ".venv").exists()


@pytest.mark.parametrize(("version", "status"), [((3, 10, 14), 1), ((3, 11, 0), 0), ((4, 0), 0)])
def test_which_is_too_old(version, status):
    """The check itself, in a Python that thinks it is another version."""
    check = re.search(r"\$\(PYTHON\) -c '(.+?)'", (ROOT / "Makefile").read_text())[1]
    script = f"import sys; sys.version_info = {version}; {check}"
    assert subprocess.run([sys.executable, "-c", script]).returncode == status


def test_no_python(course):
    told = course.make("lab", python="python-of-nowhere")
    assert told.returncode != 0
    assert "no python-of-nowhere here" in told.stdout + told.stderr


def test_no_venv_module(course):
    course.python(venv="mkdir -p .venv/bin; exit 1;")
    told = course.make("lab")
    assert told.returncode != 0
    assert "apt install python3-venv" in told.stdout + told.stderr
    assert not (course.folder / ".venv").exists(), "half an environment is not left behind"


def test_the_tests_need_the_tools_of_development(course):
    course.make("lint")
    assert "-m pip install -c constraints.txt -e .[dev]" in course.calls()
