"""Markdown tables drawn from the ledger, and their places in README and notebooks.

A table stands between two markers and is rewritten by `kda-lab ledger table`:

    <!-- ledger: forward strong -->
    <!-- /ledger -->
"""

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from kda_lab.bench import ledger, sources
from kda_lab.bench import workloads as wl
from kda_lab.native.rungs import RUNGS

NOTHING = "Nothing recorded yet for the sources that stand."
PEERS = {
    "fla": "fla",
    "flash_kda": "FlashKDA",
    "cudnn_fused": "cuDNN",
    "cudnn_plain": "cuDNN, inputs activated",
    "torch_compile": "compiled PyTorch",
}
MARKED = re.compile(r"(<!-- ledger: ([a-z0-9 _-]+?) -->\n).*?(<!-- /ledger -->)", re.DOTALL)
Rows = list[dict]


def markdown(head: list[str], body: Iterable[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(x: float | None, digits: int = 3) -> str:
    """x to `digits` significant digits without an exponent; a dash for nothing."""
    if x is None:
        return "-"
    return f"{x:.{digits}g}" if abs(x) < 10 ** (digits - 1) else f"{x:,.0f}"


def recorded(rows: Rows) -> str:
    """`Recorded on an NVIDIA H200, 2026-11-24.`"""
    gpus = dict.fromkeys(row["gpu"] for row in rows)
    dates = sorted({row["date"][:10] for row in rows})
    return f"Recorded on an {', an '.join(gpus)}, {' and '.join(dict.fromkeys((dates[0], dates[-1])))}."


def newest_gpu(rows: Rows) -> Rows:
    """The newest row of each measurement on the GPU that measured last."""
    on_gpu = [row for row in rows if row["gpu"]]
    return (
        [r for r in ledger.newest(on_gpu).values() if r["gpu"] == on_gpu[-1]["gpu"]]
        if on_gpu
        else []
    )


def milliseconds(row: dict) -> float:
    """Graph replay where capturing worked, else eager."""
    return row["graph_ms"] or row["eager_ms"]


def timed(rows: Rows, direction: str, gate: str) -> dict[str, dict[str, dict]]:
    """workload -> rung -> row, workloads in the contract's order, rungs in ladder order."""
    found: dict[str, dict[str, dict]] = {}
    for row in newest_gpu([r for r in rows if r["direction"] == direction and r["gate"] == gate]):
        found.setdefault(row["workload"], {})[row["rung"]] = row
    order = [w for w in wl.ORDER if w in found] + sorted(set(found) - set(wl.ORDER))
    ladder = [*RUNGS, "auto"]
    return {w: {r: found[w][r] for r in ladder if r in found[w]} for w in order}


def grid(rows: Rows, direction: str, gate: str) -> str:
    """One line a workload: the floor, every rung, every peer, in milliseconds."""
    by_workload = timed(rows, direction, gate)
    if not any(by_workload.values()):
        return NOTHING
    flat = [row for by_rung in by_workload.values() for row in by_rung.values()]
    rungs = [r for r in [*RUNGS, "auto"] if any(row["rung"] == r for row in flat)]
    peers = [p for p in PEERS if any(p in row["peers"] for row in flat)]
    body = []
    for workload, by_rung in by_workload.items():
        if not by_rung:
            continue
        any_row = list(by_rung.values())[-1]
        peer_ms = {p: t for row in by_rung.values() for p, t in row["peers"].items()}
        cells = [number(milliseconds(by_rung[r])) if r in by_rung else "-" for r in rungs]
        body.append(
            [
                workload,
                number(any_row["floor_ms"]),
                *cells,
                *(number(peer_ms.get(p)) for p in peers),
            ]
        )
    head = ["tokens-heads", "floor", *rungs, *(PEERS[p] for p in peers)]
    what = "One decode step" if direction == "decode" else f"Forward, {gate} gate"
    return f"{what}, milliseconds. {recorded(flat)}\n\n{markdown(head, body)}"


def ladder(rows: Rows, workload: str = "8192-H96", gate: str = "strong") -> str:
    """The rungs on one workload: idea, time, times the floor, error, workspace, against each peer."""
    by_rung = timed(rows, "forward", gate).get(workload, {})
    if not by_rung:
        return NOTHING
    peers = [p for p in PEERS if any(p in row["peers"] for row in by_rung.values())]
    body = []
    for rung, row in by_rung.items():
        ms = milliseconds(row)
        idea = (
            RUNGS[rung].idea
            if rung in RUNGS
            else f"the public path: {row.get('served_by', '')} here"
        )
        ratios = [f"{row['peers'][p] / ms:.2f}" if p in row["peers"] else "-" for p in peers]
        scratch = f"{row['workspace_bytes'] / 2**20:,.0f}"
        body.append(
            [
                f"**{rung}** {idea}",
                number(ms),
                f"{ms / row['floor_ms']:.1f}",
                f"{row['error']:.1e}",
                scratch,
                *ratios,
            ]
        )
    head = ["rung", "ms", "x floor", "error", "workspace MiB", *(f"x {PEERS[p]}" for p in peers)]
    what = f"{workload}, {gate} gate; x floor: slower than the bytes allow; x peer: faster than that peer."
    return f"{what} {recorded(list(by_rung.values()))}\n\n{markdown(head, body)}"


def cpu(rows: Rows) -> str:
    """The implementations on a CPU: time, against the textbook, against the arithmetic floor."""
    mine = ledger.newest(
        [row for row in rows if row["gpu"] == "" and row["direction"] == "forward"]
    )
    found = {row["rung"]: row for row in mine.values()}
    if not found:
        return NOTHING
    textbook = found.get("textbook", {}).get("eager_ms")
    body = [
        [
            rung, number(row["eager_ms"]), f"{textbook / row['eager_ms']:.1f}" if textbook else "-",
            f"{row['eager_ms'] / row['floor_ms']:.1f}", f"{row['error']:.0e}",
        ]
        for rung, row in sorted(found.items(), key=lambda item: -item[1]["eager_ms"])
    ]  # fmt: skip
    floor = next(iter(found.values()))
    head = ["implementation", "ms", "x textbook", "x floor", "error"]
    where = (
        f"T = 4096, H = 8, K = V = 128, fp32. Floor {number(floor['floor_ms'])} ms: 114,688 FLOP a "
        "token and head at the measured rate of a matrix product."
    )
    return f"{where}\n\n{markdown(head, body)}"


def reports(_: Rows) -> str:
    """The newest correctness report of every rung."""
    body = []
    for rung in sources.gpu_rungs():
        cases = ledger.report(rung)
        worst = [row.get(f"worst_{what}") for what in ("o", "state") for row in cases.values()]
        passed = sum(row["status"] == "passed" for row in cases.values())
        declined = sum(row["status"] == "declined" for row in cases.values())
        gpus = ", ".join(dict.fromkeys(row["gpu"] for row in cases.values()))
        half = len(cases)
        o, state = (
            max((x for x in part if x is not None), default=None)
            for part in (worst[:half], worst[half:])
        )
        errors = ["-" if x is None else f"{x:.1e}" for x in (o, state)]
        verdict = "passed" if ledger.verdict(rung) is None else "no current report"
        body.append([rung, verdict, str(passed), str(declined), *errors, gpus or "-"])
    head = ["rung", "verdict", "cases passed", "declined", "worst o", "worst state", "on"]
    return markdown(head, body)


def drop_ins(_: Rows) -> str:
    """Proofs of the drop-ins: cases served and left to the original, and how far from fp64 both are."""
    rows = list(ledger.drop_ins().values())
    if not rows:
        return NOTHING
    body, lines = [], []
    for part, original in (("fla", "fla"), ("flash_kda", "FlashKDA")):
        mine = [row for row in rows if row["part"] == part]
        served = [row for row in mine if row["status"] in ("passed", "failed")]
        passed = sum(row["status"] == "passed" for row in served)
        worst = [
            max((row[name] for row in served if name in row), default=None)
            for name in ("error", "state_error", "their_error", "their_state_error", "apart")
        ]
        if mine:
            cells = ["-" if x is None else f"{x:.1e}" for x in worst]
            body.append([original, f"{passed} of {len(served)}", str(len(mine) - len(served)), *cells])
    for row in rows:
        if row["part"] == "model" and row["status"] == "passed":
            lines.append(
                f"An unmodified fla model ({row['case']}): logits {row['apart']:.1e} apart, "
                f"{number(row['eager_ms'])} ms with our backend, {number(row['their_ms'])} ms without."
            )
    head = [
        "in place of", "cases passed", "declined", "worst o", "worst state", "its worst o",
        "its worst state", "farthest apart",
    ]  # fmt: skip
    what = f"Relative L2 to the fp64 recurrence. {recorded(rows)}"
    return "\n\n".join([what, markdown(head, body), *lines])


def micro(rows: Rows, program: str = "") -> str:
    """Microbenchmarks and skeletons, or one of them: what was measured, and what had been predicted."""
    mine = newest_gpu([r for r in rows if r["direction"] == "micro" and program in ("", r["rung"])])
    if not mine:
        return NOTHING
    body = [
        [
            row["workload"] if program else f"{row['rung']}: {row['workload']}",
            number(row["value"], 4),
            number(row.get("predicted"), 4),
            row["unit"],
        ]
        for row in mine
    ]
    return f"{recorded(mine)}\n\n{markdown([program or 'microbenchmark', 'measured', 'predicted', 'unit'], body)}"


def profiled(rungs: Iterable[str], workload: str) -> Rows:
    """The newest current profile of each of these rungs on a workload, with its GPU and date."""
    found = {
        row["rung"]: row | {"gpu": entry["gpu"], "date": entry["date"]}
        for entry, row in ledger.current(("profile",))
        if row["workload"] == workload
    }
    return [found[rung] for rung in rungs if rung in found]


def compiled(rows: Rows) -> str:
    """Registers and spills of every kernel in these profiles, as the compiler reported them."""
    rows = [row for row in rows if row.get("compiled")]
    if not rows:
        return NOTHING
    body = [
        [f"**{row['rung']}** {k['name']}", str(k["registers"]), str(k["spilled"])]
        for row in rows
        for k in row["compiled"]["kernels"]
    ]
    return f"{recorded(rows)}\n\n{markdown(['kernel', 'registers', 'bytes spilled'], body)}"


def instructions(rows: Rows, mnemonics: dict[str, str]) -> str:
    """How often the machine code of these profiles' rungs has each mnemonic; {pattern of its beginning: heading}."""
    rows = [row for row in rows if row.get("compiled")]
    if not rows:
        return NOTHING
    body = []
    for row in rows:
        sass = row["compiled"]["sass"].items()
        sums = [sum(n for word, n in sass if re.match(begin, word)) for begin in mnemonics]
        body.append([f"**{row['rung']}**, all its kernels", *map(str, sums)])
    return f"{recorded(rows)}\n\n{markdown(['machine code', *mnemonics.values()], body)}"


TABLES: dict[str, Callable[[Rows], str]] = {
    **{f"forward {gate}": lambda rows, gate=gate: grid(rows, "forward", gate) for gate in wl.GATES},
    **{f"ladder {w.name.lower()}": lambda rows, w=w: ladder(rows, w.name) for w in wl.FORWARD},
    "ladder": ladder,
    "decode": lambda rows: grid(rows, "decode", "strong"),
    "cpu": cpu,
    "reports": reports,
    "micro": micro,
    "drop-ins": drop_ins,
}


def table(name: str) -> Callable[[Rows], str] | None:
    """What draws the table `name`; `micro NAME` is one program's."""
    program = name.removeprefix("micro ")
    if program in sources.programs():
        return lambda rows: micro(rows, program)
    return TABLES.get(name)


def everything(rows: Rows) -> str:
    """All tables that have something to say, for the terminal."""
    names = [
        "cpu",
        *(f"forward {gate}" for gate in wl.GATES),
        "ladder",
        "decode",
        "micro",
        "reports",
        "drop-ins",
    ]
    found = [(name, TABLES[name](rows)) for name in names]
    return "\n\n".join(f"{name}\n\n{table}" for name, table in found if table != NOTHING) or NOTHING


def fill(text: str, rows: Rows, where: str) -> str:
    """`text` with every marked table redrawn. Raises LedgerError naming a table that does not exist."""

    def redraw(match: re.Match) -> str:
        name = match[2].strip()
        draw = table(name)
        if draw is None:
            known = [*TABLES, *(f"micro {program}" for program in sources.programs())]
            raise ledger.LedgerError(f"{where}: no table {name!r}; they are {', '.join(known)}")
        return f"{match[1]}{draw(rows)}\n{match[3]}"

    return MARKED.sub(redraw, text)


def fill_file(path: Path, rows: Rows) -> str:
    """The file's text with its tables redrawn; in a notebook, those of its Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return fill(text, rows, path.name)
    if "<!-- ledger:" not in text:
        return text
    import nbformat

    from kda_lab.notebook_form import canonical_text

    notebook = nbformat.v4.reads_json(text)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, rows, path.name)
    return canonical_text(notebook)


def update(paths: list[Path], check: bool) -> int:
    """Redraws the tables of these files (default README.md, kernels/DESIGN.md and notebooks).

    With `check` only compares.
    """
    texts = (Path("README.md"), Path("kernels/DESIGN.md"))
    paths = paths or [p for p in (*texts, *sorted(Path("notebooks").glob("*.ipynb"))) if p.exists()]
    rows, old = ledger.show(), []
    for path in paths:
        text = fill_file(path, rows)
        if text != path.read_text(encoding="utf-8"):
            old.append(path)
            if not check:
                path.write_text(text, encoding="utf-8")
    for path in old:
        print(
            f"ledger: {path}: {'its tables are older than the ledger' if check else 'tables redrawn'}"
        )
    if check and old:
        print("ledger: run `kda-lab ledger table`", file=sys.stderr)
        return 1
    return 0
