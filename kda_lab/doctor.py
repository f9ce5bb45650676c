"""`kda-lab doctor`: what this machine has, what runs on it, and the remedy for what it lacks."""

import argparse
import json
import platform
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from kda_lab.backend import BACKENDS
from kda_lab.bench import ledger
from kda_lab.native import toolchain
from kda_lab.native.toolchain import Unbuildable

COURSE = ("jupyterlab", "ipywidgets", "anywidget", "matplotlib", "numpy", "nbval", "pytest")
OLDEST_TORCH = (2, 6)
REINSTALL = "in a clone: make lab; elsewhere: pip install kda-lab"
SIGNS = {"ok": "ok", "missing": "--", "problem": "!!"}


@dataclass(frozen=True)
class Finding:
    """One thing looked for. state: "ok"; "missing" (the course goes on without); "problem"."""

    name: str
    state: str
    found: str
    where: str = ""
    remedy: str = ""


def findings() -> Iterator[Finding]:
    """Everything that the course can use, in the order in which a newcomer needs it."""
    yield _python()
    yield _torch()
    yield _packages()
    yield _course_folder()
    yield from _compilers()
    yield _gpu()


def _python() -> Finding:
    return Finding("Python", "ok", platform.python_version(), sys.executable)


def _torch() -> Finding:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    found = f"{torch.__version__.split('+')[0]}, {build}, {torch.get_num_threads()} threads"
    where = str(Path(torch.__file__).parent)
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        return Finding("PyTorch", "problem", found, where, "pip install 'torch>=2.6'")
    if toolchain.driver_cuda_version() and not torch.version.cuda:
        remedy = "this machine has a CUDA driver: install a CUDA build of PyTorch to use its GPU"
        return Finding("PyTorch", "problem", found, where, remedy)
    return Finding("PyTorch", "ok", found, where)


def _packages() -> Finding:
    found, lacking = [], []
    for name in COURSE:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lacking.append(name)
    if lacking:
        remedy = f"{REINSTALL}; missing: {', '.join(lacking)}"
        return Finding("packages", "problem", ", ".join(found), remedy=remedy)
    return Finding("packages", "ok", ", ".join(found))


def _course_folder() -> Finding:
    for folder in (Path.cwd(), Path.cwd().parent):  # a notebook runs in notebooks/
        if (folder / "notebooks").is_dir() and (folder / "exercises").is_dir():
            return Finding("course folder", "ok", "notebooks and exercises are here", str(folder))
    remedy = "go to your clone, or lay a course folder out with: kda-lab start DIR"
    return Finding("course folder", "missing", "none here", remedy=remedy)


def _compilers() -> Iterator[Finding]:
    try:
        cxx = toolchain.find_cxx()
        yield Finding("C++ compiler", "ok", toolchain.compiler_version(cxx), cxx)
    except Unbuildable as reason:
        yield Finding("C++ compiler", "missing", "none", remedy=str(reason))
    nvcc = toolchain.find_cuda_program("nvcc")
    found = toolchain.compiler_version(str(nvcc)) if nvcc else "none"
    try:
        yield Finding("nvcc", "ok", found, toolchain.find_nvcc())
    except Unbuildable as reason:
        state = "problem" if nvcc else "missing"
        yield Finding("nvcc", state, found, str(nvcc or ""), str(reason))
    if cuobjdump := toolchain.find_cuda_program("cuobjdump"):
        version = toolchain.compiler_version(str(cuobjdump))
        yield Finding("cuobjdump", "ok", version, str(cuobjdump))
    else:
        remedy = "to read machine code: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        yield Finding("cuobjdump", "missing", "none", remedy=remedy)
    try:
        where = toolchain.cutlass_include()
        yield Finding("CUTLASS", "ok", f"headers {metadata.version('nvidia-cutlass')}", str(where))
    except Unbuildable as reason:
        yield Finding("CUTLASS", "missing", "none", remedy=str(reason))


def _gpu() -> Finding:
    import torch

    driver = toolchain.driver_cuda_version()
    serves = f"; its driver serves CUDA {driver[0]}.{driver[1]}" if driver else ""
    if torch.cuda.is_available():
        arch = toolchain.gpu_arch()
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        found = f"{torch.cuda.get_device_name()}, sm_{arch}, {gib:.0f} GiB{serves}"
        return Finding("GPU", "ok", found)
    if driver:
        remedy = "PyTorch cannot use it: see PyTorch above, and what nvidia-smi says"
        return Finding("GPU", "problem", f"a driver for CUDA {driver[0]}.{driver[1]}", "", remedy)
    remedy = "none needed: what a GPU would show is shown as it was recorded on one"
    return Finding("GPU", "missing", "none", remedy=remedy)


def recorded() -> dict[str, list[str]]:
    """Implementations with current measurements, and the GPUs on which they were recorded."""
    gpus: dict[str, list[str]] = {}
    for row in ledger.show():
        if row["gpu"] and row["gpu"] not in gpus.setdefault(row["rung"], []):
            gpus[row["rung"]].append(row["gpu"])
    return gpus


def examine() -> dict:
    """The whole report as JSON: findings, and each implementation with why it cannot run here."""
    found = list(findings())
    try:
        gpus = recorded()
    except ledger.LedgerError as error:
        gpus = {}
        found.append(Finding("ledger", "problem", str(error), remedy="kda-lab ledger check"))
    return {
        "findings": [asdict(finding) for finding in found],
        "implementations": [
            {
                "name": backend.name,
                "idea": backend.idea,
                "unavailable": backend.unavailable(),
                "recorded_on": gpus.get(backend.name, []),
            }
            for backend in BACKENDS.values()
        ],
    }


def report(found: dict | None = None, where: bool = True) -> str:
    """The report in words; `where=False` leaves out the folders of this machine."""
    found = found or examine()
    lines = []
    for x in found["findings"]:
        first, *more = textwrap.wrap(x["found"], 76)
        lines.append(f"{SIGNS[x['state']]}  {x['name']:14s} {first}")
        lines += [f"{'':19s}{line}" for line in more]
        if where and x["where"]:
            lines.append(f"{'':19s}{x['where']}")
        if x["remedy"]:
            lines.append(f"{'':19s}-> {x['remedy']}")
    here = [x for x in found["implementations"] if x["unavailable"] is None]
    lines += ["", "Runs here:"]
    lines += [f"    {x['name']:10s} {x['idea']}" for x in here]
    elsewhere = [x for x in found["implementations"] if x["unavailable"] is not None]
    if elsewhere:
        lines += ["", "Does not run here:"]
    for x in elsewhere:
        shown = f"; shown as recorded on {', '.join(x['recorded_on'])}" if x["recorded_on"] else ""
        lines.append(f"    {x['name']:10s} {x['unavailable'] if where else 'needs a GPU'}{shown}")
    problems = sum(x["state"] == "problem" for x in found["findings"])
    lines += ["", f"{problems} to mend, see ->" if problems else "Nothing to mend."]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kda-lab doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    found = examine()
    print(json.dumps(found, indent=1) if args.json else report(found))
    return int(any(x["state"] == "problem" for x in found["findings"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
