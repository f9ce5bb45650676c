"""`kda-lab ledger`: what was measured, on which GPU, with which sources; and nothing that outlived them.

The ledger is the JSON files in `kernels/measurements/`, written only by kda-lab commands. A number is
current while the sources it ran with still hash to what the file says.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kda_lab.bench import sources
from kda_lab.hopper import trace
from kda_lab.native.rungs import RUNGS

TEXT, NUMBER = str, (int, float)
FILE_FIELDS = {
    "kind": TEXT, "gpu": TEXT, "driver": TEXT, "cuda": TEXT, "torch": TEXT, "clocks": dict,
    "date": TEXT, "command": TEXT, "hashes": dict, "rows": list,
}  # fmt: skip
TIMED = {
    "rung": TEXT, "direction": TEXT, "workload": TEXT, "gate": TEXT, "graph_ms": NUMBER,
    "eager_ms": NUMBER, "spread": NUMBER, "floor_ms": NUMBER, "workspace_bytes": NUMBER,
    "peak_bytes": NUMBER, "error": NUMBER, "peers": dict,
}  # fmt: skip
ROW_FIELDS = {
    "gpu-check": {"rung": TEXT, "case": TEXT, "status": TEXT},
    "bench": TIMED,
    "trace": {
        "rung": TEXT, "workload": TEXT, "gate": TEXT, "unit": TEXT, "roles": list, "events": list,
    },
    "profile": {"rung": TEXT, "workload": TEXT, "gate": TEXT, "dram_bytes": NUMBER},
    "report": {"rung": TEXT, "part": TEXT, "case": TEXT, "status": TEXT},
    "micro": {"rung": TEXT, "direction": TEXT, "workload": TEXT, "value": NUMBER, "unit": TEXT},
    "cpu": {k: TIMED[k] for k in ("rung", "direction", "workload", "gate", "eager_ms", "spread", "floor_ms", "error")},
}  # fmt: skip
KINDS = tuple(ROW_FIELDS)
STATUSES = ("passed", "failed", "declined", "not_run")
DIRECTIONS = ("forward", "training", "decode", "micro")
SHOWN: dict[str, object] = {  # the fields of `ledger show`, in this order, for every timed row
    "rung": None, "direction": None, "workload": None, "gate": None, "gpu": "", "graph_ms": None,
    "eager_ms": None, "spread": None, "floor_ms": None, "dram_bytes": None, "workspace_bytes": None,
    "peak_bytes": None, "error": None, "peers": {},
}  # fmt: skip


class LedgerError(Exception):
    """A ledger file that cannot be used; the text says which and why."""


def directory() -> Path:
    """Where the ledger's files lie: `measurements/` of the kernels that count here."""
    return sources.kernels_dir() / "measurements"


# ---------------------------------------------------------------- reading and writing


def validate(entry: object, name: str) -> dict:
    """Returns `entry` when it is a ledger file's content; raises LedgerError naming `name` and the field."""
    if not isinstance(entry, dict):
        raise LedgerError(f"{name}: not a JSON object")
    _fields(entry, FILE_FIELDS, name)
    if entry["kind"] not in KINDS:
        raise LedgerError(
            f"{name}: kind is {entry['kind']!r}; it must be one of {', '.join(KINDS)}"
        )
    if entry["kind"] != "cpu" and not entry["gpu"]:
        raise LedgerError(f"{name}: gpu is empty; only kind 'cpu' is measured without one")
    for rung, digest in entry["hashes"].items():
        if not (isinstance(digest, str) and len(digest) == 64):
            raise LedgerError(f"{name}: hashes[{rung!r}] is not a SHA-256 in hexadecimal")
    for i, row in enumerate(entry["rows"]):
        where = f"{name}: rows[{i}]"
        if not isinstance(row, dict):
            raise LedgerError(f"{where} is not an object")
        _fields(row, ROW_FIELDS[entry["kind"]], where)
        if entry["kind"] == "trace":
            for problem in trace.validate(trace.from_row(row, entry["gpu"]))[:1]:
                raise LedgerError(f"{where}: {problem}")
        if row.get("status", "passed") not in STATUSES:
            raise LedgerError(f"{where}: status is {row['status']!r}")
        if row.get("direction", "forward") not in DIRECTIONS:
            raise LedgerError(f"{where}: direction is {row['direction']!r}")
    return entry


def _fields(x: dict, wanted: dict, where: str) -> None:
    for field, kind in wanted.items():
        if field not in x:
            raise LedgerError(f"{where}: {field} is missing")
        nothing_to_replay = field == "graph_ms" and x[field] is None and x.get("graph_error")
        if isinstance(x[field], bool) or not (isinstance(x[field], kind) or nothing_to_replay):
            raise LedgerError(f"{where}: {field} is {x[field]!r:.60}")


