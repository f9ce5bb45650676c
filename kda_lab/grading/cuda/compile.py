"""From the text of a CUDA exercise file to a library for the host.

The text is preprocessed, looked through, compiled with the sanitizers' instrumentation and linked with
`runtime.cpp` in their place. Libraries are kept in the cache by the content they come from.
"""

import hashlib
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kda_lab.native import toolchain
from kda_lab.native.build import cache_dir
from kda_lab.native.toolchain import Unbuildable

HERE = Path(__file__).resolve().parent
HEADER = '#include "kda_exercise.cuh"\n'
PLAIN = [
    "-std=c++17",
    "-O1",
    "-fno-threadsafe-statics",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-w",
]
WATCHED = [*PLAIN, "-g1", "-ffp-contract=off", "-fstack-clash-protection",
           "-fsanitize=thread", "-fsanitize=bounds,alignment,null,signed-integer-overflow"]  # fmt: skip
COMPILE_SECONDS, COMPILE_MEMORY = 25, 3 << 30
KEPT = 40  # libraries of learners' texts in the cache

# One way to write dynamic shared memory is enough: extern __shared__ float s[];
DYNAMIC = re.compile(
    r"extern\s+__shared__\s+(?:__align__\(\s*\d+\s*\)\s*)?((?:unsigned\s+)?\w+)\s+"
    r"(?:__align__\(\s*\d+\s*\)\s*)?(\w+)\s*\[\s*\]\s*;"
)
SHARED = 'static __attribute__((section("kda_shared")))'
REFUSED = re.compile(
    r"\b(asm|__asm|__asm__|constructor|__constructor__|destructor|__destructor__|ifunc|__ifunc__|section|"
    r"__section__|no_sanitize\w*|__no_sanitize\w*|disable_sanitizer_instrumentation)\b"
)
KERNEL = re.compile(
    r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(?P<name>\w+)\s*\((?P<of>[^)]*)\)"
)
PARAMETER = re.compile(
    r"(?P<const>const\s+)?(?P<type>\w+)\s*(?P<pointer>\*?)\s*(?:__restrict__\s+)?(?P<name>\w+)$"
)


class Refused(ValueError):
    """A text that is not compiled, or that the compiler refuses; the message says why and where."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: an array of `type`, or a number."""

    name: str
    type: str
    array: bool
    written: bool

    @property
    def spelled(self) -> str:
        constant = "const " if self.array and not self.written else ""
        return f"{constant}{self.type}{' *' if self.array else ''}"


@cache
def kernels(text: str) -> dict[str, list[Parameter]]:
    """The kernels of a text with their parameters."""
    found = {}
    for match in KERNEL.finditer(text):
        parameters = []
        for piece in filter(None, (p.strip() for p in match["of"].split(","))):
            p = PARAMETER.match(" ".join(piece.split()))
            if p is None:
                raise Refused(f"cannot read the parameter {piece!r} of {match['name']}")
            array = bool(p["pointer"])
            parameters.append(Parameter(p["name"], p["type"], array, array and not p["const"]))
        found[match["name"]] = parameters
    return found


def signature(text: str, name: str) -> str:
    """The type of a function's address, as its definition in `text` spells it."""
    match = re.search(
        rf"^(?:__global__|__device__)\s+([^(;{{]*?)\b{name}\s*\(((?:[^()]|\([^()]*\))*)\)",
        text,
        re.M,
    )
    if match is None:
        raise Refused(f"{name} is not there")
    types = [re.sub(r"\w+\s*$", "", p.strip()).strip() for p in match[2].split(",") if p.strip()]
    if any("[" in p for p in match[2].split(",")):
        return ""  # references to arrays: left to the compiler, which sees the call
    result = match[1].replace("__forceinline__", "").replace("inline", "").strip()
    return f"{result} (*)({', '.join(types)})"


def body(text: str) -> str:
    """The text as the host form takes it."""
    return DYNAMIC.sub(r"\1 *\2 = kda::dynamic_shared<\1>();", text)


def table(entries: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f'  KDA_KERNEL("{name}", {kernel}),\n' for name, kernel in entries)
    return (
        '\n#line 1 "the grader\'s part"\nextern "C" const kda::Kernel kda_kernels[] = {\n'
        f"{rows}  {{nullptr, nullptr}}}};\n"
    )


