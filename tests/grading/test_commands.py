"""grade, hint, progress, reset, class and stubs, as typed."""

import csv
import json
import os
import subprocess
import sys

import pytest

from kda_lab import cli
from kda_lab.grading import grade, source, store, stubs

FILE = source.exercise_file("ex04")
STEP = "ex04.kda_step"
WRONG = FILE.text.replace("g.exp()[:, None] * S", "S")  # one mistake, in kda_step alone


def typed(line: str, capsys) -> tuple[int, str, str]:
    status = cli.main(line.split())
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def put(course, text: str) -> None:
    (course / "exercises" / FILE.filename).write_text(text)


def test_grade_follows_the_contract(course, capsys):
    put(course, WRONG)
    target = course / "verdicts.json"
    status, out, _ = typed(f"grade ex04 --json {target}", capsys)
    assert status == 1 and "11 of 14 points, 3 of 4 exercises passed" in out
    written = json.loads(target.read_text())
    assert list(written) == ["exercises"]
    step, *others = written["exercises"]
    assert step | {"message": ""} == {
        "id": STEP, "status": "failed", "points": 0, "max_points": 3, "failed_test": "hand-worked",
        "message": "", "hint_level": 0,
    }  # fmt: skip
    for part in ("[hand-worked] o[0] is", "Why: ", "Looks like the memory never decays", "Try: "):
        assert part in step["message"] and part in out
    assert all(v["status"] == "passed" and v["failed_test"] is None for v in others)


def test_grade_says_with_its_status_that_all_passed(course, capsys):
    put(course, FILE.text)
    assert typed("grade ex04", capsys)[0] == 0
    put(course, FILE.stub)
    status, out, _ = typed(f"grade {STEP}", capsys)
    assert status == 1 and "not attempted 0/3" in out


def test_grade_a_missing_file_is_an_error_not_unattempted(course, capsys):
    (course / "empty").mkdir()
    status, out, _ = typed(f"grade {STEP} --submission {course / 'empty'}", capsys)
    assert status == 1 and "error" in out and "ex04_recurrence.py is not in" in out


@pytest.mark.parametrize(
    "line",
    ["grade ex99", "grade ex04.nothing", "hint ex04", "hint ex04.no", "reset ex99", "class . ex99"],
)
def test_unknown_names_are_refused(course, capsys, line):
    status, _, err = typed(line, capsys)
    assert status == 2 and err.startswith(f"kda-lab {line.split()[0]}: ")


def test_grade_refuses_a_folder_that_is_not_there(course, capsys):
    status, _, err = typed("grade ex04 --submission nowhere", capsys)
    assert status == 2 and "nowhere" in err


def test_hints_come_one_at_a_time_and_are_counted(course, capsys):
    hints = source.statement(STEP).hints
    for level in (1, 2, 3, 3):
        status, out, _ = typed(f"hint {STEP}", capsys)
        assert status == 0
        assert [h.splitlines()[0] in out for h in hints] == [i < level for i in range(3)]
        assert store.hint_level(STEP) == level
    put(course, FILE.text)
    typed(f"grade {STEP} --json {course / 'v.json'}", capsys)
    assert json.loads((course / "v.json").read_text())["exercises"][0]["hint_level"] == 3


@pytest.mark.parametrize("key", ["ex04", "ex10"])
def test_reset_and_hints_serve_both_kinds_of_file(key, course, capsys):
    file = source.exercise_file(key)
    first = next(iter(file.statements))
    (course / "exercises" / file.filename).write_text(file.text)
    assert typed(f"reset {key}", capsys)[0] == 0
    assert (course / "exercises" / file.filename).read_text() == file.stub
    (kept,) = (course / ".kda_lab" / "kept").iterdir()
    assert kept.suffix == file.suffix and kept.read_text() == file.text
    status, out, _ = typed(f"hint {first}", capsys)
    assert status == 0 and file.statements[first].hints[0].splitlines()[0] in out


def test_a_notebook_may_have_two_files(course, capsys):
    files = source.notebook_files("ex13")
    assert [file.stem for file in files] == ["ex13_pipelines", "ex13_pipelines_cuda"]
    assert grade.selected(["ex13"]) == [key for file in files for key in file.statements]
    assert grade.selected(["ex13_pipelines_cuda"]) == list(files[1].statements)
    for file in files:
        (course / "exercises" / file.filename).write_text(file.text)
    assert typed("reset ex13_pipelines", capsys)[0] == 0
    texts = [(course / "exercises" / file.filename).read_text() for file in files]
    assert texts == [files[0].stub, files[1].text]
    assert typed("reset ex13", capsys)[0] == 0
    assert (course / "exercises" / files[1].filename).read_text() == files[1].stub


def test_progress_counts_attempts_points_and_hints(course, capsys):
    put(course, WRONG)
    typed(f"grade {STEP}", capsys)
    put(course, FILE.text)
    typed(f"grade {STEP}", capsys)
    typed(f"hint {STEP}", capsys)
    row = next(line for line in typed("progress", capsys)[1].splitlines() if line.startswith(STEP))
    assert row.split() == [STEP, "passed", "3/3", "2", "1"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"hints": 3, "verdicts": {"ex04.kda_step": 1}}',
        '{"hints": {"ex04.kda_step": 99}}',
    ],
)
def test_spoilt_progress_is_no_progress(course, capsys, text):
    (course / ".kda_lab").mkdir()
    (course / ".kda_lab" / "progress.json").write_text(text)
    status, out, _ = typed("progress", capsys)
    assert status == 0 and "0 of" in out
    assert store.hint_level(STEP) == 0


