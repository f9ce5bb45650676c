"""`kda-lab profile`: what a rung moves and executes, counted by ncu, and what the compiler made of it.

Each rung and workload runs once under the profiler with a cold L2; the counts of all its kernels are added.
Clocks are left alone.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from kda_lab.bench import ledger, sources
from kda_lab.bench import workloads as wl
from kda_lab.bench.machine import fingerprint, now
from kda_lab.native import build, machine_code, toolchain
from kda_lab.native.rungs import RUNGS

METRICS = {
    "dram__bytes_read.sum": "read",
    "dram__bytes_write.sum": "write",
    "gpu__time_duration.sum": "ns",
    "smsp__inst_executed.sum": "instructions",  # of warps
    "smsp__cycles_active.sum": "cycles",  # of the four schedulers of an SM, each issuing one a cycle
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum": "shared_wavefronts",  # 128 bytes each, at best
}
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "ns": 1, "us": 1e3, "ms": 1e6}
UNITS |= {"nsecond": 1, "usecond": 1e3, "msecond": 1e6, "inst": 1, "cycle": 1, "": 1}
SECONDS = 180


def totals(text: str) -> dict[str, float]:
    """Sums over all kernels of ncu's CSV, by the names in METRICS, and the number of `kernels`."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    sums = dict.fromkeys(METRICS.values(), 0.0)
    launches = set()
    for row in csv.DictReader(lines):
        name = METRICS.get(row["Metric Name"])
        if name:
            sums[name] += float(row["Metric Value"].replace(",", "")) * UNITS[row["Metric Unit"]]
            launches.add(row["ID"])
    return sums | {"kernels": len(launches)}


def body(rung: str, workload: str, gate: str) -> None:
    """What runs under ncu: one call between profiler marks, after a warm-up and an L2 flush."""
    from kda_lab.bench.main import rung_work
    from kda_lab.bench.timing import FLUSH_BYTES

    w = wl.ALL[workload]
    work, _ = rung_work(rung, w, wl.make_inputs(w, gate))
    with torch.no_grad():
        work()
        torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        work()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def compiled(rung: str) -> dict | None:
    """`machine_code.summary` of a rung's library, or None where there is no cuobjdump."""
    try:
        return machine_code.summary(build.library(RUNGS[rung]))
    except toolchain.Unbuildable as error:
        print(f"profile: {rung}: {error}", file=sys.stderr)
        return None


def profile(ncu: str, rung: str, workload: str, gate: str) -> dict:
    """One row: dram bytes of a rung on a workload. Raises RuntimeError with ncu's words."""
    command = [
        ncu,
        "--clock-control",
        "none",
        "--cache-control",
        "none",
        "--profile-from-start",
        "off",
        "--csv",
    ]
    command += ["--metrics", ",".join(METRICS), "--target-processes", "all"]
    command += [sys.executable, "-m", "kda_lab.bench.profile", rung, workload, gate]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=os.environ)
    sums = totals(done.stdout)
    if done.returncode or not sums["kernels"]:
        raise RuntimeError((done.stderr or done.stdout)[-300:].strip() or "no kernel was seen")
    return dict(
        rung=rung, workload=workload, gate=gate, direction=wl.ALL[workload].direction,
        dram_bytes=sums["read"] + sums["write"], read_bytes=sums["read"], write_bytes=sums["write"],
        kernels=sums["kernels"], kernel_ms=sums["ns"] / 1e6, floor_bytes=wl.ALL[workload].floor_bytes,
        **{name: sums[name] for name in ("instructions", "cycles", "shared_wavefronts")},
        compiled=compiled(rung),
    )  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kda-lab profile", description=__doc__.split("\n")[0])
    parser.add_argument("--rung", nargs="+", help="default: every compiled rung")
    parser.add_argument("--workload", nargs="+", default=["8192-H96", "8192-H16", "1x128-H96"])
    parser.add_argument("--gate", nargs="+", default=["strong"], choices=list(wl.GATES))
    parser.add_argument("--out", type=Path, help="folder for the result (default: the ledger)")
    args = parser.parse_args(argv)
    ncu = shutil.which("ncu") or shutil.which("/usr/local/cuda/bin/ncu")
    if ncu is None or not torch.cuda.is_available():
        print("profile: needs a CUDA GPU and Nsight Compute (ncu)", file=sys.stderr)
        return 1
    unknown = [w for w in args.workload if w not in wl.ALL]
    if unknown:
        print(f"profile: no workload {unknown[0]!r}; they are {', '.join(wl.ALL)}", file=sys.stderr)
        return 2
    rows, hashes, path = [], sources.compiled_hashes(), None
    out, date = args.out or ledger.directory(), now()
    for rung in args.rung or sources.gpu_rungs():
        for workload in args.workload:
            if RUNGS[rung].direction != wl.ALL[workload].direction:
                continue
            for gate in args.gate:
                try:
                    row = profile(ncu, rung, workload, gate)
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    print(
                        f"profile: {rung} {workload} {gate}: {str(error)[:300]}",
                        file=sys.stderr,
                        flush=True,
                    )
                    continue
                ratio = row["dram_bytes"] / row["floor_bytes"]
                print(
                    f"profile: {rung} {workload} {gate}: {row['dram_bytes'] / 1e6:.1f} MB, {ratio:.2f} x floor",
                    flush=True,
                )
                rows.append(row)
                ran = {r["rung"] for r in rows}
                entry = dict(
                    kind="profile", **fingerprint(), date=date, command=" ".join(["kda-lab profile", *argv]),
                    hashes={n: h for n, h in hashes.items() if n in ran}, rows=rows,
                )  # fmt: skip
                path = ledger.write(entry, out / ledger.file_name(entry))
    if path is None:
        return 1
    if out.resolve() != ledger.directory().resolve():
        ledger.add(path)
    print(f"profile: wrote {path.name}")
    return 0


if __name__ == "__main__":
    body(*sys.argv[1:4])
