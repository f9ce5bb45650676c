"""What this machine can compile with and for: compilers, CUDA, the GPU, headers from packages."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

OLDEST_CUDA = (12, 0)  # the first release that knows sm_90a
PIP_NVCC = "pip install 'cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.2'"


class Unbuildable(RuntimeError):
    """A library cannot be compiled here; the message says why and what to do."""


class CompileError(Unbuildable):
    """The compiler is there and refuses the source."""


def _package_dirs(name: str) -> list[Path]:
    """The folders of an installed package, namespace packages included, without importing it."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return []
    return [Path(p) for p in spec.submodule_search_locations or ()] if spec else []


def _cuda_programs(program: str) -> Iterator[Path]:
    """Where a CUDA program may be, best guess first."""
    if named := os.environ.get(f"KDA_LAB_{program.upper()}"):
        yield Path(named)
        return  # whoever names one does not want another
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield Path(home) / "bin" / program
    if found := shutil.which(program):
        yield Path(found)
    for package in _package_dirs("nvidia"):
        yield from sorted(package.glob(f"cu[0-9]*/bin/{program}"), reverse=True)
        yield from sorted(package.glob(f"cuda_*/bin/{program}"))
    yield Path("/usr/local/cuda/bin") / program


def find_cuda_program(program: str) -> Path | None:
    """`nvcc` or `cuobjdump` from a variable, CUDA_HOME, PATH or pip packages; None without one."""
    return next((p for p in _cuda_programs(program) if os.access(p, os.X_OK)), None)


def find_cxx() -> str:
    """The C++ compiler: CXX, else g++, c++ or clang++ on PATH. Raises Unbuildable without one."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    raise Unbuildable(
        "no C++ compiler: neither CXX nor g++, c++ or clang++ on PATH names one; "
        "install g++ (Debian, Ubuntu: apt install g++)"
    )


@lru_cache
def compiler_version(compiler: str) -> str:
    """The compiler's own words about its version, one line."""
    out = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=False
    ).stdout
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    release = [line for line in lines if "release" in line]
    return (release or lines or ["unknown"])[0]


def cuda_version(nvcc: str) -> tuple[int, int]:
    match = re.search(r"release (\d+)\.(\d+)", compiler_version(nvcc))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def find_nvcc() -> str:
    """A usable nvcc. Raises Unbuildable with the remedy when there is none or it is too old."""
    nvcc = find_cuda_program("nvcc")
    if nvcc is None and (named := os.environ.get("KDA_LAB_NVCC")):
        raise Unbuildable(f"KDA_LAB_NVCC names {named}, which is no program; unset or correct it")
    if nvcc is None:
        raise Unbuildable(
            "no CUDA compiler: nvcc is not in KDA_LAB_NVCC, CUDA_HOME, PATH or the installed "
            f"Python packages; install one with: {PIP_NVCC}"
        )
    version = cuda_version(str(nvcc))
    if version < OLDEST_CUDA:
        raise Unbuildable(
            f"CUDA {version[0]}.{version[1]} ({nvcc}) is too old: the kernels need "
            f"{OLDEST_CUDA[0]}.{OLDEST_CUDA[1]} or newer; name another nvcc in KDA_LAB_NVCC, "
            f"or: {PIP_NVCC}"
        )
    if (driver := driver_cuda_version()) and driver[0] < version[0]:
        raise Unbuildable(
            f"CUDA {version[0]}.{version[1]} ({nvcc}) is too new for this machine's driver, which "
            f"serves CUDA {driver[0]}.{driver[1]}; update the driver, or name an nvcc "
            f"{driver[0]}.x in KDA_LAB_NVCC"
        )
    return str(nvcc)


@lru_cache
def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA that the installed driver serves, or None where there is no driver."""
    import ctypes

    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10


@lru_cache
def gpu_arch() -> str | None:
    """This machine's GPU as nvcc names its architecture ("90a", "86"), or None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    return arch_name(*torch.cuda.get_device_capability())


def arch_name(major: int, minor: int) -> str:
    return "90a" if (major, minor) == (9, 0) else f"{major}{minor}"


def cutlass_include() -> Path:
    """CUTLASS headers of the nvidia-cutlass package. Raises Unbuildable without it."""
    for package in _package_dirs("cutlass_library"):
        if (package / "source/include/cute/tensor.hpp").is_file():
            return package / "source/include"
    raise Unbuildable(
        "no CUTLASS headers; install them with: pip install --no-deps nvidia-cutlass==4.2.0.0"
    )


def pybind11_include() -> Path:
    """Headers of pybind11: its own package, else the copy that PyTorch carries."""
    for package in ("pybind11", "torch"):
        for folder in _package_dirs(package):
            if (folder / "include/pybind11/pybind11.h").is_file():
                return folder / "include"
    raise Unbuildable("no pybind11 headers; install them with: pip install pybind11")
