"""`kda-lab bench micro`: microbenchmarks and skeletons, small programs that answer one question each.

One file each, `kernels/micro/NAME.cu` or `kernels/skeletons/NAME.cu`, found by being there. It is a program:
compiled with nvcc for this GPU (CUTLASS headers on the path) and run without arguments, it prints one JSON object
a line on standard output,

    {"workload": "n=64", "value": 612.0, "unit": "TFLOP/s", "predicted": 660.0}

and exits with 0 only if what it computed was also right. Other lines are shown and not recorded.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from kda_lab.bench import ledger, sources
from kda_lab.bench.machine import Clocks, fingerprint, now
from kda_lab.native import toolchain

SECONDS = 180


def compile_program(source: Path, arch: str, program: Path) -> None:
    """Compiles one program. Raises toolchain.Unbuildable with nvcc's first lines."""
    root = sources.kernels_dir()
    command = [toolchain.find_nvcc(), "-std=c++17", "-O3", "-lineinfo", "--expt-relaxed-constexpr"]
    command += [
        f"-gencode=arch=compute_{arch},code=sm_{arch}",
        f"-I{root}",
        f"-I{root / 'include'}",
    ]
    if b"cute/" in source.read_bytes() or b"cutlass/" in source.read_bytes():
        command += ["-isystem", str(toolchain.cutlass_include())]
    done = subprocess.run(
        [*command, str(source), "-o", str(program)], capture_output=True, text=True
    )
    if done.returncode:
        raise toolchain.Unbuildable(
            f"{source.name}: " + " ".join(done.stderr.split("\n")[:4])[:400]
        )


def rows_of(name: str, output: str) -> list[dict]:
    """Ledger rows from a program's standard output."""
    rows = []
    for line in output.splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            rows.append({"rung": name, "direction": "micro", "gate": "", **row})
    return rows


def run(name: str, program: Path) -> list[dict]:
    """Runs one compiled program. Raises RuntimeError when it fails or prints no row."""
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        said = done.stdout[-1500:] + done.stderr[-300:]
        raise RuntimeError(f"{name} ended with status {done.returncode}: {said}")
    rows = rows_of(name, done.stdout)
    if not rows:
        raise RuntimeError(f"{name} printed no measurement")
    return rows


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kda-lab bench micro",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="*", help="default: those without a current measurement")
    parser.add_argument("--out", type=Path, help="folder for the result (default: the ledger)")
    args = parser.parse_args(argv)
    known = sources.programs()
    unknown = [n for n in args.name if n not in known]
    if unknown:
        print(
            f"bench micro: no program {unknown[0]!r}; they are {', '.join(known) or 'none yet'}",
            file=sys.stderr,
        )
        return 2
    measured = {row["rung"] for _, row in ledger.current(("micro",))}
    names = args.name or [n for n in known if n not in measured]
    if not names:
        print("bench micro: every program has a current measurement")
        return 0
    arch = toolchain.gpu_arch()
    if arch is None or not torch.cuda.is_available():
        print("bench micro: no CUDA GPU here (or a CPU build of PyTorch)", file=sys.stderr)
        return 1
    clocks, rows, failed, hashes = Clocks(), [], [], sources.standing_hashes()
    with tempfile.TemporaryDirectory() as folder:
        # All compilers first, side by side: a program that is timed has the machine to itself.
        print(f"bench micro: compiling {len(names)} programs", flush=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            programs = {name: Path(folder) / name for name in names}
            compiled = {
                name: pool.submit(compile_program, known[name], arch, programs[name])
                for name in names
            }
        for number, name in enumerate(names, 1):
            print(f"bench micro: {name} ({number} of {len(names)})", flush=True)
            try:
                compiled[name].result()
                new = run(name, programs[name])
            except (
                toolchain.Unbuildable,
                RuntimeError,
                subprocess.TimeoutExpired,
                json.JSONDecodeError,
            ) as error:
                failed.append(name)
                print(f"bench micro: {name} failed: {error}", file=sys.stderr)
                continue
            clocks.look()
            for row in new:
                predicted = row.get("predicted", "-")
                print(
                    f"  {row['workload']:44s} {row['value']:10.4g} {row['unit']:12s} predicted {predicted}"
                )
            rows += new
    if rows:
        entry = dict(
            kind="micro", **fingerprint(clocks), date=now(), command=" ".join(["kda-lab bench micro", *args.name]),
            hashes={n: hashes[n] for n in names if n not in failed}, rows=rows,
        )  # fmt: skip
        out = args.out or ledger.directory()
        path = ledger.write(entry, out / ledger.file_name(entry))
        if out.resolve() != ledger.directory().resolve():
            ledger.add(path)
        print(f"bench micro: wrote {path.name}")
    return 1 if failed else 0