def learners_text(filename: str, text: str, model: str, names: Iterable[str]) -> str:
    """A translation unit of a learner's text, its signatures held to the model's."""
    checks = []
    for name in [*kernels(model), *names]:
        if not re.search(rf"\b{name}\s*\(", text):
            raise Refused(f"{filename} has no function {name}")
        if type_of := signature(model, name):
            checks.append(
                f"static_assert(std::is_same_v<decltype(&::{name}), {type_of}>, "
                f'"the parameters of {name} must stay as they were");\n'
            )
    entries = [(name, f"::{name}") for name in kernels(model)]
    return (
        f'{HEADER}#line 1 "{filename}"\n{body(text)}\n#line 1 "the grader\'s part"\n'
        f"{''.join(dict.fromkeys(checks))}{table(entries)}"
    )


def variants_text(texts: list[str], names: Iterable[str]) -> str:
    """A translation unit of several versions of one file, of which only the kernels `names` are used."""
    parts = [HEADER]
    for i, text in enumerate(texts):
        inner = body(text).replace(HEADER, "\n")
        parts.append(f'namespace variant_{i} {{ namespace {{\n#line 1 "{i}"\n{inner}\n}} }}\n')
    names = list(names)
    parts.append(table((f"{i}:{n}", f"variant_{i}::{n}") for i in range(len(texts)) for n in names))
    return "".join(parts)


# ---- compiling -----------------------------------------------------------------------------------------


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (COMPILE_MEMORY, COMPILE_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (COMPILE_SECONDS, COMPILE_SECONDS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def tool(command: list[str], folder: Path, given: str = "") -> str:
    """Run a compiler's program on `given`; its output. Raises Refused with its first words of error."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, errors="replace", cwd=folder,
            timeout=COMPILE_SECONDS, preexec_fn=limited, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Refused(f"the compiler was not done after {COMPILE_SECONDS} s") from None
    if done.returncode:
        told = ("error", "multiple definition", "undefined reference")
        lines = [x for x in done.stderr.splitlines() if any(word in x for word in told)]
        text = (lines or done.stderr.splitlines() or ["the compiler failed"])[0]
        text = re.sub(r"^the grader's part:[\d:]* error: (static assertion failed: )?", "", text)
        raise Refused(text.replace(f"{folder}/", "")[:400])
    return done.stdout


def compiler() -> str:
    if not sys.platform.startswith("linux"):
        raise Unbuildable(
            "CUDA exercises are checked on Linux; on Windows use WSL, on a Mac a Linux container "
            "or a hosted notebook"
        )
    if not shutil.which("objcopy"):
        raise Unbuildable("no objcopy; install binutils (Debian, Ubuntu: apt install binutils)")
    return toolchain.find_cxx()


def preprocessed(cxx: str, text: str, folder: Path, learners: bool) -> str:
    """The text after the preprocessor; of a learner's, one that opened no file and hides nothing."""
    command = [cxx, *PLAIN, "-E", "-x", "c++", f"-I{HERE}", "-"]
    out = tool(command, folder, text)
    if not learners:
        return out
    name = re.search(r'^#line 1 "([^"]+)"$', text, re.M)
    assert name is not None
    inside, allowed = False, {name[1], "<stdin>", "the grader's part"}
    for line in out.splitlines():
        if marker := re.match(r'# \d+ "(.*?)"', line):
            inside = inside or marker[1] == name[1]
            if inside and marker[1] not in allowed:
                raise Refused(
                    f"{name[1]} may include kda_exercise.cuh and nothing else ({marker[1]})"
                )
        elif (
            inside and line.lstrip().startswith("#") and not re.match(r"\s*#\s*pragma unroll", line)
        ):
            raise Refused(f"{name[1]} may not say {line.strip()[:60]}")
        elif inside and (word := REFUSED.search(line.replace(SHARED, ""))):
            raise Refused(f"{name[1]} may not use {word[1]}")
    return out


def cached(stem: str, suffix: str, sources: Iterable[str | bytes], make) -> Path:
    """A file of the cache, by content: `make(folder)` gives its path in a folder for the time being."""
    digest = hashlib.sha256()
    for part in sources:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    target = cache_dir() / "exercises" / f"{stem}-{digest.hexdigest()[:20]}{suffix}"
    if target.is_file():
        os.utime(target)
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="work-") as folder:
            os.replace(make(Path(folder)), target)
    except OSError as error:
        raise Unbuildable(
            f"cannot write to the cache {target.parent}: {error}; name another folder in KDA_LAB_CACHE"
        ) from error
    return target


def identity(cxx: str) -> str:
    names = ("kda_exercise.cuh", "runtime.cpp", "compile.py")
    files = "".join((HERE / name).read_text() for name in names)
    return "\0".join([toolchain.compiler_version(cxx), cxx, *WATCHED, files])


def runtime(cxx: str) -> Path:
    def make(folder: Path) -> Path:
        command = [
            cxx,
            *PLAIN,
            "-O2",
            "-c",
            str(HERE / "runtime.cpp"),
            f"-I{HERE}",
            "-o",
            "runtime.o",
        ]
        tool(command, folder)
        return folder / "runtime.o"

    return cached("runtime", ".o", [identity(cxx)], make)


def library(stem: str, what: str, text: str, learners: bool) -> Path:
    """The compiled library of a translation unit. Raises Refused, or Unbuildable without a compiler."""
    cxx = compiler()

    def make(folder: Path) -> Path:
        print(f"kda-lab: compiling {what} for the host, once ...", file=sys.stderr, flush=True)
        source = preprocessed(cxx, text, folder, learners)
        command = [cxx, *WATCHED, "-x", "c++-cpp-output", "-c", "-", "-o", "exercise.o"]
        tool(command, folder, source)
        # Loading the library must run none of its code: its initialisers go.
        drop = [
            f"--remove-section={name}*"
            for name in (".init", ".ctors", ".preinit", ".fini", ".dtors")
        ]
        tool(["objcopy", *drop, "exercise.o"], folder)
        link = [
            cxx,
            "-shared",
            "-Wl,-z,now,-z,defs",
            "exercise.o",
            str(runtime(cxx)),
            "-o",
            "exercise.so",
        ]
        tool(link, folder)
        return folder / "exercise.so"

    path = cached(stem, ".so", [identity(cxx), text, str(learners)], make)
    if learners:
        old = sorted(path.parent.glob("yours-*.so"), key=lambda p: p.stat().st_mtime)[:-KEPT]
        for p in old:
            p.unlink(missing_ok=True)
    return path


# ---- from an offset in a library to words ----------------------------------------------------------------


def line_of(path: Path, pc: int) -> int:
    """The line of the learner's file that the instruction at `pc` comes from, or 0."""
    try:
        command = ["addr2line", "-e", str(path), hex(pc - 1)]
        out = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r":(\d+)", out)
    return int(match[1]) if match else 0


