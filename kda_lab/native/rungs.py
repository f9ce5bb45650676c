"""The ladder: every compiled rung, what it serves, and which files it is made of.

A rung is one shared library `libkda_NAME` behind `kernels/include/kda_lab.h`. This table is the
one place that names its sources and flags; builder, backends, ledger and notebooks read it.
"""

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

GATES = {  # kind: what the rung is given; see kda_gate in kda_lab.h
    "log": "a log decay of any size, -inf included",
    "log_bounded": "a log decay that the caller promises is >= -5",
    "softplus": "logits of the softplus gate, which has no lower bound",
    "sigmoid": "logits of the sigmoid gate with lower_bound in [-5, 0)",
    "sigmoid_wide": "logits of the sigmoid gate with lower_bound below -5",
}
ALL_GATES = tuple(GATES)


@dataclass(frozen=True)
class Rung:
    """One compiled implementation.

    name: `kda_NAME_forward` in the ABI.
    idea: the one idea by which it differs from the rung before.
    direction: "forward" or "decode".
    sources: translation units, relative to the kernels folder.
    architectures: () for the CPU; "80+" means any GPU from sm_80, "90a" means Hopper alone.
    shapes: (K, V) pairs served; () means any.
    gates, inputs, states: the kinds and dtypes served exactly; a call with another is declined.
    claims: mnemonics that its machine code must contain, such as "HMMA".
    spills: {part of a kernel's name: bytes of spill accepted there}; nothing else may spill.
    cutlass: whether it includes CUTLASS headers.
    unproven: cases of `kda-lab gpu-check` that it fails today. It is built, timed and served by name, but until
        they pass "auto" does not choose it.
    """

    name: str
    idea: str
    sources: tuple[str, ...]
    direction: str = "forward"
    architectures: tuple[str, ...] = ("80+",)
    shapes: tuple[tuple[int, int], ...] = ()
    gates: tuple[str, ...] = ALL_GATES
    inputs: tuple[str, ...] = ("float32", "bfloat16")
    states: tuple[str, ...] = ("float32",)
    flags: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    spills: dict[str, int] = field(default_factory=dict, hash=False)
    cutlass: bool = False
    unproven: tuple[str, ...] = ()

    @property
    def cuda(self) -> bool:
        return bool(self.architectures)

    def runs_on(self, arch: str) -> bool:
        """Whether machine code for `arch` ("80", "90a", ...) of this rung can exist."""
        number = int(arch.rstrip("af"))
        return any(
            number >= int(a[:-1]) if a.endswith("+") else a == arch for a in self.architectures
        )


RUNGS: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        Rung(
            "cpu",
            "chunks of 16 in C++: vectors, threads, and decays as running products",
            ("cpu/cpu.cpp",),
            architectures=(),
        ),
        Rung(
            "v0",
            "one thread block per sequence and head, the equation as written",
            ("v0/v0.cu",),
        ),
        Rung(
            "v1",
            "the state in registers, split over V, with loads ahead of use",
            ("v1/v1.cu",),
        ),
        Rung(
            "decode",
            "one token: stream the state once through a block, update it in place",
            ("decode/decode.cu",),
            direction="decode",
            states=("float32", "bfloat16"),
            spills={"VFirstItLi128": 8},  # five blocks an SM, at 80 registers, are worth it
        ),
        Rung(
            "v2",
            "chunks of 16 on tensor cores: prepare tokens in parallel, then walk the chunks",
            ("v2/v2.cu",),
            shapes=((128, 128),),
            inputs=("bfloat16",),
            states=("float32", "bfloat16"),
            claims=("HMMA.16816",),
            spills={"prepare": 4},  # on sm_80, in two variants; none on sm_90a
        ),
        Rung(
            "v3",
            "the copy engine and warp roles: loads, products and stores each in warps of their own",
            ("v3/v3.cu",),
            architectures=("90a",),
            shapes=((128, 128),),
            inputs=("bfloat16",),
            states=("float32", "bfloat16"),
            claims=("HMMA.16816", "UTMALDG", "UBLKCP", "SYNCS", "USETMAXREG"),
            cutlass=True,
            unproven=("racecheck",),
        ),
        Rung(
            "v4",
            "chunks of 64, re-based every 16, and the state in wgmma accumulators",
            ("v4/v4.cu",),
            architectures=("90a",),
            shapes=((128, 128),),
            inputs=("bfloat16",),
            states=("float32", "bfloat16"),
            claims=("HGMMA", "UBLKCP", "SYNCS"),
            spills={"prepare": 56},  # three blocks an SM, at 80 registers, are worth it
            unproven=("racecheck", "synccheck"),
        ),
    )
}


def kernels_dir() -> Path:
    """The folder of kernel sources: the clone's, else the copy inside the installed package."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "kernels", package / "kernels"):
        if (folder / "include" / "kda_lab.h").is_file():
            return folder
    raise FileNotFoundError(f"no kernel sources beside or inside {package}; reinstall kda_lab")


INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]*["<]([^">\n]+)[">]', re.MULTILINE)


def include_closure(sources: list[Path], root: Path) -> list[Path]:
    """Every file under `root` that `sources` reach through #include, themselves among them, sorted.

    An include is looked for beside the file that names it, then in `root` and `root/include`;
    what lies elsewhere (CUDA, CUTLASS, the standard library) is not first-party and is left out.
    Preprocessor conditions are not evaluated: a header that may be included belongs to the closure.
    """
    root = root.resolve()
    waiting = [path.resolve() for path in sources]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for match in INCLUDE.finditer(path.read_bytes()):
            name = os.fsdecode(match[1])
            for folder in (path.parent, root, root / "include"):
                candidate = (folder / name).resolve()
                if candidate.is_file():
                    if candidate.is_relative_to(root):
                        waiting.append(candidate)
                    break
    return sorted(found)


def files_hash(files: list[Path], root: Path) -> str:
    """SHA-256 over the files' paths below `root` and their bytes; hexadecimal."""
    digest = hashlib.sha256()
    root = root.resolve()
    for path in sorted(files, key=lambda p: p.relative_to(root).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def closure(rung: Rung | str, root: Path | None = None) -> list[Path]:
    """The first-party files that a rung is compiled from, headers included, sorted."""
    rung = RUNGS[rung] if isinstance(rung, str) else rung
    root = root or kernels_dir()
    return include_closure([root / source for source in rung.sources], root)


def closure_hash(rung: Rung | str, root: Path | None = None) -> str:
    """The hash that the ledger stores for a rung: byte for byte over `closure`."""
    root = root or kernels_dir()
    return files_hash(closure(rung, root), root)
