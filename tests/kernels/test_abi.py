"""The C ABI: the header by itself, a C++ caller without Python, and what the binding hands over."""

import re
import subprocess

import pytest
import torch

from kda_lab.contract import make_call
from kda_lab.inputs import check_call
from kda_lab.native import build, call, toolchain
from kda_lab.native.rungs import RUNGS, kernels_dir

HEADER = kernels_dir() / "include" / "kda_lab.h"
LANGUAGES = {"C99": ("c", "c99"), "C++17": ("c++", "c++17")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_header_stands_alone(language):
    name, standard = LANGUAGES[language]
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-std={standard}", "-x", name]
    subprocess.run([toolchain.find_cxx(), *flags, "-fsyntax-only", str(HEADER)], check=True)


def test_header_declares_every_rung():
    declared = set(re.findall(r"^KDA_DECLARE_RUNG\((\w+)\)", HEADER.read_text(), re.MULTILINE))
    assert set(RUNGS) <= declared


def test_a_cpp_program_calls_a_rung(tmp_path):
    library = build.library(RUNGS["cpu"])
    source = __file__.replace("test_abi.py", "rung_abi.cpp")
    program = tmp_path / "rung_abi"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{HEADER.parent}"]
    where = [str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([toolchain.find_cxx(), *flags, source, *where, "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ok: ") == 16


def test_a_library_exports_its_four_functions_only():
    out = subprocess.run(
        ["nm", "-D", "--defined-only", str(build.library(RUNGS["cpu"]))],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = {line.split()[-1] for line in out.splitlines()}
    names = {name for name in names if "St" not in name}  # the standard library exports its own
    assert names == {f"kda_cpu_{f}" for f in ("declines", "workspace_bytes", "forward", "error")}


ECHO = """
#include "kda_lab.h"
#include <cstdio>
static char text[2000];
static char *put(char *at, const kda_tensor &x) {
  return at + sprintf(at, "%d:%d,%d,%d,%d ", x.data != nullptr, (int)x.stride_batch, (int)x.stride_token,
                      (int)x.stride_head, x.dtype);
}
extern "C" const char *kda_cpu_declines(const kda_args *a) {
  char *at = text + sprintf(text, "B%d T%d N%d H%d HV%d K%d V%d ", (int)a->batch, (int)a->tokens, (int)a->sequences,
                            a->heads_qk, a->heads_v, a->dim_k, a->dim_v);
  at = put(put(put(put(put(put(at, a->q), a->k), a->v), a->o), a->g), a->beta);
  sprintf(at, "A%d dt%d scale%g lb%g gate%d beta%d l2%d cu%d:%d first%d last%d state%d,%d threads%d",
          a->A_log != nullptr, a->dt_bias != nullptr, a->scale, a->lower_bound, a->gate, a->beta_kind, a->l2norm,
          a->cu_seqlens_bits, a->cu_seqlens != nullptr,
          a->initial_state != nullptr, a->final_state != nullptr, a->state_dtype,
          a->state_v_first, a->threads);
  return text;
}
extern "C" int64_t kda_cpu_workspace_bytes(const kda_args *) { return 100; }
extern "C" kda_status kda_cpu_forward(const kda_args *a) {
  const bool good = a->workspace && a->workspace_bytes >= 100 && (uintptr_t)a->workspace % 256 == 0;
  return good ? (kda_status)a->lower_bound : KDA_OK;
}
extern "C" const char *kda_cpu_error(void) { return "the reason"; }
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A rung that tells what it was given, as its reason to decline, and fails as lower_bound says."""
    folder = tmp_path_factory.mktemp("echo")
    (folder / "echo.cpp").write_text(ECHO)
    command = [
        toolchain.find_cxx(),
        "-shared",
        "-fPIC",
        f"-I{HEADER.parent}",
        str(folder / "echo.cpp"),
    ]
    subprocess.run([*command, "-o", str(folder / "libkda_cpu.so")], check=True)
    return call.binding().load(str(folder / "libkda_cpu.so"), "cpu")


def test_arguments_arrive(echo):
    def told(**kw):
        return echo.declines(call._Arguments(check_call(**kw)).args)

    threads = f" threads{torch.get_num_threads()}"
    kw = make_call(
        "strong", torch.bfloat16, lengths=(5,), B=3, H=2, HV=4, K=8, V=6, activate_inside=True
    )
    kw.update(scale=0.5, lower_bound=-4.0, state_v_first=True)
    kw["initial_state"] = kw["initial_state"].transpose(2, 3)  # made contiguous on the way
    assert told(**kw) == (
        "B3 T5 N3 H2 HV4 K8 V6 1:80,16,8,1 1:80,16,8,1 1:120,24,6,1 1:120,24,6,1 1:160,32,8,1 1:20,4,1,1 "
        "A1 dt1 scale0.5 lb-4 gate3 beta2 l21 cu0:0 first1 last1 state0,1" + threads
    )
    kw = make_call("minus30", torch.float32, lengths=(5, 4), packed=True, H=1, HV=1, K=4, V=4, state=False,
                   index_dtype=torch.int32)  # fmt: skip
    kw["output_final_state"] = False
    assert told(**kw) == (
        "B1 T9 N2 H1 HV1 K4 V4 1:36,4,4,0 1:36,4,4,0 1:36,4,4,0 1:36,4,4,0 1:36,4,4,0 1:9,1,1,0 "
        "A0 dt0 scale0.5 lb0 gate0 beta0 l20 cu32:1 first0 last0 state0,0" + threads
    )
    kw["cu_seqlens"] = kw["cu_seqlens"].long()
    assert " cu64:1 " in told(**kw)
    for kind, gate in (("minus5", 1), ("softplus", 2), ("weak", 3)):
        assert f" gate{gate} " in told(**make_call(kind, torch.float32))
    kw = make_call("weak", torch.float32)
    assert " beta1 " in told(**dict(kw, use_beta_sigmoid_in_kernel=True))
    kw["v"] = kw["v"].transpose(1, 2).contiguous().transpose(1, 2)
    assert f"1:{75 * 4 * 20},20,{75 * 20},0 " in told(**kw)


def test_bf16_state_and_fp32_gate_arrive(echo):
    kw = make_call("minus5", torch.bfloat16, lengths=(3,), H=1, HV=1, K=4, V=4)
    kw["g"], kw["beta"] = kw["g"].float(), kw["beta"].float()
    kw["initial_state"] = kw["initial_state"].bfloat16()
    told = echo.declines(call._Arguments(check_call(**kw)).args)
    assert "1:12,4,4,0 1:3,1,1,0" in told
    assert "state1,0" in told


@pytest.mark.parametrize(
    "status,error,words",
    [
        (1, ValueError, "contradicts kda_lab.h: the reason"),
        (2, ValueError, "cannot serve this call: the reason"),
        (3, RuntimeError, "workspace .*: the reason"),
        (4, RuntimeError, "CUDA refused: the reason"),
        (7, RuntimeError, "unknown status 7"),
    ],
)
def test_status_codes_become_exceptions(echo, monkeypatch, status, error, words):
    monkeypatch.setattr(call, "load", lambda _: echo)
    arguments = call._Arguments(check_call(**make_call("weak", torch.float32)))
    assert (
        call.run(RUNGS["cpu"], check_call(**make_call("minus5", torch.float32)))[0].shape[1] == 75
    )
    values = [1] * 46
    values[35] = float(status)  # lower_bound, which the echo returns as its status
    arguments.args = call.binding().Args(tuple(values))
    with pytest.raises(error, match=words):
        call._forward(RUNGS["cpu"], arguments, torch.device("cpu"))


def test_the_binding_counts_its_values():
    for values in ((), (1,) * 45, (1,) * 47):
        with pytest.raises(ValueError, match="values for kda_args"):
            call.binding().Args(values)
    with pytest.raises(TypeError):
        call.binding().Args(("one",) * 46)


def test_a_library_without_the_functions_is_refused():
    with pytest.raises(RuntimeError, match="exports no kda_v1_declines"):
        call.binding().load(str(build.library(RUNGS["cpu"])), "v1")
    with pytest.raises(RuntimeError, match="cannot load"):
        call.binding().load("/nonexistent/libkda_cpu.so", "cpu")
