"""Reading the compiler's report and the machine code; with nvcc, every CUDA rung by `kda-lab build --check`."""

import json
from dataclasses import replace

import pytest

from kda_lab.native import build, machine_code, toolchain
from kda_lab.native.rungs import RUNGS, Rung

LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5cleanPf' for 'sm_80'
ptxas info    : Function properties for _Z5cleanPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compile time = 5.9 ms
ptxas info    : Compiling entry function '_Z5spillPf' for 'sm_90a'
ptxas info    : Function properties for _Z5spillPf
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 360 bytes cmem[0]
"""
SASS = """\
	code for sm_80
		Function : _Z5cleanPf
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                 /* 0x00000a0000017a02 */
        /*0010*/              @!P0 BRA 0x20 ;                             /* 0x0 */
        /*0020*/                   HMMA.16816.F32.BF16 R4, R4, R8, R4 ;   /* 0x0 */
	code for sm_90a
        /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x0 */
        /*0010*/          @P1      HGMMA.64x64x16.F32.BF16 R4, gdesc[UR4] ; /* 0x0 */
        /*fff0*/                   HMMA.16816.F32.BF16 R4, R4, R8, R4 ;   /* 0x0 */
       /*10000*/                   EXIT ;                                 /* 0x0 */
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A library whose report is LOG and whose machine code, by a stand-in for cuobjdump, is SASS."""
    path = tmp_path / "libkda_x.so"
    path.with_suffix(".log").write_text(LOG)
    path.with_suffix(".json").write_text(json.dumps({"architectures": ["80", "90a"]}))
    (tmp_path / "sass").write_text(SASS)
    program = tmp_path / "cuobjdump"
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/sass\n")
    program.chmod(0o755)
    monkeypatch.setenv("KDA_LAB_CUOBJDUMP", str(program))
    return path


def problems(path, **fields) -> list[str]:
    rung = replace(Rung("x", "", ()), **{"spills": {"_Z5spill": 20}, **fields})
    return machine_code.check(rung, path, lambda _: None)


def test_reports():
    clean, spill = machine_code.kernel_reports(LOG)
    assert clean == machine_code.KernelReport("_Z5cleanPf", "80", 40, 0, 0, 0)
    assert spill == machine_code.KernelReport("_Z5spillPf", "90a", 255, 24, 16, 20)


def test_instructions(fake):
    counts = machine_code.sass_counts(fake)
    assert counts["80"] == {"MOV": 1, "BRA": 1, "HMMA.16816.F32.BF16": 1}
    assert counts["90a"] == {
        "LDC": 1, "HGMMA.64x64x16.F32.BF16": 1, "HMMA.16816.F32.BF16": 1, "EXIT": 1,
    }  # fmt: skip


def test_summary_is_of_the_newest_architecture(fake):
    assert machine_code.summary(fake) == {
        "arch": "90a",
        "kernels": [{"name": "spill", "registers": 255, "spilled": 36}],
        "sass": {
            "LDC": 1, "HGMMA.64x64x16.F32.BF16": 1, "HMMA.16816.F32.BF16": 1, "EXIT": 1,
        },
    }  # fmt: skip


def test_names_of_kernels():
    place = "_ZN41_GLOBAL__N__2e243e7c_9_decode_cu_9c670f42"
    assert machine_code.spoken("_Z5cleanPf") == "clean"
    assert machine_code.spoken(f"{place}10recurrenceE8kda_argsi") == "recurrence"
    name = f"{place}9recurrentINS_5ShapeILi128ELi16EEEEEv8kda_argsib"
    assert machine_code.spoken(name) == "recurrent 128 16"
    name = f"{place}14decode_v_firstItNS_6VFirstItLi128EEEEEv8kda_argsi"
    assert machine_code.spoken(name) == "decode_v_first bf16 128"


def test_nothing_wrong(fake):
    assert problems(fake, claims=("HMMA.16816",)) == []


def test_spills_nobody_accepted(fake):
    assert "_Z5spillPf spills 16" in problems(fake, spills={})[0]
    assert "accepted: 19" in problems(fake, spills={"_Z5spill": 19})[0]
    assert "accepted: 0" in problems(fake, spills={"_Z5clean": 99})[0]


def test_a_claim_that_one_architecture_lacks(fake):
    (problem,) = problems(fake, claims=("HGMMA",))
    assert problem == "no HGMMA in the machine code for sm_80, which the rung claims"


def test_a_report_without_kernels_is_no_pass(fake):
    fake.with_suffix(".log").write_text("")
    assert len(problems(fake)) == 2


def test_serialised_wgmma(fake):
    line = "ptxas info : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized due to ..."
    fake.with_suffix(".log").write_text(LOG + line)
    assert "serialised wgmma" in problems(fake)[0]


def test_no_cuobjdump_is_no_pass(fake, monkeypatch):
    monkeypatch.setenv("KDA_LAB_CUOBJDUMP", "/nonexistent")
    with pytest.raises(toolchain.Unbuildable, match=r"no cuobjdump.*pip install"):
        problems(fake, claims=("HMMA",))


def tools_here() -> bool:
    try:
        return bool(toolchain.find_nvcc() and toolchain.find_cuda_program("cuobjdump"))
    except toolchain.Unbuildable:
        return False


if tools_here():  # else these tests do not exist, rather than skip

    @pytest.mark.nvcc
    @pytest.mark.parametrize("name", [name for name, rung in RUNGS.items() if rung.cuda])
    def test_every_cuda_rung(name, capsys):
        status = build.main(["--rung", name, "--check"])
        assert status == 0, capsys.readouterr().out

    @pytest.mark.nvcc
    def test_the_check_sees_a_real_spill(tmp_path, monkeypatch):
        """A kernel held to 24 registers that keeps 64 numbers alive, and claims tensor cores."""
        root = tmp_path / "kernels"
        (root / "include").mkdir(parents=True)
        (root / "include/kda_lab.h").write_text("")
        (root / "x.cu").write_text("""
__global__ void crowded(float *x) {
  float y[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) y[i] = x[i * 1024 + threadIdx.x];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i * 1024 + threadIdx.x] = y[i] * y[63 - i] + y[(i * 7) % 64];
}
""")
        monkeypatch.setattr(build, "kernels_dir", lambda: root)
        monkeypatch.setattr("kda_lab.native.rungs.kernels_dir", lambda: root)
        monkeypatch.setenv("KDA_LAB_CACHE", str(tmp_path / "cache"))
        rung = Rung("x", "", ("x.cu",), flags=("-maxrregcount=24",), claims=("HMMA",))
        path = build.build_rung(rung, ["80"])
        found = machine_code.check(rung, path, lambda _: None)
        assert any("spills" in problem for problem in found), found
        assert any("no HMMA" in problem for problem in found), found
