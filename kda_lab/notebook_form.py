"""`kda-lab notebook run | normalise | check`: notebooks are stored executed, in one canonical form.

`run` executes in place with this interpreter, stores the outputs and normalises.
`normalise` rewrites the JSON: sorted keys, stable ids, counts from 1, a static picture for a live
widget, no paths of this machine. `check` refuses what `normalise` would change and what a lesson
must not be; each refusal names the cell and the remedy. With no paths, all of `notebooks/`.
"""

import argparse
import ast
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

SETUP = "from kda_lab.course import *"
CARD_FIELDS = {  # what the first cell of a lesson must say: the pattern that finds it
    "a title `# NN Title`": r"^# \d\d .+",
    "`**Claim.**` and one sentence": r"^\*\*Claim\.\*\* \S+",
    "`**You will**`, three list items": r"^\*\*You will\*\*\n+(?:- .++(?:\n  .++)*+\n?+){3}+(?!- )",
    "`**Minutes:**` and a number": r"\*\*Minutes:\*\* \d+",
    "`**Needs:**` and what it builds on": r"\*\*Needs:\*\* \S+",
    "`**Runs on:**` and CPU or GPU": r"\*\*Runs on:\*\* .*\b[CG]PU\b",
}
MAX_BYTES = 1_500_000
MAX_LINES = 40
CELLS = range(30, 51)
WORDS = range(1000, 2501)
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = ("image/png", "image/jpeg", "image/svg+xml")
TAGS = {  # what a cell may be tagged, and what for
    "nbval-ignore-output": "its output varies: timings, machines, the ledger",
    "raises-exception": "its error is the lesson",
}
CELL_METADATA = ("alt", "jupyter", "tags")
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python",
                      "pygments_lexer": "ipython3"},
}  # fmt: skip
ADDRESS = re.compile(r"(?<= at )0x[0-9a-fA-F]{6,}")
FOLDERS = "home|root|Users|tmp|private|var|opt|work|workspace|mnt|usr"
MACHINE_PATH = re.compile(rf"(?:(?<![\w./~-])(?:/(?:{FOLDERS})/|~/)|\b[A-Z]:\\)[\w.\\/-]+")


# --- one canonical form ---------------------------------------------------------------------------


def normalise(nb: NotebookNode, root: Path) -> NotebookNode:
    """The canonical form of `nb`; paths under `root` and the environment become relative ones."""
    nb = nbformat.from_dict(json.loads(json.dumps(nb)))
    nb.nbformat, nb.nbformat_minor = 4, 5
    nb.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    seen: set[str] = set()
    count = 0
    for cell in nb.cells:
        cell.source = cell.source.rstrip()
        cell.id = _stable_id(cell, seen)
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in CELL_METADATA and v}
        if "tags" in cell.metadata:  # nbval knows NBVAL_IGNORE_OUTPUT as a comment, not as a tag
            tags = {tag.lower().replace("_", "-") for tag in cell.metadata["tags"]}
            cell.metadata["tags"] = sorted(tags)
        if cell.cell_type != "code":
            continue
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        cell.outputs = [_normal_output(o, cell, root) for o in _joined_streams(cell.outputs)]
        _pass_alt_text(cell)
    return nb


def _stable_id(cell: NotebookNode, seen: set[str]) -> str:
    """The cell's id where it has one of its own, else one made of its source."""
    name = cell.get("id", "")
    if not name or name in seen:
        name = hashlib.sha1(cell.source.encode()).hexdigest()[:8]
        while name in seen:
            name = hashlib.sha1(name.encode()).hexdigest()[:8]
    seen.add(name)
    return name


