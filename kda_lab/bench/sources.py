"""Which kernel sources stand: the rungs of the registry, the measuring programs beside them, their hashes.

A microbenchmark is one file `kernels/micro/NAME.cu`, a skeleton one file `kernels/skeletons/NAME.cu`;
both are programs with a `main` (see `micro`).
"""

from pathlib import Path

from kda_lab.native import rungs

PROGRAMS = ("micro", "skeletons")


def kernels_dir() -> Path:
    """The working directory's `kernels/` when there is one, else the library's own."""
    here = Path("kernels")
    if (here / "include" / "kda_lab.h").is_file():
        return here.resolve()
    return rungs.kernels_dir().resolve()


def gpu_rungs() -> list[str]:
    """The rungs that need a report from a GPU, in ladder order."""
    return [name for name, rung in rungs.RUNGS.items() if rung.cuda]


def programs() -> dict[str, Path]:
    """Microbenchmarks and skeletons: name -> source file."""
    root = kernels_dir()
    return {p.stem: p for folder in PROGRAMS for p in sorted((root / folder).glob("*.cu"))}


def closures() -> dict[str, list[Path]]:
    """Name -> first-party files, for every rung, microbenchmark and skeleton whose sources exist."""
    root = kernels_dir()
    starts = {name: [root / s for s in rung.sources] for name, rung in rungs.RUNGS.items()}
    starts |= {name: [path] for name, path in programs().items()}
    return {
        name: rungs.include_closure(start, root)
        for name, start in starts.items()
        if all(path.is_file() for path in start)
    }


def standing_hashes() -> dict[str, str]:
    """Name -> hash over the sources as they stand now."""
    root = kernels_dir()
    return {name: rungs.files_hash(paths, root) for name, paths in closures().items()}


def compiled_hashes() -> dict[str, str]:
    """Name -> hash of the rungs' sources that the builder compiles, wherever the command runs."""
    return {
        name: rungs.closure_hash(name)
        for name, rung in rungs.RUNGS.items()
        if all((rungs.kernels_dir() / source).is_file() for source in rung.sources)
    }


def orphans() -> list[str]:
    """CUDA sources that belong to no closure, relative to the kernels folder."""
    root = kernels_dir()
    owned = {path for paths in closures().values() for path in paths}
    found = [
        p for suffix in ("*.cu", "*.cuh") for p in root.rglob(suffix) if p.resolve() not in owned
    ]
    return sorted(str(p.relative_to(root)) for p in found)