def test_reset_puts_the_stub_back_and_keeps_the_old_file(course, capsys):
    put(course, WRONG)
    status, _, _ = typed("reset ex04", capsys)
    assert status == 0 and (course / "exercises" / FILE.filename).read_text() == FILE.stub
    (kept,) = (course / ".kda_lab" / "kept").iterdir()
    assert kept.read_text() == WRONG


def test_class_rolls_up_one_folder_per_student(course, capsys):
    room = course / "room"
    for name, text in (("ada", FILE.text), ("ben", WRONG), ("cleo", FILE.stub)):
        (room / name).mkdir(parents=True)
        (room / name / FILE.filename).write_text(text)
    (room / "ada" / "exercises").mkdir()  # a whole course folder handed in
    (room / "ada" / FILE.filename).rename(room / "ada" / "exercises" / FILE.filename)
    (room / "ada" / ".kda_lab").mkdir()
    (room / "ada" / ".kda_lab" / "progress.json").write_text(json.dumps({"hints": {STEP: 2}}))
    (room / "=dev").mkdir()  # hands in nothing, and a formula for a name
    status, out, _ = typed(
        f"class {room} ex04 --csv {course}/all.csv --json {course}/all.json", capsys
    )
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["student", "ex04", "total", "passed", "hints"],
        ["=dev", "0/14", "0/14", "0/4", "0"],
        ["ada", "14/14", "14/14", "4/4", "2"],
        ["ben", "11/14", "11/14", "3/4", "0"],
        ["cleo", "0/14", "0/14", "0/4", "0"],
    ]
    rows = list(csv.DictReader((course / "all.csv").open()))
    assert len(rows) == 16 and rows[0]["student"] == "'=dev"
    ben = [r for r in rows if r["student"] == "ben"]
    assert [r["status"] for r in ben] == ["failed", "passed", "passed", "passed"]
    written = json.loads((course / "all.json").read_text())["students"]
    assert [(s["student"], s["points"]) for s in written] == [
        ("=dev", 0),
        ("ada", 14),
        ("ben", 11),
        ("cleo", 0),
    ]
    assert written[1]["exercises"][0]["hint_level"] == 2


def test_plain_pytest_grades_too(course):
    put(course, WRONG)
    path = source.PACKAGE / "grading" / "test_submission.py"
    env = {**os.environ, "PYTHONPATH": str(source.PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(path),
        "-k",
        "ex04 and not telling",
    ]
    done = subprocess.run(line, cwd=course, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "1 failed" in done.stdout and "Looks like the memory never decays" in done.stdout, (
        done.stdout
    )


def test_stubs_are_generated_into_any_folder(tmp_path):
    assert [p.name for p in stubs.write(tmp_path)] == [
        f.filename for f in source.exercise_files().values()
    ]
    assert stubs.write(tmp_path) == []
    for file in source.exercise_files().values():
        text = (tmp_path / file.filename).read_text()
        assert "solution" not in text.replace("solutions", "") and "# hint" not in text
        mark = "NOT_ATTEMPTED(" if file.cuda else "raise NotImplementedError"
        assert "// hint" not in text and text.count(mark) >= len(file.statements)


@pytest.mark.parametrize("key", ["ex04", "ex10"])
def test_drift_compares_committed_files(key, tmp_path):
    file = source.exercise_file(key)

    def git(*line: str) -> None:
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *line], check=True, capture_output=True)

    for folder, text in (("solutions", file.text), ("exercises", file.stub)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file.filename).write_text(text)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "course")
    assert stubs.drift(tmp_path) == []
    (tmp_path / "exercises" / file.filename).write_text(file.text)  # a learner solves it: no drift
    assert stubs.drift(tmp_path) == []
    git("commit", "-q", "-a", "-m", "an answer slipped in")
    assert stubs.drift(tmp_path) == [
        f"exercises/{file.filename} does not follow from solutions/{file.filename}: run kda-lab stubs"
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("# exercise kda_step: 3 points", "# exercise kda_step: many points", "cannot read"),
        ("# hint 2:", "# tip 2:", "needs hint 1, 2, 3 and why"),
        ("def kda_step(", "def kda_stop(", "must follow its header"),
        ("# end solution", "# end", "no '# end solution'"),
    ],
)
def test_broken_solutions_are_refused(old, new, says):
    text = (
        FILE.text.replace(old, new) if old == "# end solution" else FILE.text.replace(old, new, 1)
    )
    with pytest.raises(source.AuthoringError, match=says):
        source.parse(FILE.stem, text)


def test_a_mutant_whose_edit_does_not_fit_is_refused():
    from kda_lab.grading.spec import Mutant

    with pytest.raises(source.AuthoringError, match="occurs 0 times"):
        source.mutant_function(STEP, Mutant("x", "y", [("not there", "z")]))


def test_verdicts_are_written_in_one_step(tmp_path):
    grade.write(tmp_path / "deep" / "v.json", "new")
    assert (tmp_path / "deep" / "v.json").read_text() == "new"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["v.json"]