def _joined_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Text printed to one stream as one output, after its carriage returns."""
    joined: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for out in outputs:
        if out.output_type == "stream" and out.name in streams:
            streams[out.name].text += out.text
            continue
        if out.output_type == "stream":
            streams[out.name] = out
        joined.append(out)
    for out in streams.values():
        out.text = re.sub(r"^.*\r(?=[^\n])", "", out.text, flags=re.MULTILINE)
    return joined


def _normal_output(out: NotebookNode, cell: NotebookNode, root: Path) -> NotebookNode:
    if out.output_type == "stream":
        out.text = _portable(out.text, root)
    elif out.output_type == "error":
        out.evalue = _portable(out.evalue, root)
        out.traceback = [_portable(line, root) for line in out.traceback]
    else:
        if WIDGET in out.data and any(m in out.data for m in ("text/html", *PICTURES)):
            del out.data[WIDGET]  # its model died with the kernel; the picture stays
        for mime, value in out.data.items():
            if mime in ("image/png", "image/jpeg"):
                out.data[mime] = "".join(value.split())
            elif isinstance(value, str) and mime.startswith("text/"):
                out.data[mime] = _portable(value, root)
        if out.output_type == "execute_result":
            out.execution_count = cell.execution_count
    return out


def _pass_alt_text(cell: NotebookNode) -> None:
    """Gives a cell's pictures its metadata `alt`: one text, or a list with one for each picture."""
    alts = cell.metadata.get("alt", [])
    alts = [alts] if isinstance(alts, str) else list(alts)
    for out, mime in _output_pictures(cell):
        if alts:
            out.metadata.setdefault(mime, {})["alt"] = alts.pop(0) if len(alts) > 1 else alts[0]


def _output_pictures(cell: NotebookNode) -> Iterator[tuple[NotebookNode, str]]:
    for out in cell.get("outputs", []):
        for mime in PICTURES:
            if mime in out.get("data", {}):
                yield out, mime


def _portable(text: str, root: Path) -> str:
    """`text` without this machine's folders and without memory addresses."""
    places = [(str(root), ""), (sys.prefix, ".venv")]
    home = f"{Path.home()}/"
    places += [("~/" + p.removeprefix(home), name) for p, name in places if p.startswith(home)]
    for place, name in places:
        text = text.replace(place + "/", f"{name}/" if name else "").replace(place, name or ".")
    return ADDRESS.sub("0x...", text)


def canonical_text(nb: NotebookNode) -> str:
    """The file's exact text: sorted keys, one space of indent, a final newline."""
    return nbformat.writes(nb, version=4).rstrip("\n") + "\n"


def read(path: Path) -> NotebookNode:
    """The notebook as it lies there; nbformat's own reader would mend ids, at random."""
    return nbformat.v4.reads_json(path.read_text(encoding="utf-8"))


def normalise_file(path: Path) -> bool:
    """Rewrites `path` in canonical form; returns whether it changed."""
    before = path.read_text(encoding="utf-8")
    after = canonical_text(normalise(read(path), _root(path)))
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def _root(path: Path) -> Path:
    """The course folder that holds the notebook's folder."""
    return path.resolve().parent.parent


# --- execution ------------------------------------------------------------------------------------


def run_file(path: Path, timeout: int) -> None:
    """Executes `path` in its own folder and stores the outputs; left as it was if a cell fails.

    The reader is a newcomer: KDA_LAB_PROGRESS is an empty folder, nothing is predicted or solved.
    """
    from nbclient import NotebookClient

    nb = nbformat.read(path, as_version=4)
    started = time.monotonic()
    seconds: dict[int, float] = {}
    begun: dict[int, float] = {}

    def cell_begins(cell: NotebookNode, cell_index: int) -> None:
        begun[cell_index] = time.monotonic()
        if sys.stdout.isatty():
            print(f"\r{path.name}: cell {cell_index + 1} of {len(nb.cells)} ", end="", flush=True)

    def cell_ends(cell: NotebookNode, cell_index: int, execute_reply: dict) -> None:
        if cell_index in begun:
            seconds[cell_index] = time.monotonic() - begun[cell_index]

    client = NotebookClient(
        nb,
        timeout=timeout,
        kernel_name="python3",
        store_widget_state=False,
        resources={"metadata": {"path": str(path.resolve().parent)}},
        on_cell_start=cell_begins,
        on_cell_executed=cell_ends,
    )
    with tempfile.TemporaryDirectory(prefix="kda-lab-home-") as home:
        client.execute(env=os.environ | {"KDA_LAB_PROGRESS": home})
    path.write_text(canonical_text(normalise(nb, _root(path))), encoding="utf-8")
    slow, worst = max(seconds.items(), key=lambda item: item[1], default=(0, 0.0))
    end = "\r" if sys.stdout.isatty() else ""
    print(
        f"{end}{path.name}: {len(nb.cells)} cells in {time.monotonic() - started:.1f} s, "
        f"slowest is cell {slow + 1} with {worst:.1f} s",
        flush=True,
    )
    if worst > 60:
        print(f"  cell {slow + 1} takes over 60 s, the most that a lesson may ask of a reader")


