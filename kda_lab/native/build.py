"""`kda-lab build`: compiles rungs and the binding, each only when something in it changed.

The key of a cached library covers the bytes of its sources and headers, the flags, the compiler's
version and, for the binding, the Python it is for. Compilers are plain subprocesses.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

from kda_lab.native import machine_code, toolchain
from kda_lab.native.rungs import (
    RUNGS,
    Rung,
    closure_hash,
    files_hash,
    include_closure,
    kernels_dir,
)
from kda_lab.native.toolchain import CompileError, Unbuildable

COMMON_ARCHS = ("80", "90a")  # compiled for when the machine has no GPU to ask
ERROR_LINES, ERROR_WIDTH = 12, 300  # CuTe's messages run to pages
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-pthread"]
NVCC_FLAGS = [
    "-std=c++17", "-O3", "-lineinfo", "-shared", "-cudart=static", "-Xptxas=-v",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall",
]  # fmt: skip
CUTLASS_FLAGS = ["--expt-relaxed-constexpr"]


def say(line: str) -> None:
    print(f"kda-lab build: {line}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """Where compiled libraries are kept: KDA_LAB_CACHE, else the user's cache folder."""
    if named := os.environ.get("KDA_LAB_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kda-lab"


def default_archs(rung: Rung) -> list[str]:
    """What a rung is compiled for when nobody says: this machine's GPU, else the common ones."""
    here = toolchain.gpu_arch()
    return [arch for arch in ([here] if here else COMMON_ARCHS) if rung.runs_on(arch)]


def _rung_command(rung: Rung, archs: list[str]) -> tuple[list[str], str]:
    """The compile command without its output, and the words that identify compiler and packages."""
    root = kernels_dir()
    sources = [root / source for source in rung.sources]
    for source in sources:
        if not source.is_file():
            raise Unbuildable(f"rung {rung.name} has no source {source.relative_to(root.parent)}")
    includes = [f"-I{root}", f"-I{root / 'include'}"]
    if not rung.cuda:
        cxx = toolchain.find_cxx()
        command = [cxx, *CXX_FLAGS, *rung.flags, *includes, *map(str, sources)]
        return command, toolchain.compiler_version(cxx)
    nvcc = toolchain.find_nvcc()
    host = os.environ.get("NVCC_CCBIN") or "g++"
    if not shutil.which(host):
        raise Unbuildable(f"nvcc needs the host compiler {host}, which is not on PATH; install g++")
    identity = f"{toolchain.compiler_version(nvcc)}; {toolchain.compiler_version(host)}"
    command = [nvcc, *NVCC_FLAGS, *rung.flags, *includes]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    if rung.cutlass:
        headers = toolchain.cutlass_include()
        command += [*CUTLASS_FLAGS, "-isystem", str(headers)]
        identity += f"; CUTLASS {_cutlass_version(headers)}"
    # nvcc from pip keeps its libraries in lib/, where it does not look by itself
    libraries = Path(nvcc).resolve().parents[1] / "lib"
    if libraries.is_dir():
        command.append(f"-L{libraries}")
    return [*command, *map(str, sources)], identity


def _cutlass_version(headers: Path) -> str:
    return hashlib.sha256((headers / "cutlass/version.h").read_bytes()).hexdigest()[:12]


def build_rung(
    rung: Rung | str,
    archs: list[str] | None = None,
    force: bool = False,
    say: Callable[[str], None] = say,
) -> Path:
    """Compiles a rung unless the cache has it; returns the path of `libkda_NAME.so`.

    Beside it lie `libkda_NAME.log` (what the compiler said, ptxas' report included) and
    `libkda_NAME.json` (closure hash, architectures, compiler). Raises Unbuildable.
    """
    rung = RUNGS[rung] if isinstance(rung, str) else rung
    if rung.cuda:
        archs = default_archs(rung) if archs is None else archs
        if wrong := [arch for arch in archs if not rung.runs_on(arch)]:
            raise Unbuildable(
                f"rung {rung.name} is for {' or '.join(rung.architectures)}, not sm_{wrong[0]}"
            )
        if not archs:
            raise Unbuildable(_wrong_gpu(rung))
    else:
        archs = []
    command, identity = _rung_command(rung, archs)
    meta = {
        "rung": rung.name,
        "closure_hash": closure_hash(rung),
        "architectures": archs,
        "compiler": identity,
    }
    what = rung.name + (f" for {', '.join('sm_' + arch for arch in archs)}" if archs else "")
    return _cached(f"libkda_{rung.name}", ".so", what, command, meta, force, say)


def _wrong_gpu(rung: Rung) -> str:
    return (
        f"rung {rung.name} is for {' or '.join('sm_' + a for a in rung.architectures)}; "
        f"this machine's GPU is sm_{toolchain.gpu_arch()}"
    )


def _module_command() -> tuple[list[str], dict]:
    """The compile command of a pybind11 module without source and output, and what it depends on."""
    root = kernels_dir()
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        raise Unbuildable(
            f"no Python headers in {headers}; "
            "install them (Debian, Ubuntu: apt install python3-dev)"
        )
    cxx = toolchain.find_cxx()
    pybind11 = toolchain.pybind11_include()
    command = [
        cxx,
        *CXX_FLAGS,
        f"-I{root / 'include'}",
        f"-isystem{pybind11}",
        f"-isystem{headers}",
    ]
    if sys.platform == "darwin":
        command.append("-Wl,-undefined,dynamic_lookup")
    version = (pybind11 / "pybind11/detail/common.h").read_bytes()
    meta = {
        "python": sysconfig.get_config_var("EXT_SUFFIX"),
        "pybind11": hashlib.sha256(version).hexdigest()[:12],
        "compiler": toolchain.compiler_version(cxx),
    }
    return command, meta


def _binding_command() -> tuple[list[str], dict]:
    """The compile command of the binding without its output, and what its library depends on."""
    command, meta = _module_command()
    source = kernels_dir() / "binding" / "binding.cpp"
    return [*command, str(source), "-ldl"], meta | {"closure_hash": _binding_hash()}


def _binding_hash() -> str:
    root = kernels_dir()
    return files_hash(include_closure([root / "binding" / "binding.cpp"], root), root)


def build_binding(force: bool = False, say: Callable[[str], None] = say) -> Path:
    """Compiles the pybind11 module that calls rungs, for this Python; returns its path.

    Raises Unbuildable.
    """
    command, meta = _binding_command()
    what = f"the binding for Python {sys.version.split()[0]}"
    return _cached("_binding", meta["python"], what, command, meta, force, say)


def build_module(name: str, text: str, say: Callable[[str], None] = say) -> Path:
    """Compiles C++ text that holds `PYBIND11_MODULE(name, m)`, for this Python; returns its path.

    Raises Unbuildable.
    """
    command, meta = _module_command()
    meta["closure_hash"] = hashlib.sha256(text.encode()).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{name}.cpp"
        source.write_text(text)
        return _cached(name, meta["python"], name, [*command, str(source)], meta, False, say)


def _cached(
    stem: str,
    suffix: str,
    what: str,
    command: list[str],
    meta: dict,
    force: bool,
    say: Callable[[str], None],
) -> Path:
    flags = [word for word in command if not os.path.isabs(word)]
    key = hashlib.sha256(json.dumps([meta, flags], sort_keys=True).encode()).hexdigest()[:16]
    cache = cache_dir()
    folder = cache / f"{stem}-{key}"
    target = folder / f"{stem}{suffix}"
    if target.is_file() and not force:
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / "lock", say):
            if target.is_file() and not force:  # another process compiled it while this one waited
                return target
            say(f"compiling {what} with {Path(command[0]).name}, once ...")
            start = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                log = _compile(
                    [*command, "-o", f"{scratch}/{stem}{suffix}"],
                    cache / f"{stem}.failed.log",
                    what,
                )
                (Path(scratch) / f"{stem}.log").write_text(log)
                record = dict(meta, command=command, seconds=round(time.perf_counter() - start, 1))
                (Path(scratch) / f"{stem}.json").write_text(json.dumps(record, indent=1))
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                for path in Path(scratch).iterdir():
                    path.rename(folder / path.name)
    except OSError as error:
        raise Unbuildable(
            f"cannot write to the cache {cache}: {error}; name another folder in KDA_LAB_CACHE"
        ) from error
    return target


