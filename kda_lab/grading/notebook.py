"""What a notebook calls: `check`, `yours`, `predict`, `reveal`, `hint`. None of them ever raises."""

import ast
import hashlib
import html
import math
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kda_lab.grading import hints, source, store
from kda_lab.grading.engine import Verdict, verdict
from kda_lab.grading.runner import Submission
from kda_lab.palette import PALETTE

COLOURS = {"passed": "gate", "failed": "error", "error": "error", "timeout": "error"}
TITLES = {
    "passed": "right",
    "failed": "not yet right",
    "not_attempted": "not attempted yet",
    "error": "your code raised an error",
    "timeout": "no answer in time",
}


@dataclass(frozen=True)
class Shown:
    """Something with a plain-text and an HTML form."""

    text: str
    markup: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.markup


# ---- check ------------------------------------------------------------------------------------------


def check(exercise_id: str) -> Shown:
    """The verdict on one exercise of the course folder, for instance `check("ex04.kda_step")`."""
    try:
        return show_verdict(judge(exercise_id))
    except Exception as e:  # a lesson goes on whatever happens here
        return apology("check", e)


def apology(name: str, e: Exception) -> Shown:
    text = e.args[0] if isinstance(e, KeyError) else f"{type(e).__name__}: {e}"
    return Shown(f"{name}: {text}", box("error", f"{name}: {html.escape(str(text))}"))


def learner_file(exercise_id: str) -> tuple[source.ExerciseFile, str]:
    """The exercise file and the learner's text of it; the stub where there is none."""
    file = source.exercise_file(exercise_id)
    path = store.exercises_folder() / file.filename
    try:
        return file, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return file, file.stub


def judge(exercise_id: str) -> Verdict:
    """Grade one exercise as it stands on disk, and keep the verdict."""
    said = source.statement(exercise_id)
    file, text = learner_file(exercise_id)
    level = store.hint_level(exercise_id)
    if text == file.stub:
        message = f"Not attempted yet. For the first hint run: kda-lab hint {exercise_id}"
        return Verdict(
            exercise_id, "not_attempted", 0, said.points, message=message, hint_level=level
        )
    with Submission(store.exercises_folder(), file.filename) as submission:
        found = verdict(source.exercises(file)[exercise_id], said, submission, level)
    store.remember([found.record()])
    return found


def show_verdict(v: Verdict) -> Shown:
    said = source.statement(v.id)
    file = source.exercise_file(v.id)
    title = f"{v.id}: {TITLES[v.status]}, {v.points} of {v.max_points} points"
    if v.status == "passed" and file.cuda:
        title += f", on the host and on the {v.gpu}" if v.gpu else ", on the host"
    text, parts = [title], []
    if v.status == "not_attempted":
        line = f"Edit exercises/{file.filename}, about {said.minutes} minutes. A hint: kda-lab hint {v.id}"
        text.append(line)
        parts.append(f"<p>{html.escape(line)}</p>")
    elif v.status != "passed":
        text.append(v.message)
        first, *rest = v.message.splitlines()
        parts.append(f"<p><b>{html.escape(first)}</b></p>")
        parts += [f"<p>{html.escape(line)}</p>" for line in rest]
    if v.printed:
        text.append("Your code printed:\n" + v.printed)
        parts.append(f"<p>Your code printed:</p>{pre(v.printed)}")
    if v.status == "passed":
        own = source.function_text(learner_file(v.id)[1], file.suffix, said.name) or ""
        model = clean(said.source)
        text += [said.why, "The model solution:", model]
        parts.append(f"<p>{html.escape(said.why)}</p>")
        sides = (("Yours", own), ("The model solution", model))
        columns = "".join(
            f'<div style="flex:1 1 22em;min-width:0"><b>{name}</b>{pre(body(code))}</div>'
            for name, code in sides
        )
        parts.append(f'<div style="display:flex;flex-wrap:wrap;gap:1em">{columns}</div>')
    return Shown("\n".join(text), box(v.status, html.escape(title), "".join(parts)))


def clean(text: str) -> str:
    """A model function without its markers."""
    lines = text.splitlines()
    return "\n".join(x for x in lines if not source.BEGIN.match(x) and not source.END.match(x))


def body(text: str) -> str:
    """A function without its docstring: what there is to compare."""
    try:
        node = ast.parse(text).body[0]
    except (SyntaxError, IndexError):
        return text
    if (
        not isinstance(node, ast.FunctionDef)
        or ast.get_docstring(node) is None
        or len(node.body) < 2
    ):
        return text
    lines = text.splitlines()
    return "\n".join(lines[: node.body[0].lineno - 1] + lines[node.body[0].end_lineno :])


def pre(text: str) -> str:
    style = "overflow-x:auto;margin:.3em 0;padding:.5em;border:1px solid #8884;white-space:pre"
    return f'<pre style="{style}">{html.escape(text)}</pre>'


def box(status: str, title: str, inner: str = "") -> str:
    meaning = COLOURS.get(status)
    edge = PALETTE["light"][meaning] if meaning else "#888888"
    style = f"border-left:6px solid {edge};padding:.2em .8em;margin:.4em 0"
    return f'<div style="{style}"><p><b>{title}</b></p>{inner}</div>'


# ---- yours ------------------------------------------------------------------------------------------