# --- what a stored lesson must be -----------------------------------------------------------------


def problems(path: Path) -> list[str]:
    """Everything that keeps `path` from being a stored lesson: where it is and what to do."""
    text = path.read_text(encoding="utf-8")
    try:
        nb = read(path)
        canonical = canonical_text(normalise(nb, _root(path)))
    except (ValueError, AttributeError) as error:  # no JSON; no cells
        return [f"not a notebook: {error}"]
    found: list[str] = []
    if canonical != text:
        found.append(f"not in canonical form; run: kda-lab notebook normalise {path}")
    if len(text.encode()) > MAX_BYTES:
        size = f"{len(text.encode()):,} bytes"
        found.append(f"{size}, at most {MAX_BYTES:,}: make figures smaller or fewer")
    if len(nb.cells) not in CELLS:
        found.append(f"{len(nb.cells)} cells; a lesson has {CELLS[0]} to {CELLS[-1]}")
    words = sum(prose_words(c.source) for c in nb.cells if c.cell_type == "markdown")
    if words not in WORDS:
        found.append(f"{words:,} words of prose; a lesson has {WORDS[0]:,} to {WORDS[-1]:,}")
    found += _card_problems(nb)
    code = [c for c in nb.cells if c.cell_type == "code"]
    if not code or code[0].source != SETUP:
        found.append(f"the first code cell must be exactly `{SETUP}`")
    if not any(True for c in code for _ in _stored_pictures(c)):
        found.append("no stored picture: execute it, and draw at least one")
    for number, cell in enumerate(nb.cells, 1):
        found += [f"cell {number} ({cell.id}): {p}" for p in _cell_problems(cell)]
    return found


def _card_problems(nb: NotebookNode) -> Iterator[str]:
    if not nb.cells or nb.cells[0].cell_type != "markdown":
        yield "the first cell must be the lesson card, in markdown"
        return
    for field, pattern in CARD_FIELDS.items():
        if not re.search(pattern, nb.cells[0].source, re.MULTILINE):
            yield f"the lesson card (cell 1) lacks {field}"


def prose_words(markdown: str) -> int:
    """Words a reader reads: no code, formulas, tags or addresses of links."""
    unread = r"```.*?```|\$\$.*?\$\$|\$[^$\n]+\$|<[^>]+>|`[^`\n]*`|\]\([^)]*\)"
    markdown = re.sub(unread, " ", markdown, flags=re.DOTALL)
    return len(re.findall(r"[^\W_][\w'’-]*", markdown))


def _stored_pictures(cell: NotebookNode) -> Iterator[NotebookNode]:
    for out, _ in _output_pictures(cell):
        yield out
    for out in cell.get("outputs", []):
        if re.search(r"<svg|<img", out.get("data", {}).get("text/html", "")):
            yield out


