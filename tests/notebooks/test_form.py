"""The form of stored notebooks: each refusal fires, rewriting is stable, and ours are in form."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kda_lab import notebook_form as form
from tests.notebooks.nbval_hooks import committed, committed_text, comparable

ROOT = Path(__file__).parents[2]
CARD = """# 05 Chunks: from T steps to T/C

**Claim.** A chunk is one triangular system.

**You will**
- derive it
- check it
- time it

**Minutes:** 45 · **Needs:** 04 · **Runs on:** CPU"""


def picture(alt: str = "a line going up") -> nbformat.NotebookNode:
    out = new_output("display_data", {"image/png": "iVBORw0KGgo="})
    out.metadata = {"image/png": {"alt": alt}} if alt else {}
    return out


def code(source: str, *outputs, tags: list[str] | None = None, **metadata):
    metadata |= {"tags": tags} if tags else {}
    return new_code_cell(source, outputs=list(outputs), execution_count=1, metadata=metadata)


def lesson() -> nbformat.NotebookNode:
    """A notebook without fault: card, set-up, a picture, thirty cells, enough words."""
    nb = new_notebook()
    nb.cells = [new_markdown_cell(CARD), code(form.SETUP), code("plt.plot(x)", picture())]
    nb.cells += [new_markdown_cell("Forty words of prose. " * 10) for _ in range(27)]
    for number, cell in enumerate(nb.cells):
        cell.id = f"cell-{number}"
    return nb


def store(nb: nbformat.NotebookNode, folder: Path) -> Path:
    (folder / "notebooks").mkdir(exist_ok=True)
    path = folder / "notebooks" / "05_chunks.ipynb"
    path.write_text(form.canonical_text(form.normalise(nb, folder)), encoding="utf-8")
    return path


def test_a_lesson_without_fault_is_not_refused(tmp_path):
    assert form.problems(store(lesson(), tmp_path)) == []


def set_cell(number: int, cell):
    return lambda nb: nb.cells.__setitem__(number, cell)


def add(cell):
    return lambda nb: nb.cells.append(cell)


def card_without(line: str):
    return set_cell(0, new_markdown_cell(CARD.replace(line, "")))


WIDGET = {form.WIDGET: {"model_id": "9"}, "text/plain": "IntSlider(value=0)"}
REFUSED = {
    "too few cells": (lambda nb: nb.cells.pop(), "29 cells; a lesson has 30 to 50"),
    "too many cells": (lambda nb: nb.cells.extend([code("x")] * 21), "51 cells"),
    "too few words": (
        lambda nb: nb.cells.__setitem__(slice(3, None), [code("x")] * 27),
        "30 words of prose; a lesson has 1,000 to 2,500",
    ),
    "too many words": (add(new_markdown_cell("word " * 1500)), "words of prose"),
    "no card": (lambda nb: nb.cells.insert(0, code(form.SETUP)), "must be the lesson card"),
    "card without title": (card_without("# 05 Chunks: from T steps to T/C"), "lacks a title"),
    "card without claim": (card_without("**Claim.**"), "lacks `**Claim.**`"),
    "card with two objectives": (card_without("- time it"), "three list items"),
    "card with four objectives": (
        set_cell(0, new_markdown_cell(CARD.replace("- time it", "- time it\n- more"))),
        "three list items",
    ),
    "card without minutes": (card_without("**Minutes:** 45 · "), "lacks `**Minutes:**`"),
    "card without needs": (card_without("**Needs:** 04 · "), "lacks `**Needs:**`"),
    "card without badge": (card_without("**Runs on:** CPU"), "lacks `**Runs on:**`"),
    "other set-up": (set_cell(1, code("import torch")), "must be exactly `from kda_lab.course"),
    "no picture": (set_cell(2, code("plt.plot(x)")), "no stored picture"),
    "picture without alt": (set_cell(2, code("plt.plot(x)", picture(""))), "picture without alt"),
    "img without alt": (add(new_markdown_cell('<img src="a.png">')), "<img> without alt text"),
    "img with empty alt": (add(new_markdown_cell('<img alt=" " src="a.png">')), "<img> without"),
    "svg without label": (
        add(code("w", new_output("display_data", {"text/html": "<svg><path/></svg>"}))),
        "<svg> without alt text",
    ),
    "markdown image without alt": (add(new_markdown_cell("![](a.png)")), "write ![what it shows]"),
    "not executed": (add(new_code_cell("x")), "not executed"),
    "stored error": (
        add(code("x", new_output("error", ename="ValueError", evalue="no", traceback=[]))),
        "a stored ValueError",
    ),
    "stderr": (
        add(code("x", new_output("stream", name="stderr", text="UserWarning"))),
        "text on stderr",
    ),
    "path in output": (
        add(code("x", new_output("stream", name="stdout", text="see /home/ada/kda/x.py"))),
        "/home/ada/kda/x.py",
    ),
    "path in source": (add(code("open('/Users/ada/x')")), "/Users/ada/x"),
    "path in a home": (add(code("open('~/kda/x')")), "~/kda/x"),
    "path in prose": (add(new_markdown_cell(r"Look into C:\Users\ada")), "a path of one machine"),
    "path in a traceback": (
        add(
            code(
                "x",
                new_output("error", ename="E", evalue="", traceback=["File \x1b[1m/opt/py/a.py"]),
                tags=["raises-exception"],
            )
        ),
        "/opt/py/a.py",
    ),
    "long cell": (add(code("x = 1\n" * 41 + "x = 2")), "42 lines of code"),
    "semicolon": (add(code("x = 1\nplt.plot(x);")), "an expression ends in `;`"),
    "semicolon after a magic": (add(code("%matplotlib inline\nf(1) ; # quiet")), "ends in `;`"),
    "unknown tag": (add(code("x", tags=["nbval-skip"])), "the tag nbval-skip"),
    "live widget alone": (
        add(code("w", new_output("display_data", dict(WIDGET)))),
        "lacks a static picture",
    ),
    "too large": (
        add(code("x", new_output("display_data", {"text/plain": "x" * 1_600_000}))),
        "at most 1,500,000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    change, message = REFUSED[name]
    nb = lesson()
    change(nb)
    found = form.problems(store(nb, tmp_path))
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('\n "nbformat": 4', '\n\n "nbformat": 4'),
        lambda text: text.replace('"id": "cell-3"', '"id": "cell-4"'),
        lambda text: text.replace('"metadata": {}', '"metadata": {"collapsed": true}', 1),
        lambda text: text.replace('"execution_count": 2', '"execution_count": 7'),
        lambda text: text.rstrip("\n"),
    ],
    ids=["whitespace", "id used twice", "metadata", "counts out of order", "no final newline"],
)
def test_not_canonical(change, tmp_path):
    path = store(lesson(), tmp_path)
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    twice = [form.canonical_text(form.normalise(form.read(path), tmp_path)) for _ in range(2)]
    assert twice[0] == twice[1], "no part of it is random"
    assert any("not in canonical form" in problem for problem in form.problems(path))
    assert form.normalise_file(path)
    assert form.problems(path) == []
    assert not form.normalise_file(path), "normalising twice changes nothing"


@pytest.mark.parametrize("text", ["{", "{}", "[1]"])
def test_not_a_notebook(text, tmp_path):
    path = store(lesson(), tmp_path)
    path.write_text(text)
    assert form.problems(path)[0].startswith("not a notebook")


def test_what_normalise_does(tmp_path):
    nb = lesson()
    streams = [new_output("stream", name="stdout", text=t) for t in ("10%\r50%", "\r100%\ndone")]
    where = f"{tmp_path}/kda_lab/ops.py and {sys.prefix}/lib/x.py, <f at 0x7f00aa>"
    html = {"text/html": '<img alt="bars" src="data:image/png;base64,AAAA">'}
    nb.cells += [
        code("loop()", *streams),
        code("trace()", new_output("stream", name="stdout", text=where)),
        code("widget", new_output("execute_result", WIDGET | html, execution_count=9)),
        code("two()", picture(""), picture(""), alt=["first", "second"]),
        code("one()", picture(""), alt="first"),
    ]
    nb.metadata = {"widgets": {"state": 1}, "kernelspec": {"name": "conda-env"}}
    nb.cells[2].metadata = {"execution": {"x": "2026"}, "tags": ["NBVAL_IGNORE_OUTPUT", "a"]}
    out = form.normalise(nb, tmp_path)
    progress, trace, widget, two, one = out.cells[-5:]
    assert [o.text for o in progress.outputs] == ["100%\ndone"]
    assert trace.outputs[0].text == "kda_lab/ops.py and .venv/lib/x.py, <f at 0x...>"
    assert widget.outputs[0].data == html | {"text/plain": "IntSlider(value=0)"}
    assert widget.outputs[0].execution_count == widget.execution_count == 5
    assert [o.metadata["image/png"]["alt"] for o in two.outputs] == ["first", "second"]
    assert one.outputs[0].metadata["image/png"]["alt"] == "first"
    assert out.metadata == form.NOTEBOOK_METADATA
    assert out.cells[2].metadata == {"tags": ["a", "nbval-ignore-output"]}
    assert nb.cells[-1].outputs[0].metadata == {}, "the notebook given is left alone"


def test_words_that_a_reader_reads():
    text = "Two words, $x_t + y$ `code here` [a link](http://x/y) <b>bold</b>\n```\nno words\n```"
    assert form.prose_words(text) == 5


def test_run_stores_outputs_and_leaves_a_failing_notebook_alone(tmp_path, capsys, monkeypatch):
    good, bad = lesson(), lesson()
    look = "print(os.path.basename(os.getcwd()), os.listdir(os.environ['KDA_LAB_PROGRESS']))"
    good.cells[1:3] = [code("import os"), code(look)]
    bad.cells[1:3] = [code("x = 1"), code("x / 0")]
    monkeypatch.setenv("KDA_LAB_PROGRESS", str(tmp_path))
    path = store(good, tmp_path)
    other = tmp_path / "notebooks" / "06_bad.ipynb"
    other.write_text(form.canonical_text(bad))
    before = other.read_text()
    assert form.main(["run", str(path), str(other)]) == 1
    told = capsys.readouterr()
    assert "05_chunks.ipynb: 30 cells" in told.out
    assert "06_bad.ipynb: FAILED" in told.err and "ZeroDivisionError" in told.err
    assert other.read_text() == before
    cell = nbformat.read(path, as_version=4).cells[2]
    assert cell.outputs[0].text == "notebooks []\n" and cell.execution_count == 2


def test_check_says_where(tmp_path, capsys):
    nb = lesson()
    nb.cells[2] = code("plt.plot(x);", picture())
    nb.cells[2].id = "plot"
    path = store(nb, tmp_path)
    assert form.main(["check", str(path)]) == 1
    assert "cell 3 (plot): an expression ends in `;`" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no such file"):
        form.main(["check", str(tmp_path / "gone.ipynb")])


# --- nbval's hook ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "data", "compared"),
    [
        ("print(1)", {"text/plain": "1"}, True),
        ('check("ex04.kda_recurrent")', {}, False),
        ('# the verdict\ncheck("ex04.kda_recurrent")', {}, False),
        ('f = yours("ex04.kda_recurrent")', {}, False),
        ('f, g = yours("ex04.kda_recurrent")', {}, False),
        ("checked(1)", {"text/plain": "1"}, True),
        ("w", {form.WIDGET: {}}, False),
        ("w", {"text/html": "<b>"}, False),
        ("w", {"image/png": "", "text/plain": "what the picture shows"}, True),
    ],
)
def test_which_cells_are_compared(source, data, compared):
    outputs = [new_output("display_data", data)] if data else []
    assert comparable(code(source, *outputs)) is compared


def test_nbval_reads_what_is_committed(tmp_path):
    path = store(lesson(), tmp_path)
    assert committed(str(path), 4).cells[0].source == CARD, "git does not know it: as it lies there"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    nb = lesson()
    nb.cells[0].source = "# my own words"
    store(nb, tmp_path)
    assert committed(str(path), 4).cells[0].source == CARD


# --- ours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.name)
def test_stored_lessons(path, tmp_path):
    """As committed: a learner's saved notebook is nobody's mistake."""
    (tmp_path / "notebooks").mkdir()
    copy = tmp_path / "notebooks" / path.name
    copy.write_text(committed_text(path), encoding="utf-8")
    assert form.problems(copy) == []