def read(path: Path) -> dict:
    """One ledger file, validated."""
    try:
        return validate(json.loads(path.read_text()), path.name)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LedgerError(f"{path.name}: cannot be read: {error}") from None


def files(root: Path | None = None) -> list[dict]:
    """Every ledger file, oldest first. Raises LedgerError at the first that is torn or malformed."""
    paths = sorted((root or directory()).glob("*.json"))
    return sorted((read(p) for p in paths), key=lambda entry: entry["date"])


def write(entry: dict, path: Path) -> Path:
    """Validates `entry` and puts it at `path` in one step: a reader sees the old file or the new one."""
    validate(entry, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(entry, indent=1, sort_keys=True, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".ledger-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def file_name(entry: dict) -> str:
    """`bench-nvidia-h200-20261124T003100Z.json`: kind, GPU if any, date."""
    date = entry["date"].replace("-", "").replace(":", "")
    return "-".join([entry["kind"], *entry["gpu"].lower().split(), date]) + ".json"


def add(path: Path) -> Path:
    """Takes a result file into the ledger; refuses one of which nothing ran on the sources that stand.

    Rows of a rung that has changed since stay in the file, and no command shows them.
    """
    entry = read(path)
    standing = sources.standing_hashes()
    for name in entry["hashes"]:
        if name not in standing:
            raise LedgerError(f"{path.name}: {name} is no rung, microbenchmark or skeleton here")
    stale = [name for name, digest in entry["hashes"].items() if standing[name] != digest]
    if stale and len(stale) == len(entry["hashes"]):
        name = stale[0]
        raise LedgerError(
            f"{path.name}: ran {name} with sources {entry['hashes'][name][:12]}, here they are "
            f"{standing[name][:12]}; run it again with the sources that stand"
        )
    return write(entry, directory() / file_name(entry))


# ---------------------------------------------------------------- what is current


def is_current(entry: dict, row: dict, standing: dict[str, str]) -> bool:
    """Whether the code that produced `row` is the code that stands."""
    rung = row.get("served_by", row["rung"])
    if rung in entry["hashes"]:
        return entry["hashes"][rung] == standing.get(rung)
    return rung not in standing  # PyTorch and peers have no kernel sources


def current(
    kinds: tuple[str, ...], entries: list[dict] | None = None
) -> Iterator[tuple[dict, dict]]:
    """(file, row) of every current row of these kinds, oldest first."""
    standing = sources.standing_hashes()
    for entry in files() if entries is None else entries:
        if entry["kind"] in kinds:
            for row in entry["rows"]:
                if is_current(entry, row, standing):
                    yield entry, row


def show() -> list[dict]:
    """One row a current measurement, oldest first: timed rows of GPU and CPU, and microbenchmarks."""
    entries = files()
    dram = {
        (entry["gpu"], row["rung"], row["workload"], row["gate"]): row["dram_bytes"]
        for entry, row in current(("profile",), entries)
    }
    rows = []
    for entry, row in current(("bench", "cpu", "micro"), entries):
        server = RUNGS.get(row.get("served_by", ""))
        if row["rung"] == "auto" and server and server.unproven:
            continue  # auto would not choose that rung today
        shown = {field: row.get(field, default) for field, default in SHOWN.items()}
        shown["gpu"] = entry["gpu"]
        key = (entry["gpu"], row.get("served_by", row["rung"]), row["workload"], shown["gate"])
        shown["dram_bytes"] = dram.get(key)
        shown |= {field: x for field, x in row.items() if field not in shown}
        shown |= {"kind": entry["kind"], "date": entry["date"]}
        rows.append(shown)
    return rows


def newest(rows: list[dict]) -> dict[tuple, dict]:
    """The last row of each (gpu, rung, direction, workload, gate)."""
    keys = ("gpu", "rung", "direction", "workload", "gate")
    return {tuple(row[k] for k in keys): row for row in rows}


def report(rung: str, entries: list[dict] | None = None) -> dict[str, dict]:
    """The newest current gpu-check result of each case of `rung`, over all its reports."""
    return {
        row["case"]: row | {"gpu": entry["gpu"], "date": entry["date"]}
        for entry, row in current(("gpu-check",), entries)
        if row["rung"] == rung
    }


def verdict(rung: str, entries: list[dict] | None = None, but: tuple[str, ...] = ()) -> str | None:
    """None when `rung` has a passing correctness report for the sources that stand, else what is wrong.

    but: cases that may have failed; they must have run.
    """
    standing = sources.standing_hashes().get(rung)
    if standing is None:
        return "its sources are missing"
    cases = report(rung, entries)
    remedy = f"run `kda-lab gpu-check --rung {rung}` on a GPU"
    if not cases:
        return f"no correctness report for the sources that stand; {remedy}"
    planned = [
        case
        for entry in (files() if entries is None else entries)
        if entry["kind"] == "gpu-check" and entry["hashes"].get(rung) == standing
        for case in entry.get("planned", {}).get(rung, [])
    ]
    missing = [case for case in dict.fromkeys(planned) if case not in cases]
    failed = [case for case, row in cases.items() if row["status"] == "failed" and case not in but]
    skipped = [case for case, row in cases.items() if row["status"] == "not_run"] + missing
    if failed:
        return f"failed on a GPU: {', '.join(failed)}"
    if skipped or not planned:
        return f"did not run: {', '.join(skipped) or 'the whole suite'}; {remedy}"
    return None


def drop_ins(entries: list[dict] | None = None) -> dict[tuple[str, str], dict]:
    """The newest current row of each (part, case) of `kda-lab report`."""
    return {
        (row["part"], row["case"]): row | {"gpu": entry["gpu"], "date": entry["date"]}
        for entry, row in current(("report",), entries)
        if row["status"] != "not_run"
    }


def problems() -> list[str]:
    """Everything that `ledger check` fails for, one sentence each."""
    found, entries = [], []
    for path in sorted(directory().glob("*")):
        if path.suffix != ".json":
            found.append(f"{path.name}: only ledger files belong in {directory().name}/")
            continue
        try:
            entries.append(read(path))
        except LedgerError as error:
            found.append(str(error))
    entries.sort(key=lambda entry: entry["date"])
    for rung in sources.gpu_rungs():
        unproven = RUNGS[rung].unproven
        wrong = verdict(rung, entries, unproven)
        if wrong:
            found.append(f"rung {rung}: {wrong}")
            continue
        cases = report(rung, entries)
        found += [
            f"rung {rung}: {case} does not fail; take it out of `unproven` in kda_lab/native/rungs.py"
            for case in unproven
            if cases.get(case, {}).get("status") != "failed"
        ]
    for (part, case), row in drop_ins(entries).items():
        if row["status"] == "failed":
            found.append(f"drop-in {part}: {case}: failed on a GPU: {row.get('message', '')}")
    measured = {row["rung"] for _, row in current(("micro",), entries)}
    for name in sources.programs():
        if name not in measured:
            found.append(
                f"{name}: no measurement for the sources that stand; run `kda-lab bench micro`"
            )
    found += [
        f"{path}: belongs to no rung, microbenchmark or skeleton" for path in sources.orphans()
    ]
    return found


# ---------------------------------------------------------------- command line


def check() -> int:
    found = problems()
    for problem in found:
        print(f"ledger: {problem}", file=sys.stderr)
    if found:
        print(f"ledger: {len(found)} problem(s)", file=sys.stderr)
        return 1
    number = len(list(directory().glob("*.json")))
    waiting = [rung for rung in sources.gpu_rungs() if RUNGS[rung].unproven]
    for rung in waiting:
        print(f"ledger: {rung} fails {', '.join(RUNGS[rung].unproven)}: auto does not choose it")
    every = "every other rung" if waiting else "every rung"
    print(f"ledger: {number} files, {every} has a passing report for the sources that stand")
    return 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kda-lab ledger", description=__doc__.split("\n")[0])
    sub = parser.add_subparsers(dest="command", required=True)
    sub.add_parser("check", help="fail when a number outlived its code, or a rung has no report")
    p = sub.add_parser("show", help="print the current measurements")
    p.add_argument("--json", action="store_true", help="as a JSON array, oldest first")
    p = sub.add_parser("add", help="take result files into the ledger")
    p.add_argument("file", type=Path, nargs="+")
    p = sub.add_parser("table", help="write the tables between the markers of README and notebooks")
    p.add_argument("--check", action="store_true", help="change nothing, fail when a table is old")
    p.add_argument("file", type=Path, nargs="*", help="default: README.md and notebooks/*.ipynb")
    p = sub.add_parser("plot", help="draw time against floor, and the roofline")
    p.add_argument("--out", type=Path, default=Path("notebooks/pictures"), help="folder")
    args = parser.parse_args(argv)
    try:
        if args.command == "check":
            return check()
        if args.command == "add":
            for path in args.file:
                print(f"ledger: {add(path).name}")
            return 0
        if args.command == "plot":
            from kda_lab.bench import plots

            return plots.write(args.out)
        from kda_lab.bench import tables

        if args.command == "table":
            return tables.update(args.file, check=args.check)
        print(json.dumps(show(), indent=1) if args.json else tables.everything(show()))
        return 0
    except LedgerError as error:
        print(f"ledger: {error}", file=sys.stderr)
        return 1