def _compile(command: list[str], failed_log: Path, what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = done.stdout + done.stderr
    if done.returncode == 0:
        failed_log.unlink(missing_ok=True)
        return log
    failed_log.write_text(" ".join(command) + "\n\n" + log)
    raise CompileError(f"{what} did not compile; all of it: {failed_log}\n{trim_errors(log)}")


def trim_errors(log: str) -> str:
    """The first errors of a compiler's output, with their lines cut to a readable width."""
    lines = log.splitlines()
    chosen = [
        line for line in lines if "error" in line.lower() or "undefined reference" in line
    ] or lines
    shown = [
        line if len(line) <= ERROR_WIDTH else line[:ERROR_WIDTH] + " ..."
        for line in chosen[:ERROR_LINES]
    ]
    if len(chosen) > ERROR_LINES:
        shown.append(f"... and {len(chosen) - ERROR_LINES} more")
    return "\n".join("  " + line for line in shown)


@contextmanager
def _lock(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """One compiler at a time in a cache, over all processes: a CUTLASS compile takes gigabytes."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another build to end ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prebuilt(stem: str, suffix: str, sources: str) -> tuple[Path, dict] | None:
    """A library in KDA_LAB_LIBRARY_DIR with its record, or None if there is none.

    Raises Unbuildable if it was compiled from sources of another hash.
    """
    folder = os.environ.get("KDA_LAB_LIBRARY_DIR")
    if not folder or not (path := Path(folder) / f"{stem}{suffix}").is_file():
        return None
    meta = json.loads((path.parent / f"{stem}.json").read_text())
    if meta["closure_hash"] != sources:
        raise Unbuildable(
            f"{path} was compiled from other sources than {kernels_dir()} holds; "
            f"run kda-lab build --out {folder} again"
        )
    return path, meta


def _prebuilt_rung(rung: Rung) -> Path | None:
    found = _prebuilt(f"libkda_{rung.name}", ".so", closure_hash(rung))
    if found is None:
        return None
    path, meta = found
    here = toolchain.gpu_arch()
    if rung.cuda and here and here not in meta["architectures"]:
        raise Unbuildable(
            f"{path} holds code for {', '.join('sm_' + a for a in meta['architectures'])}, "
            f"not for this machine's GPU, sm_{here}"
        )
    return path


def _prebuilt_binding() -> Path | None:
    found = _prebuilt("_binding", sysconfig.get_config_var("EXT_SUFFIX"), _binding_hash())
    return found and found[0]


def library(rung: Rung) -> Path:
    """The rung's library for this machine: prebuilt, cached or compiled now. Raises Unbuildable."""
    return _prebuilt_rung(rung) or build_rung(rung)


def binding_library() -> Path:
    """The binding for this Python: prebuilt, cached or compiled now. Raises Unbuildable."""
    return _prebuilt_binding() or build_binding()


def why_not(rung: Rung) -> str | None:
    """None if rung and binding exist or can be compiled here, else the reason; compiles nothing."""
    try:
        if _prebuilt_rung(rung) is None:
            if rung.cuda and not default_archs(rung):
                return _wrong_gpu(rung)
            _rung_command(rung, default_archs(rung))
        if _prebuilt_binding() is None:
            _binding_command()
    except (Unbuildable, FileNotFoundError) as reason:
        return str(reason)
    return None


def import_module(name: str, path: Path) -> ModuleType:
    """Loads a compiled extension module from where it lies."""
    loader = ExtensionFileLoader(name, str(path))
    module = module_from_spec(ModuleSpec(name, loader, origin=str(path)))
    loader.exec_module(module)
    return module


def copy_out(path: Path, folder: Path) -> None:
    """Copies a library with its log and record, so that KDA_LAB_LIBRARY_DIR can name `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in path.parent.iterdir():
        shutil.copy2(file, folder / file.name)


def _build_one(name: str, archs: list[str], options: argparse.Namespace) -> list[str]:
    """Compiles the binding or a rung as the command line asks; returns what its check found wrong."""
    rung = RUNGS.get(name)
    if rung is None:
        path = build_binding(options.force, _print)
    else:
        path = build_rung(rung, archs if archs and rung.cuda else None, options.force, _print)
    seconds = json.loads((path.parent / f"{path.name.split('.')[0]}.json").read_text())["seconds"]
    _print(f"{name:8s} {path} (compiled in {seconds} s)")
    if options.out:
        copy_out(path, options.out)
    if not (options.check and rung and rung.cuda):
        return []
    return machine_code.check(rung, path, _print)


def _print(line: str) -> None:
    print(line, flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="kda-lab build", description="Compile kernel rungs and their binding into the cache."
    )
    add = parser.add_argument
    add("--rung", action="append", choices=list(RUNGS), help="this rung alone (repeatable)")
    add("--arch", action="append", default=[], help="GPU architecture, such as 90a (repeatable)")
    add("--check", action="store_true", help="also check spills and machine code")
    add("--out", type=Path, help="also copy the libraries there, for KDA_LAB_LIBRARY_DIR")
    add("--force", action="store_true", help="compile even what the cache holds")
    options = parser.parse_args(argv)
    asked = [word.removeprefix("sm_") for words in options.arch for word in words.split(",")]
    for arch in asked:
        if not re.fullmatch(r"\d{2,3}[af]?", arch):
            parser.error(f"argument --arch: {arch!r} is no architecture; say 80, 86, 89, 90a, ...")
    failed = skipped = 0
    for name in options.rung or ["binding", *RUNGS]:
        rung = RUNGS.get(name)
        archs = [a for a in asked if options.rung or (rung and rung.runs_on(a))]
        try:
            if rung and rung.cuda and asked and not archs:
                raise Unbuildable(f"not for {', '.join('sm_' + a for a in asked)}")
            for problem in _build_one(name, archs, options):
                failed += 1
                _print(f"{name:8s} CHECK FAILED: {problem}")
        except Unbuildable as reason:
            must = bool(options.rung) or isinstance(reason, CompileError) or options.check
            failed, skipped = failed + must, skipped + (not must)
            _print(f"{name:8s} {'failed' if must else 'skipped'}: {reason}")
    if failed or skipped:
        _print(f"{failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
