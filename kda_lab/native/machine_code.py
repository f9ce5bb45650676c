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


# an instruction of cuobjdump's listing: mnemonic with modifiers, operands
INSTRUCTION = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*)"
)


def sass(path: Path) -> str:
    """The machine code of a compiled file, as cuobjdump lists it. Raises Unbuildable without one."""
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
    return done.stdout


def sass_counts(path: Path) -> dict[str, Counter]:
    """{architecture: how often each mnemonic with its modifiers occurs} in a library.

    Raises Unbuildable when there is no cuobjdump to read it with.
    """
    counts: dict[str, Counter] = {}
    arch = ""
    for line in sass(path).splitlines():
        if match := re.match(r"\s*(?:arch =|code for) sm_(\w+)", line):
            arch = match[1]
        elif arch and (match := INSTRUCTION.match(line)):
            counts.setdefault(arch, Counter())[match[1]] += 1
    return counts


def summary(path: Path) -> dict:
    """What the compiler made of a library, on the newest architecture that it is for.

    Returns `arch`, `kernels` (spoken name, registers, bytes spilled) and `sass` (instructions by
    mnemonic, over all kernels). Raises Unbuildable when there is no cuobjdump to read it with.
    """
    counts = sass_counts(path)
    arch = max(counts, key=lambda name: int(name.rstrip("af")))
    reports = [r for r in kernel_reports(path.with_suffix(".log").read_text()) if r.arch == arch]
    kernels = [
        {
            "name": spoken(r.name),
            "registers": r.registers,
            "spilled": r.spill_stores + r.spill_loads,
        }
        for r in reports
    ]
    return {"arch": arch, "kernels": kernels, "sass": dict(counts[arch].most_common())}


TYPES = {"f": "fp32", "t": "bf16"}  # bf16 travels as uint16_t


def spoken(mangled: str) -> str:
    """`recurrent 128 16` for a kernel `recurrent<Shape<128, 16>>` in a nameless namespace."""
    rest, name = mangled.removeprefix("_Z").removeprefix("N"), ""
    while (size := re.match(r"\d+", rest)) is not None:
        end = size.end() + int(size[0])
        name, rest = rest[size.end() : end], rest[end:]
    kind = re.match(r"I([ft])", rest)
    words = [name, TYPES[kind[1]] if kind else "", *re.findall(r"L[ijl](\d+)E", rest)]
    return " ".join(word for word in words if word)


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
