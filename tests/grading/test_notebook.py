"""What a notebook calls: never raises, says the same when nothing was done, and is quick."""

import subprocess
import sys
import time

import pytest

from kda_lab.grading import notebook, runner, source, store
from kda_lab.grading.notebook import check, hint, predict, reveal, yours

FILE = source.exercise_file("ex04")
STEP, WHOLE = "ex04.kda_step", "ex04.kda_recurrent"
WRONG = FILE.text.replace("g.exp()[:, None] * S", "S")


def put(course, text: str) -> None:
    (course / "exercises" / FILE.filename).write_text(text)


def test_check_of_a_stub_says_what_to_do(course):
    shown = check(STEP)
    assert repr(shown).splitlines() == [
        f"{STEP}: not attempted yet, 0 of 3 points",
        f"Edit exercises/{FILE.filename}, about 15 minutes. A hint: kda-lab hint {STEP}",
    ]
    assert "not attempted yet" in shown._repr_html_()
    assert store.read()["attempts"] == {}


def test_check_of_a_wrong_answer_says_what_where_why_and_try(course):
    put(course, WRONG)
    shown = check(STEP)
    for part in (
        "not yet right, 0 of 3 points",
        "[hand-worked]",
        "Why: ",
        "Looks like the memory never decays",
        "Try: ",
    ):
        assert part in repr(shown) and part in shown._repr_html_()
    assert "model solution" not in repr(shown)
    assert store.read()["attempts"] == {STEP: 1}


def test_check_of_a_right_answer_shows_the_model_beside_it(course):
    put(
        course,
        notebook.clean(FILE.text).replace(
            "    u = beta * (v - S.T @ k)  #",
            "    surprise = v - S.T @ k\n    u = beta * surprise  #",
        ),
    )
    shown = check(STEP)
    said = source.statement(STEP)
    assert "right, 3 of 3 points" in repr(shown) and said.why in repr(shown)
    page = shown._repr_html_()
    assert (
        "surprise = v" in page and "u = beta * (v - S.T @ k)" in page and "# solution" not in page
    )
    assert ">>>" not in page.split("<pre")[1]


def test_check_never_raises(course, monkeypatch):
    assert "ex04.nothing" in repr(check("ex04.nothing"))
    put(course, "def kda_step(:")
    assert "SyntaxError" in repr(check(STEP))
    (course / "exercises" / FILE.filename).write_bytes(b"\xff\xfe")
    assert "not attempted" in repr(check(STEP)) or "cannot be read" in repr(check(STEP))
    put(course, WRONG)
    monkeypatch.setattr(notebook, "judge", lambda _: 1 / 0)
    assert "ZeroDivisionError" in repr(check(STEP))


def test_learners_text_is_escaped(course):
    put(
        course,
        notebook.clean(FILE.text).replace(
            "S = g.exp()[:, None] * S", "print('<script>x</script>'); raise ValueError('<b>hm</b>')"
        ),
    )
    page = check(STEP)._repr_html_()
    assert "<script>" not in page and "<b>hm" not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("text", [WRONG, FILE.text], ids=["wrong", "right"])
@pytest.mark.parametrize("exercise_id", FILE.statements)
def test_a_verdict_takes_less_than_two_seconds(course, exercise_id, text):
    put(course, text)
    check(exercise_id)  # the waiting process is started when the notebook's set-up cell runs
    start = time.process_time(), time.perf_counter()
    check(exercise_id)
    own, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    assert own < 2, f"{own:.2f} s of processor, {wall:.2f} s in all"
    assert wall < 6, "three busy neighbours at most"


def test_yours_is_the_model_until_yours_passes(course, capsys):
    assert yours(STEP, say=True) is source.model(STEP)
    put(course, WRONG)
    assert yours(STEP, say=True) is source.model(STEP)
    assert yours(WHOLE, say=True).__module__ != source.model(WHOLE).__module__  # that one is right
    assert capsys.readouterr().out.splitlines() == [
        f"{STEP}: the model solution",
        f"{STEP}: the model solution",
        f"{WHOLE}: yours",
    ]
    assert yours(STEP) is source.model(STEP) and capsys.readouterr().out == ""
    with pytest.raises(KeyError, match=r"ex04\.nothing"):
        yours("ex04.nothing")


def test_yours_asks_once_for_every_text(course, monkeypatch):
    put(course, FILE.text)
    calls = []
    real = notebook.judge
    monkeypatch.setattr(notebook, "judge", lambda key: calls.append(key) or real(key))
    yours(STEP), yours(STEP)
    put(course, FILE.text + "\n")
    yours(STEP)
    assert calls == [STEP, STEP]


def test_a_prediction_looks_the_same_before_and_after_a_guess(course):
    ask = predict("04-order", "Which comes first?", ["decay", "erase"])
    bundle = ask._repr_mimebundle_()
    assert bundle["text/plain"] == "Your guess first: Which comes first? (decay, erase)"
    before = {k: v for k, v in bundle.items() if k.startswith("text/")}
    store.put("guesses", "04-order", "erase")
    again = predict("04-order", "Which comes first?", ["decay", "erase"])._repr_mimebundle_()
    assert {k: v for k, v in again.items() if k.startswith("text/")} == before


def test_a_choice_is_kept_and_compared(course):
    answer = ("04-order", "decay", "The prediction must see the decayed memory.")
    assert repr(reveal(*answer)) == "Answer: decay. The prediction must see the decayed memory."
    buttons = predict("04-order", "Which?", ["decay", "erase"]).widget().children[1].children[0]
    buttons.value = "erase"
    assert repr(reveal(*answer)).endswith("You guessed erase.")
    buttons.value = "decay"
    assert repr(reveal(*answer)).endswith("You guessed it.")
    assert (
        predict("04-order", "Which?", ["decay", "erase"]).widget().children[1].children[0].value
        == "decay"
    )


@pytest.mark.parametrize(
    ("typed", "says"),
    [("65,536", "You guessed 65,536: exactly."), ("128", "You guessed 128, 512 times too little."),
     ("6.5e4", "You guessed 65,000, off by 536."), ("nothing", ""), ("nan", "")],
)  # fmt: skip
def test_a_number_is_kept_and_compared(course, typed, says):
    field = predict("04-bytes", "How many?", unit="bytes").widget().children[1].children[0]
    field.value = typed
    assert (
        repr(reveal("04-bytes", 65536, "128 * 128 * 4."))
        == f"Answer: 65,536. 128 * 128 * 4. {says}".strip()
    )


def test_hint_in_a_notebook_is_the_command(course):
    assert "hint 1 of 3" in repr(hint(STEP)) and store.hint_level(STEP) == 1
    assert "ex04.nothing" in repr(hint("ex04.nothing"))


def test_the_set_up_cell_gives_what_lessons_call():
    names = "check, yours, predict, reveal, hint, show, card, palette, np, torch, plt, kda_lab"
    line = f"from kda_lab.course import *; {names}"
    env_line = [sys.executable, "-c", f"{line}; print(torch.rand(1).item())"]
    seen = {
        subprocess.run(
            env_line, capture_output=True, text=True, check=True, cwd=source.PACKAGE.parent
        ).stdout
        for _ in range(2)
    }
    assert len(seen) == 1, "the same random numbers in every run"


def test_nothing_waits_behind_a_closed_nursery():
    runner.nursery()
    process = runner.nursery().process
    runner.close_nursery()
    assert process.poll() is not None