def yours(exercise_id: str, say: bool = False) -> Callable[..., Any]:
    """The learner's function once it passes, the model solution until then (always, of a CUDA exercise).

    exercise_id: such as "ex04.kda_step"; KeyError for an unknown one. say: print which it is.
    """
    name = source.statement(exercise_id).name
    function, whose = source.model(exercise_id), "the model solution"
    try:
        file, text = learner_file(exercise_id)
        if text != file.stub and not file.cuda and passes(exercise_id, file, text):
            module = source.load(text, f"yours_{file.key}")
            function, whose = getattr(module, name), "yours"
    except Exception:  # a file that cannot be graded or loaded is not theirs to use yet
        traceback.print_exc(limit=1, file=sys.stderr)
    if say:
        print(f"{exercise_id}: {whose}")
    return function


def passes(exercise_id: str, file: source.ExerciseFile, text: str) -> bool:
    """Whether this text passes; asked once for every text."""
    digest = hashlib.sha256("\0".join([exercise_id, text, file.text]).encode()).hexdigest()[:16]
    if _passing.get(exercise_id, ("", False))[0] != digest:
        _passing[exercise_id] = (digest, judge(exercise_id).status == "passed")
    return _passing[exercise_id][1]


_passing: dict[str, tuple[str, bool]] = {}


# ---- predict and reveal ---------------------------------------------------------------------------


class Prediction:
    """A question before the answer: a widget where one can click, plain text everywhere else.

    The text says the same whether a guess was made or not, so that a stored notebook stays as it is.
    """

    def __init__(self, key: str, question: str, choices: list[str] | None, unit: str):
        self.key, self.question, self.choices, self.unit = key, question, choices, unit

    def __repr__(self) -> str:
        ask = ", ".join(self.choices) if self.choices else f"a number{self.in_unit()}"
        return f"Your guess first: {self.question} ({ask})"

    def in_unit(self) -> str:
        return f" in {self.unit}" if self.unit else ""

    def markup(self) -> str:
        ask = "".join(f"<li>{html.escape(c)}</li>" for c in self.choices or [])
        ask = f"<ul>{ask}</ul>" if ask else f"<p>A number{html.escape(self.in_unit())}.</p>"
        return box("guess", f"Your guess first: {html.escape(self.question)}", ask)

    def widget(self):
        """Choices as buttons, or a field for a number; every change is kept at once."""
        import ipywidgets as w

        kept = store.read()["guesses"].get(self.key)
        said = w.HTML()

        def keep(value) -> None:
            store.put("guesses", self.key, value)
            said.value = f"Kept: <b>{html.escape(str(value))}</b>. Now look."

        if self.choices:
            own = kept if kept in self.choices else None
            control = w.ToggleButtons(
                options=self.choices, value=own, style={"button_width": "auto"}
            )
            control.observe(lambda change: keep(change["new"]), "value")
        else:
            text = format(kept, "g") if is_guess(kept) else ""
            control = w.Text(
                value=text, placeholder="a number, then Enter", continuous_update=False
            )

            def parse(change) -> None:
                try:
                    keep(float(change["new"].replace(",", "").replace("_", "")))
                except ValueError:
                    said.value = "That is not a number: try 4096 or 6.5e4."

            control.observe(parse, "value")
        if kept is not None:
            said.value = f"Your guess: <b>{html.escape(str(kept))}</b>"
        question = w.HTML(f"<b>Your guess first: {html.escape(self.question)}</b>")
        row = [control] if self.choices else [control, w.Label(self.unit)]
        return w.VBox([question, w.HBox(row), said])

    def _repr_mimebundle_(self, **kwargs):
        bundle = {"text/plain": repr(self), "text/html": self.markup()}
        try:
            live = self.widget()._repr_mimebundle_()
            live = live[0] if isinstance(live, tuple) else live
            return {**live, **bundle}
        except Exception:  # no widgets here: the question still stands
            return bundle


def predict(
    key: str, question: str, choices: list[str] | None = None, unit: str = ""
) -> Prediction:
    """Ask for a guess before the answer. key: such as "04-order"; choices, or a number in `unit`."""
    return Prediction(key, question, choices, unit)


def is_guess(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def reveal(key: str, truth: str | float, because: str = "") -> Shown:
    """The answer to a prediction, beside the guess when there is one."""
    guess: Any = store.read()["guesses"].get(key)
    fact = (
        truth
        if isinstance(truth, str)
        else f"{truth:,.6g}"
        if isinstance(truth, float)
        else f"{truth:,}"
    )
    text = f"Answer: {fact}." + (f" {because}" if because else "")
    status = "guess"
    if isinstance(truth, str) and isinstance(guess, str):
        status = "passed" if guess == truth else "failed"
        text += " You guessed it." if guess == truth else f" You guessed {guess}."
    elif not isinstance(truth, str) and is_guess(guess):
        off = abs(guess - truth)
        status = "passed" if off <= 0.1 * abs(truth) else "failed"
        text += f" You guessed {guess:,g}" + (
            f", {compare(guess, truth)}." if off else ": exactly."
        )
    first, rest = text.split(". ", 1) if ". " in text else (text, "")
    inner = f"<p>{html.escape(rest)}</p>" if rest else ""
    return Shown(text, box(status, html.escape(first.rstrip(".")), inner))


def compare(guess: float, truth: float) -> str:
    """How far a guess is off, in words."""
    if truth and guess / truth > 0 and not 0.5 <= guess / truth <= 2:
        ratio = guess / truth
        return f"{ratio:.3g} times too much" if ratio > 1 else f"{1 / ratio:.3g} times too little"
    return f"off by {abs(guess - truth):,.3g}"


# ---- hint -------------------------------------------------------------------------------------------


def hint(exercise_id: str) -> Shown:
    """The next of three hints; the same as `kda-lab hint`."""
    try:
        text = hints.next_hint(exercise_id)
        return Shown(text, pre(text))
    except Exception as e:
        return apology("hint", e)
