"""Small pieces of C++ and CUDA for the notebooks: read from a rung, or compiled from a string."""

import re
import subprocess
import tempfile
import textwrap
from pathlib import Path
from types import ModuleType

from kda_lab.native import build, machine_code, toolchain
from kda_lab.native.rungs import kernels_dir


def excerpt(path: str, begin: str, end: str) -> str:
    """The lines of `kernels/PATH` from the first that holds `begin` to the next that holds `end`.

    Common indentation is taken away. Raises ValueError naming what is not there.
    """
    lines = (kernels_dir() / path).read_text().splitlines()
    lines = lines[_line_with(begin, lines, path) :]
    lines = lines[: _line_with(end, lines, path) + 1]
    return textwrap.dedent("\n".join(lines))


def _line_with(words: str, lines: list[str], path: str) -> int:
    for i, line in enumerate(lines):
        if words in line:
            return i
    raise ValueError(f"{path} has no line with {words!r}")


def cpp_module(name: str, text: str) -> ModuleType:
    """Compiles C++ with `PYBIND11_MODULE(name, m)` unless the cache has it, and imports it.

    Raises toolchain.Unbuildable with what is missing, or with the compiler's first errors.
    """
    path = build.build_module(name, text, say=lambda _: None)
    # pybind11 gives the first module of a name for ever; its folder's name changes with the text
    return build.import_module(f"{path.parent.name}.{name}", path)


def cuda_instructions(text: str, pattern: str) -> list[str]:
    """The machine instructions of CUDA text whose mnemonic matches `pattern`, in their order.

    Compiled for this machine's GPU, or for sm_90a where there is none. Raises toolchain.Unbuildable.
    """
    arch = toolchain.gpu_arch() or "90a"
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "snippet.cu", Path(folder) / "snippet.cubin"
        source.write_text(text)
        command = [toolchain.find_nvcc(), "-std=c++17", "-O3", "-cubin"]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise toolchain.CompileError(build.trim_errors(done.stdout + done.stderr))
        found = map(machine_code.INSTRUCTION.match, machine_code.sass(cubin).splitlines())
    return [f"{m[1]} {m[2]}".strip() for m in found if m and re.match(pattern, m[1])]
