"""Pieces of C++ and CUDA for the notebooks."""

import pytest

from kda_lab.native import snippets, toolchain

ADD = """
#include <pybind11/pybind11.h>
static double add(double x, double y) { return x + y; }
PYBIND11_MODULE(sums, m) { m.def("add", &add); }
"""
COPY = """
__global__ void copy(const %s *x, %s *y) { y[threadIdx.x] = x[threadIdx.x]; }
"""


def has(find) -> bool:
    try:
        find()
    except toolchain.Unbuildable:
        return False
    return True


def test_excerpt_takes_indentation_away_and_names_what_is_missing():
    lines = snippets.excerpt("v0/v0.cu", "float read = 0.0f", "const float u").splitlines()
    assert lines[0].startswith("float read") and lines[-1].startswith("const float u")
    assert len(lines) == 3
    with pytest.raises(ValueError, match="has no line with 'nowhere'"):
        snippets.excerpt("v0/v0.cu", "float read", "nowhere")
    with pytest.raises(ValueError, match="no line with 'float read'"):  # it stands before the first
        snippets.excerpt("v0/v0.cu", "const float u", "float read")


@pytest.mark.skipif(not has(toolchain.find_cxx), reason="no C++ compiler")
def test_cpp_module_compiles_once_for_each_text(tmp_path, monkeypatch):
    monkeypatch.setenv("KDA_LAB_CACHE", str(tmp_path))
    assert snippets.cpp_module("sums", ADD).add(2, 3) == 5
    snippets.cpp_module("sums", ADD)
    assert len(list(tmp_path.glob("sums-*"))) == 1
    assert snippets.cpp_module("sums", ADD.replace("x + y", "x * y")).add(2, 3) == 6
    with pytest.raises(toolchain.CompileError, match="sums did not compile"):
        snippets.cpp_module("sums", ADD.replace("double y)", "double)"))


@pytest.mark.skipif(not has(toolchain.find_nvcc), reason="no nvcc")
@pytest.mark.skipif(toolchain.find_cuda_program("cuobjdump") is None, reason="no cuobjdump")
def test_cuda_instructions_show_the_width_of_a_load():
    (narrow,) = snippets.cuda_instructions(COPY % ("float", "float"), "LDG")
    (wide,) = snippets.cuda_instructions(COPY % ("float4", "float4"), "LDG")
    assert narrow.startswith("LDG.E R") and wide.startswith("LDG.E.128 R")
    with pytest.raises(toolchain.CompileError, match="error"):
        snippets.cuda_instructions("__global__ void f() { nonsense }", "LDG")


def test_without_compilers_the_reason_is_said(monkeypatch):
    def nothing(*_):
        raise toolchain.Unbuildable("no compiler here")

    monkeypatch.setattr(toolchain, "find_nvcc", nothing)
    monkeypatch.setattr(toolchain, "find_cxx", nothing)
    with pytest.raises(toolchain.Unbuildable, match="no compiler here"):
        snippets.cuda_instructions("", "")
    with pytest.raises(toolchain.Unbuildable, match="no compiler here"):
        snippets.cpp_module("sums", ADD)
