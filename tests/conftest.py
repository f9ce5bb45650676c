"""What every test shares: nobody's progress, one thread for each worker, and what needs a compiler."""

import os
import re
import tempfile

import pytest

from kda_lab.grading import source
from kda_lab.native import toolchain

_progress = tempfile.TemporaryDirectory(prefix="kda-lab-progress-")
os.environ["KDA_LAB_PROGRESS"] = _progress.name  # before any test starts a process of its own

COMPILES = (
    "kernels/test_abi.py", "kernels/test_build.py", "kernels/test_cpu.py", "kernels/test_machine_code.py",
    "kernels/test_prepared.py", "grading/test_cuda.py",
)  # fmt: skip
CUDA = {stem: file for stem, file in source.exercise_files().items() if file.cuda}
CUDA_NAMES = [*CUDA, *(key for file in CUDA.values() for key in file.statements)]


def compiles(item: pytest.Item) -> bool:
    """Whether a test needs a compiler: those of whole files, and of the CUDA exercises."""
    return item.path.as_posix().endswith(COMPILES) or bool(
        re.search(rf"\[({'|'.join(map(re.escape, CUDA_NAMES))})\b", item.name)
    )


def without_compiler() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        toolchain.find_cxx()
    except toolchain.Unbuildable as reason:
        return str(reason)
    return None


def pytest_configure(config):
    if os.environ.get("CI") and (reason := without_compiler()):
        raise pytest.UsageError(f"CI compiles: {reason}")


def pytest_report_header(config):
    if reason := without_compiler():
        return (
            f"left out, as nothing can be compiled here: {', '.join([*COMPILES, *CUDA])} ({reason})"
        )
    return None


def pytest_collection_modifyitems(config, items):
    """A course without a compiler is a whole course: what compiles is left out and named, not skipped."""
    if without_compiler():
        out = [item for item in items if compiles(item)]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]


@pytest.fixture(scope="session", autouse=True)
def one_thread_a_worker():
    """Two workers with two threads each on two cores are slower than two with one."""
    import torch

    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)
