"""A ledger of its own for every test: a copy of the kernel sources with reports for all of them."""

import shutil
from pathlib import Path

import pytest

from kda_lab.bench import sources
from kda_lab.native.rungs import RUNGS
from tests.ledger.entries import entry, put


@pytest.fixture
def kernels(tmp_path, monkeypatch) -> Path:
    """The working directory holds `kernels/` without any measurement."""
    original = sources.kernels_dir()
    shutil.copytree(original, tmp_path / "kernels", ignore=shutil.ignore_patterns("*.json"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels" / "measurements").mkdir(exist_ok=True)
    return tmp_path / "kernels"


@pytest.fixture
def passing(kernels) -> Path:
    """A ledger that `check` accepts."""
    for number, rung in enumerate(sources.gpu_rungs()):
        rows = [dict(rung=rung, case=case, status="passed") for case in ("lengths", "memcheck")]
        rows += [dict(rung=rung, case=case, status="failed") for case in RUNGS[rung].unproven]
        put(
            entry(
                "gpu-check",
                rows,
                f"2026-11-24T00:00:0{number}Z",
                planned={rung: ["lengths", "memcheck"]},
            )
        )
    programs = [
        dict(rung=name, direction="micro", workload="n=64", value=1.0, unit="TFLOP/s")
        for name in sources.programs()
    ]
    if programs:
        put(entry("micro", programs))
    return kernels
