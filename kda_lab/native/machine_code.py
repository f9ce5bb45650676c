"""What the compiler really made of a rung: registers, spills and instructions."""

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kda_lab.native import toolchain
from kda_lab.native.rungs import Rung
from kda_lab.native.toolchain import Unbuildable


@dataclass(frozen=True)
class KernelReport:
    """ptxas' words about one kernel on one architecture; sizes in bytes."""

    name: str
    arch: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


ENTRY = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\w+)'")
SPILL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def kernel_reports(log: str) -> list[KernelReport]:
    """Reads the output of `-Xptxas -v`; one entry per kernel and architecture, in its order."""
    reports: list[KernelReport] = []
    name = arch = ""
    spill = (0, 0, 0)
    for line in log.splitlines():
        if match := ENTRY.search(line):
            name, arch, spill = match[1], match[2], (0, 0, 0)
        elif (match := SPILL.search(line)) and name:
            spill = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := USED.search(line)) and name:
            reports.append(KernelReport(name, arch, int(match[1]), *spill))
            name = ""
    return reports


def sass_counts(path: Path) -> dict[str, Counter]:
    """{architecture: how often each mnemonic with its modifiers occurs} in a library.

    Raises Unbuildable when there is no cuobjdump to read it with.
    """
    cuobjdump = toolchain.find_cuda_program("cuobjdump")
    if cuobjdump is None:
        raise Unbuildable(
            "no cuobjdump to read machine code with; install it with: "
            "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )
    done = subprocess.run(
        [str(cuobjdump), "--dump-sass", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Unbuildable(f"cuobjdump could not read {path}: {done.stderr.strip()[:300]}")
    counts: dict[str, Counter] = {}
    arch = ""
    for line in done.stdout.splitlines():
        if match := re.match(r"\s*(?:arch =|code for) sm_(\w+)", line):
            arch = match[1]
        elif arch and (
            match := re.match(
                r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)", line
            )
        ):
            counts.setdefault(arch, Counter())[match[1]] += 1
    return counts


def check(rung: Rung, path: Path, say: Callable[[str], None]) -> list[str]:
    """What is wrong with a compiled rung: spills nobody accepted, claims its machine code lacks."""
    log = path.with_suffix(".log").read_text()
    built_for = json.loads(path.with_suffix(".json").read_text())["architectures"]
    problems = []
    reports = kernel_reports(log)
    for arch in built_for:
        if not any(r.arch == arch for r in reports):
            problems.append(f"the compiler's report names no kernel for sm_{arch}")
    for r in reports:
        accepted = max((size for part, size in rung.spills.items() if part in r.name), default=0)
        say(
            f"  sm_{r.arch} {r.registers:3d} registers, {r.stack} bytes of stack, "
            f"{r.spill_stores} + {r.spill_loads} spilled  {r.name[:80]}"
        )
        if max(r.spill_stores, r.spill_loads) > accepted:
            problems.append(
                f"{r.name} spills {r.spill_stores} bytes of stores and {r.spill_loads} of loads "
                f"on sm_{r.arch}; accepted: {accepted}"
            )
    if "wgmma.mma_async instructions are serialized" in log:
        problems.append(
            "ptxas serialised wgmma instructions (C7514); see the log beside the library"
        )
    counts = sass_counts(path)
    for arch in built_for:
        for claim in rung.claims:
            found = sum(n for word, n in counts.get(arch, {}).items() if word.startswith(claim))
            say(f"  sm_{arch} {claim}: {found}")
            if not found:
                problems.append(
                    f"no {claim} in the machine code for sm_{arch}, which the rung claims"
                )
    return problems