def _cell_problems(cell: NotebookNode) -> Iterator[str]:
    html = [cell.source] if cell.cell_type == "markdown" else []
    html += [o.get("data", {}).get("text/html", "") for o in cell.get("outputs", [])]
    for tag in re.findall(r"<img\b[^>]*>", "\n".join(html)):
        if not re.search(r"\balt=([\"'])\s*[^\s\"'].*?\1", tag):
            yield "an <img> without alt text; say in its alt what the picture shows"
    for svg in re.findall(r"<svg\b.*?</svg>", "\n".join(html), re.DOTALL):
        if not re.search(r"\baria-label=|<title", svg):
            yield "an <svg> without alt text; give it role=img and an aria-label"
    if cell.cell_type == "markdown" and re.search(r"!\[\s*\]\(", cell.source):
        yield "an image without alt text; write ![what it shows](...)"
    for place in sorted(set(_machine_paths(cell))):
        yield f"a path of one machine, {place}; print a relative one"
    if cell.cell_type != "code":
        return
    lines = cell.source.count("\n") + 1
    if lines > MAX_LINES:
        yield f"{lines} lines of code, at most {MAX_LINES}; split it, or move part into kda_lab"
    tags = cell.metadata.get("tags", [])
    for tag in set(tags) - set(TAGS):
        yield f"the tag {tag}; a cell may have {' or '.join(TAGS)}"
    if cell.execution_count is None:
        yield "not executed; run: kda-lab notebook run"
    for out in cell.outputs:
        if out.output_type == "error" and "raises-exception" not in tags:
            yield f"a stored {out.ename}; mend it, or tag the cell raises-exception"
        if out.output_type == "stream" and out.name == "stderr":
            yield "text on stderr is stored; silence the warning at its cause"
        if WIDGET in out.get("data", {}):
            yield "a widget whose mime bundle lacks a static picture (image/png or text/html)"
    for out, mime in _output_pictures(cell):
        if not out.metadata.get(mime, {}).get("alt", "").strip():
            yield "a picture without alt text; write it into the cell's metadata `alt`"
    if _ends_in_semicolon(cell.source):
        yield "an expression ends in `;`, which nbval cannot compare; write `_ = ...`"


def _machine_paths(cell: NotebookNode) -> Iterable[str]:
    texts = [cell.source]
    for out in cell.get("outputs", []):
        texts += [out.get("text", ""), out.get("evalue", ""), *out.get("traceback", [])]
        data = out.get("data", {})
        texts += [v for mime, v in data.items() if isinstance(v, str) and mime.startswith("text/")]
    plain = re.sub(r"\x1b\[[0-9;]*m|data:image/[^\"')]*", "", "\n".join(texts))
    return MACHINE_PATH.findall(plain)


def _ends_in_semicolon(source: str) -> bool:
    """Whether the last statement is an expression silenced by `;`."""
    lines = ["pass" if re.match(r"\s*[%!?]", line) else line for line in source.splitlines()]
    try:
        body = ast.parse("\n".join(lines)).body
    except SyntaxError:
        return False
    if not body or not isinstance(last := body[-1], ast.Expr):
        return False
    assert last.end_lineno and last.end_col_offset
    rest = lines[last.end_lineno - 1].encode()[last.end_col_offset :]
    return rest.lstrip().startswith(b";")


# --- command line ---------------------------------------------------------------------------------


def _notebooks(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths or [Path("notebooks")]:
        found += sorted(path.glob("*.ipynb")) if path.is_dir() else [path]
    if missing := [p for p in found if not p.is_file()]:
        raise SystemExit(f"kda-lab notebook: no such file: {missing[0]}")
    if not found:
        raise SystemExit("kda-lab notebook: none here; name some, or go to the course folder")
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kda-lab notebook", description=__doc__)
    parser.add_argument("action", choices=("run", "normalise", "check"))
    parser.add_argument("paths", nargs="*", type=Path, help="files or folders (notebooks/)")
    parser.add_argument("--timeout", type=int, default=120, help="seconds a cell may take (120)")
    args = parser.parse_args(argv)
    bad = 0
    for path in _notebooks(args.paths):
        if args.action == "normalise":
            print(f"{path}: {'rewritten' if normalise_file(path) else 'unchanged'}")
        elif args.action == "run":
            try:
                run_file(path, args.timeout)
            except Exception as error:  # one notebook's failure is reported and the next one runs
                print(f"\n{path}: FAILED, file left as it was\n{error}", file=sys.stderr)
                bad += 1
        else:
            found = problems(path)
            bad += bool(found)
            print(f"{path}: {'ok' if not found else f'{len(found)} problem(s)'}")
            for problem in found:
                print(f"  {problem}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