def shared_name(path: Path, offset: int) -> tuple[str, int] | None:
    """The shared array at an offset of the section of all of them, and the byte in it."""
    try:
        command = ["nm", "-nSC", str(path)]
        out = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = re.search(r"^(\w+) \w __start_kda_shared", out, re.M)
    if first is None:
        return None
    at = int(first[1], 16) + offset
    for row in re.finditer(r"^(\w+) (\w+) [bBdD] .*?(\w+)$", out, re.M):
        start, size = int(row[1], 16), int(row[2], 16)
        if start <= at < start + size:
            return row[3], at - start
    return None


def where(path: Path, filename: str, text: str, at: tuple[int, ...]) -> str:
    """A fault's place in words, for the learner. at: `worker.AT`, from the learner's process."""
    if len(at) != 3:
        return ""
    line, pc, _ = at
    if line <= 0 and pc > 0:
        line = line_of(path, pc)
    lines = text.splitlines()
    if not 0 < line <= len(lines):
        return ""
    return f"{filename} line {line}: {lines[line - 1].strip()}"


def with_names(path: Path, words: str, at: tuple[int, ...]) -> str:
    """A fault's words with the shared array's own name and index in place of those of the whole section."""
    match = re.search(r"shared memory\[(\d+)\]", words)
    found = shared_name(path, at[2]) if match and len(at) == 3 and at[2] >= 0 else None
    if match is None or found is None:
        return words
    name, byte = found
    item = at[2] // int(match[1]) if int(match[1]) else 1
    return words.replace(match[0], f"{name}[{byte // max(1, item)}]")
