"""`kda-lab gpu-check`: the correctness suite of every rung that has no current report, on this GPU.

Each rung's cases run in a process of their own, so that a kernel that breaks the CUDA context fails
its case and no other. Every result is appended to a journal as it comes; `--resume` goes on from there.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kda_lab.bench import ledger, sources

SANITIZERS = ("memcheck", "racecheck", "synccheck")
CASE_SECONDS = 240  # a case that takes longer has failed
SANITIZER_SECONDS = 420
FOUND_ERRORS = 77


def say(line: str) -> None:
    print(f"gpu-check: {line}", flush=True)


# ---------------------------------------------------------------- journal


class Journal:
    """Rows of finished cases, one JSON object a line; a torn last line is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, resume: bool) -> None:
        """Starts afresh, or keeps what passed or was declined: the rest runs again."""
        done = [r for r in self.rows() if resume and r.get("status") in ("passed", "declined")]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in done))

    def append(self, row: dict) -> None:
        with self.path.open("a") as f:
            f.write(json.dumps(row) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def rows(self) -> Iterator[dict]:
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue

    def results(self, rung: str, digest: str) -> dict[str, dict]:
        """Newest finished row of each case of a rung with these sources."""
        mine = (row for row in self.rows() if row["rung"] == rung and row["hash"] == digest)
        return {row["case"]: row for row in mine if "status" in row}

    def started(self, rung: str) -> tuple[str, float] | None:
        """The case that began last and has not finished, with the time at which it began."""
        last = None
        for row in self.rows():
            if row["rung"] == rung:
                last = None if "status" in row else (row["case"], row["started"])
        return last


# ---------------------------------------------------------------- the worker: one rung, one process


def work(
    rung: str, device: str, launches: int, journal: Journal, digest: str, cases: list[str]
) -> int:
    """Runs the cases in this process. Exit status 3: CUDA is broken here, start another process."""
    import torch

    from kda_lab.bench import suite

    target = suite.Target(rung, device, launches)
    stamp = {"rung": rung, "hash": digest}
    for case in cases:
        journal.append(stamp | {"case": case, "started": time.time()})
        row = suite.run_case(target, case)
        broken = device == "cuda" and not alive()
        if broken and row["status"] == "passed":
            row |= {"status": "failed", "message": "CUDA reported an error after the case"}
        journal.append(row | stamp)
        worst = ", ".join(f"{k[6:]} {v:.1e}" for k, v in row.items() if k.startswith("worst_"))
        say(
            f"{rung:8s} {row['status']:9s} {case:24s} {row['seconds']:6.1f} s  {worst}{row['message'][:150]}"
        )
        if broken:
            return 3
        if device == "cuda":
            torch.cuda.empty_cache()
    return 0


def alive() -> bool:
    """Whether CUDA still works in this process."""
    import torch

    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except RuntimeError:
        return False
    return True


# ---------------------------------------------------------------- the parent


def run_rung(
    rung: str, args: argparse.Namespace, journal: Journal, digest: str, deadline: float
) -> None:
    """Runs what the journal lacks of a rung's suite, sanitizers alongside, until done or out of time."""
    tools = {}
    finished = journal.results(rung, digest)
    if args.device == "cuda" and not args.no_sanitizer:
        tools = {t: start_sanitizer(t, rung, args.out) for t in SANITIZERS if t not in finished}
    while time.time() < deadline:
        finished = journal.results(rung, digest)
        left = [c for c in suite_cases(rung) if c not in finished]
        if not left:
            break
        run_worker(rung, args, journal, digest, left, deadline)
    for tool, process in tools.items():
        row = sanitizer_row(process, args.out / f"{rung}-{tool}.log", deadline)
        journal.append({"rung": rung, "hash": digest, "case": tool} | row)
        say(f"{rung:8s} {row['status']:9s} {tool:24s} {row['message'][:150]}")


def run_worker(
    rung: str,
    args: argparse.Namespace,
    journal: Journal,
    digest: str,
    cases: list[str],
    deadline: float,
) -> None:
    """One process over `cases`; a case that kills it or hangs is recorded as failed."""
    command = [sys.executable, "-m", "kda_lab.bench.gpu_check", "--worker", rung, "--hash", digest]
    command += ["--device", args.device, "--launches", str(args.launches), "--out", str(args.out)]
    before = len(list(journal.rows()))
    process = subprocess.Popen([*command, "--cases", *cases])
    why = None
    while process.poll() is None:
        time.sleep(0.2)
        running = journal.started(rung)
        if running and time.time() - running[1] > CASE_SECONDS:
            why = f"took longer than {CASE_SECONDS} s"
        if why or time.time() > deadline:
            process.kill()
            process.wait()
            break
    running = journal.started(rung)
    if process.returncode and len(list(journal.rows())) == before:
        raise SystemExit(
            f"gpu-check: the process of {rung} ended with {process.returncode} before its first case"
        )
    if running and (why or time.time() <= deadline):
        why = why or f"the process ended with status {process.returncode}"
        row = {"rung": rung, "hash": digest, "case": running[0], "status": "failed", "message": why}
        journal.append(row | {"seconds": round(time.time() - running[1], 2)})
        say(f"{rung:8s} failed    {running[0]:24s} {why}")


def suite_cases(rung: str) -> list[str]:
    from kda_lab.bench import suite

    return list(suite.cases_of(rung))


def start_sanitizer(tool: str, rung: str, out: Path) -> subprocess.Popen | None:
    """compute-sanitizer over the small calls of `sanitize`, in the background; None when it is not here."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return None
    log = (out / f"{rung}-{tool}.log").open("w")
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND_ERRORS), sys.executable]
    return subprocess.Popen(
        [*command, "-m", "kda_lab.bench.sanitize", rung], stdout=log, stderr=log, env=environment
    )


def sanitizer_row(process: subprocess.Popen | None, log: Path, deadline: float) -> dict:
    """Waits for a sanitizer and reads its verdict: passed only if every call ran and no error was found."""
    from kda_lab.bench.sanitize import DONE

    if process is None:
        return {"status": "not_run", "message": "compute-sanitizer is not installed here"}
    try:
        status = process.wait(max(1.0, min(SANITIZER_SECONDS, deadline - time.time())))
    except subprocess.TimeoutExpired:
        process.kill()
        return {"status": "not_run", "message": "did not end in time"}
    text = log.read_text(errors="replace")
    if status == 0 and DONE in text and "0 errors" in text:
        return {"status": "passed", "message": ""}
    if "Device not supported" in text or "LibraryNotLoaded" in text:
        return {"status": "not_run", "message": "compute-sanitizer does not support this machine"}
    lines = [line for line in text.splitlines() if line.startswith("=========")][:6]
    return {"status": "failed", "message": f"status {status}: {' | '.join(lines)}"[:400]}


def entry_of(rungs: list[str], journal: Journal, hashes: dict[str, str], command: str) -> dict:
    """The ledger file of what the journal holds for these rungs."""
    from kda_lab.bench.machine import fingerprint, now

    rows = []
    for rung in rungs:
        for row in journal.results(rung, hashes[rung]).values():
            rows.append({k: v for k, v in row.items() if k != "hash"})
    planned = {rung: [*suite_cases(rung), *SANITIZERS] for rung in rungs}
    ran = {row["rung"] for row in rows}
    return dict(
        kind="gpu-check", **fingerprint(), date=now(), command=command, rows=rows,
        hashes={rung: hashes[rung] for rung in rungs if rung in ran}, planned=planned,
    )  # fmt: skip


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kda-lab gpu-check", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rung", nargs="+", help="rungs to check (default: those without a current report)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".kda_lab/gpu-check"), help="folder for journal and result"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the results of the journal in --out"
    )
    parser.add_argument(
        "--minutes", type=float, default=30, help="stop starting work after this long"
    )
    parser.add_argument(
        "--launches", type=int, default=1000, help="launches compared for determinism"
    )
    parser.add_argument(
        "--no-sanitizer",
        action="store_true",
        help="leave compute-sanitizer out (the report stays incomplete)",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--hash", help=argparse.SUPPRESS)
    parser.add_argument("--cases", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    args = arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "gpu-check.jsonl"
    if args.worker:
        journal = Journal(path)
        return work(args.worker, args.device, args.launches, journal, args.hash, args.cases)

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu-check: no CUDA GPU here (or a CPU build of PyTorch); run it on a machine with one",
            file=sys.stderr,
        )
        return 1
    compiled = sources.compiled_hashes()
    rungs = args.rung or [r for r in sources.gpu_rungs() if ledger.verdict(r)]
    if not rungs:
        say("every rung has a passing report for the sources that stand")
        return 0
    if args.device == "cuda":
        unknown = [r for r in rungs if r not in sources.gpu_rungs()]
        if unknown:
            names = ", ".join(sources.gpu_rungs())
            print(f"gpu-check: no rung {unknown[0]!r}; the rungs are {names}", file=sys.stderr)
            return 2
    journal = Journal(path)
    journal.begin(args.resume)
    command = " ".join(["kda-lab gpu-check", *(["--rung", *args.rung] if args.rung else [])])
    deadline = time.time() + 60 * args.minutes
    hashes = {r: compiled.get(r, "0" * 64) for r in rungs}
    result = None
    for number, rung in enumerate(rungs, 1):
        if time.time() > deadline:
            say("out of time; go on with --resume")
            break
        say(f"rung {rung} ({number} of {len(rungs)})")
        run_rung(rung, args, journal, hashes[rung], deadline)
        if args.device == "cuda":
            entry = entry_of(rungs, journal, hashes, command)
            if result:
                result.unlink()
            result = ledger.write(entry, args.out / ledger.file_name(entry))
    return summary(rungs, journal, hashes, result)


def summary(rungs: list[str], journal: Journal, hashes: dict[str, str], result: Path | None) -> int:
    """Prints one line a rung, takes the result into the ledger; 0 only if all passed."""
    bad = 0
    for rung in rungs:
        rows = journal.results(rung, hashes[rung])
        counts = {s: [c for c, r in rows.items() if r["status"] == s] for s in ledger.STATUSES}
        missing = [c for c in suite_cases(rung) if c not in rows]
        words = ", ".join(
            f"{len(cases)} {status.replace('_', ' ')}" for status, cases in counts.items() if cases
        )
        say(f"{rung}: {words or 'nothing ran'}" + (f", {len(missing)} left" if missing else ""))
        for status in ("failed", "not_run"):
            for case in counts[status]:
                say(f"  {status}: {case}: {rows[case]['message'][:200]}")
        bad += bool(counts["failed"] or counts["not_run"] or missing)
    if result:
        print(f"gpu-check: wrote {result}")
        say(f"ledger: {ledger.add(result).name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
