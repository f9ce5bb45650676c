"""Layouts, swizzles and fragment maps against CuTe itself, compiled for the host with g++.

Needs g++, the CUTLASS headers (`pip install --no-deps nvidia-cutlass`) and those of the CUDA
runtime.
"""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kda_lab.hopper.fragments import MMA_A, MMA_B, MMA_C, WGMMA_A, wgmma_c
from kda_lab.hopper.layouts import (
    TMA_SWIZZLES,
    Layout,
    blocked_product,
    complement,
    composition,
    logical_divide,
    logical_product,
    raked_product,
    row_major,
    smem_atom,
    zipped_divide,
)

NESTED = Layout(((2, 4), 3), ((12, 1), 4))
BLOCK, TILER = Layout((2, 5), (5, 1)), Layout((3, 4), (1, 3))
ZIPPED = zipped_divide(row_major(8, 16), (Layout(4), Layout(8)))
OURS = {
    "composition": composition(Layout((6, 2), (8, 2)), Layout((4, 3), (3, 1))),
    "composition nested": composition(NESTED, Layout(12, 2)),
    "complement": complement(Layout((2, 2), (1, 6)), 24),
    "logical_divide": logical_divide(Layout((4, 2, 3), (2, 1, 8)), Layout(4, 2)),
    "zipped_divide tile": ZIPPED[0],
    "zipped_divide rest": ZIPPED[1],
    "logical_product": logical_product(Layout((2, 2), (4, 1)), Layout(6, 1)),
    "blocked_product": blocked_product(BLOCK, TILER),
    "raked_product": raked_product(BLOCK, TILER),
    "Sw<3,4,3>": TMA_SWIZZLES[128],
    "Sw<2,4,3>": TMA_SWIZZLES[64],
    "Sw<1,4,3>": TMA_SWIZZLES[32],
    "atom 128": smem_atom(128),
    "atom 64": smem_atom(64),
    "atom 32": smem_atom(32),
    "mma A": MMA_A.layout,
    "mma B": MMA_B.layout,
    "mma C": MMA_C.layout,
    "wgmma A": WGMMA_A.layout,
    "wgmma C": wgmma_c(64).layout,
}


def headers() -> list[Path] | None:
    """Include folders of CUTLASS and of the CUDA runtime, or None when one is missing."""
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None or not spec.submodule_search_locations:
        return None
    cutlass = Path(spec.submodule_search_locations[0]) / "source" / "include"
    roots = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or ()) if nvidia else ():
        roots += [p.parent for p in Path(folder).glob("*/include/cuda_runtime_api.h")]
    cuda = [r for r in roots if (r / "cuda_runtime_api.h").exists()]
    if not cutlass.exists() or not cuda:
        return None
    return [cutlass, cuda[0], cuda[0] / "cccl"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    where = headers()
    if shutil.which("g++") is None or where is None:
        pytest.skip("g++, the CUTLASS headers or the CUDA runtime headers are not installed")
    program = tmp_path_factory.mktemp("cute") / "cute"
    includes = [x for folder in where for x in ("-isystem", str(folder))]
    source = Path(__file__).with_name("cute.cpp")
    subprocess.run(
        ["g++", "-std=c++17", "-w", *includes, str(source), "-o", str(program)], check=True
    )
    text = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    lines = (line.split(":") for line in text.splitlines())
    return {name: [int(x) for x in numbers.split()] for name, numbers in lines}


def test_every_line_is_compared(theirs):
    assert set(theirs) == set(OURS)


@pytest.mark.parametrize("name", OURS)
def test_cute_says_the_same(theirs, name):
    assert [OURS[name](i) for i in range(len(theirs[name]))] == theirs[name]
