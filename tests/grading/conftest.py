"""A course folder of its own for tests that edit exercises or keep progress."""

import pytest

from kda_lab.grading import source


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A fresh course folder with ex04's stub, as the working directory."""
    file = source.exercise_file("ex04")
    for name in ("exercises", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "exercises" / file.filename).write_text(file.stub)
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv("KDA_LAB_PROGRESS", raising=False)
    return tmp_path
