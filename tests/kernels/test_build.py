"""The builder: what is compiled when, out of which files, and what it says when it cannot."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from kda_lab.native import build, call, rungs, toolchain
from kda_lab.native.rungs import (
    RUNGS,
    Rung,
    closure,
    closure_hash,
    files_hash,
    include_closure,
    kernels_dir,
)

SOURCE = """
#include "kda_lab.h"
#include "{extra}"
extern "C" {{
const char *kda_{name}_declines(const kda_args *) {{ return ANSWER; }}
int64_t kda_{name}_workspace_bytes(const kda_args *) {{ return 0; }}
kda_status kda_{name}_forward(const kda_args *) {{ return KDA_OK; }}
const char *kda_{name}_error(void) {{ return ""; }}
}}
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A kernels folder of two small C++ rungs that share one header, and a cache of its own."""
    root = tmp_path / "kernels"
    (root / "include").mkdir(parents=True)
    shutil.copy(kernels_dir() / "include/kda_lab.h", root / "include")
    (root / "common").mkdir()
    (root / "common/shared.h").write_text('#define ANSWER "no"\n')
    small = {}
    for name in ("v0", "v1"):
        (root / name).mkdir()
        (root / name / "own.h").write_text('#include "../common/shared.h"\n')
        source = SOURCE.format(name=name, extra="own.h" if name == "v0" else "common/shared.h")
        (root / name / f"{name}.cpp").write_text(source)
        (root / name / "NOTES.md").write_text("what was tried\n")
        small[name] = Rung(name, "an idea", (f"{name}/{name}.cpp",), architectures=())
    for module in (build, rungs):
        monkeypatch.setattr(module, "kernels_dir", lambda: root)
        monkeypatch.setattr(module, "RUNGS", small)
    monkeypatch.setenv("KDA_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDA_LAB_LIBRARY_DIR", raising=False)
    return root


def compiled(*names: str) -> list[str]:
    """Builds the rungs named and returns which of them were really compiled."""
    said: list[str] = []
    for name in names or ("v0", "v1"):
        assert build.build_rung(build.RUNGS[name], say=said.append).is_file()
    return [line.split()[1] for line in said if line.startswith("compiling")]


def test_a_second_build_compiles_nothing(lab):
    assert compiled() == ["v0", "v1"]
    assert compiled() == []


def test_touching_one_rung_rebuilds_one_rung(lab):
    compiled()
    (lab / "v1/v1.cpp").write_text((lab / "v1/v1.cpp").read_text() + "// touched\n")
    assert compiled() == ["v1"]
    (lab / "v0/own.h").write_text('#include "../common/shared.h" // touched\n')
    assert compiled() == ["v0"]


def test_touching_a_shared_header_rebuilds_both(lab):
    compiled()
    (lab / "common/shared.h").write_text('#define ANSWER "never"\n')
    assert compiled() == ["v0", "v1"]
    (lab / "common/shared.h").write_text('#define ANSWER "no"\n')
    assert compiled() == []  # the first libraries are still there


def test_notes_and_times_rebuild_nothing(lab):
    compiled()
    (lab / "v0/NOTES.md").write_text("something else\n")
    os.utime(lab / "v0/v0.cpp")
    assert compiled() == []


def test_flags_and_compiler_rebuild(lab, monkeypatch):
    compiled("v0")
    monkeypatch.setitem(build.RUNGS, "v0", replace(build.RUNGS["v0"], flags=("-DEXTRA",)))
    assert compiled("v0") == ["v0"]
    monkeypatch.setattr(toolchain, "compiler_version", lambda _: "another compiler 9.9")
    assert compiled("v0") == ["v0"]


def test_two_processes_compile_once(lab):
    code = (
        "import sys; from pathlib import Path; from kda_lab.native import build, rungs;"
        f"build.kernels_dir = rungs.kernels_dir = lambda: Path({str(lab)!r});"
        "rung = rungs.Rung('v0', 'idea', ('v0/v0.cpp',), architectures=());"
        "print(build.build_rung(rung, say=lambda line: print(line)))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [run.communicate()[0] for run in runs]
    assert sum("compiling v0" in out for out in outputs) == 1
    assert len({out.splitlines()[-1] for out in outputs}) == 1


def test_the_record_beside_a_library(lab):
    path = build.build_rung(build.RUNGS["v0"])
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["closure_hash"] == closure_hash(build.RUNGS["v0"], lab)
    assert record["compiler"] and record["seconds"] >= 0
    assert path.with_suffix(".log").is_file()


def test_a_compile_error_is_short_and_says_where_the_rest_is(lab, tmp_path):
    lines = "\n".join(f"int x{i} = undefined_{'y' * 900};" for i in range(40))
    (lab / "v0/v0.cpp").write_text(lines)
    with pytest.raises(toolchain.CompileError) as caught:
        build.build_rung(build.RUNGS["v0"])
    message = str(caught.value)
    assert "v0 did not compile" in message and "undefined_y" in message
    assert "... and 28 more" in message and len(message.splitlines()) == 1 + build.ERROR_LINES + 1
    assert max(map(len, message.splitlines())) < 330
    log = tmp_path / "cache/libkda_v0.failed.log"
    assert str(log) in message and len(log.read_text()) > 40 * 900
    assert not list((tmp_path / "cache").glob("libkda_v0-*"))


def test_no_compiler(lab, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(toolchain.Unbuildable, match=r"no C\+\+ compiler.*install g\+\+"):
        build.build_rung(build.RUNGS["v0"])
    assert "install g++" in build.why_not(build.RUNGS["v0"])


def test_no_nvcc(monkeypatch):
    monkeypatch.setattr(toolchain, "_cuda_programs", lambda _: iter(()))
    monkeypatch.delenv("KDA_LAB_NVCC", raising=False)
    with pytest.raises(toolchain.Unbuildable, match=r"no CUDA compiler.*pip install"):
        build.build_rung("v1", ["90a"])


def test_a_named_nvcc_that_is_not_there(monkeypatch):
    monkeypatch.setenv("KDA_LAB_NVCC", "/nonexistent/nvcc")
    with pytest.raises(toolchain.Unbuildable, match=r"KDA_LAB_NVCC names /nonexistent/nvcc"):
        build.build_rung("v1", ["90a"])


@pytest.mark.parametrize(
    "release,driver,words",
    [
        ("11.8", None, "CUDA 11.8 .* is too old.*12.0 or newer.*pip install"),
        ("13.0", (12, 4), "CUDA 13.0 .* is too new.*serves CUDA 12.4.*update the driver"),
    ],
)
def test_a_wrong_cuda(monkeypatch, tmp_path, release, driver, words):
    nvcc = tmp_path / f"nvcc-{release}"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.89'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("KDA_LAB_NVCC", str(nvcc))
    monkeypatch.setattr(toolchain, "driver_cuda_version", lambda: driver)
    with pytest.raises(toolchain.Unbuildable, match=words):
        build.build_rung("v1", ["90a"])


def test_a_gpu_that_a_rung_is_not_for(monkeypatch):
    monkeypatch.setattr(toolchain, "gpu_arch", lambda: "75")
    with pytest.raises(toolchain.Unbuildable, match=r"sm_80\+; this machine's GPU is sm_75"):
        build.build_rung("v1")
    call.unavailable.cache_clear()
    try:
        assert "this GPU is sm_75" in call.unavailable(RUNGS["v1"])
    finally:
        call.unavailable.cache_clear()


def test_architectures():
    anywhere, hopper = Rung("a", "", ()), Rung("h", "", (), architectures=("90a",))
    assert [anywhere.runs_on(a) for a in ("75", "80", "86", "90a", "100")] == [False, *[True] * 4]
    assert [hopper.runs_on(a) for a in ("80", "90", "90a", "100")] == [False, False, True, False]
    assert [toolchain.arch_name(*c) for c in ((8, 0), (8, 9), (9, 0), (12, 0))] == [
        "80", "89", "90a", "120",
    ]  # fmt: skip


def test_a_cache_that_cannot_be_written(lab, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDA_LAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(toolchain.Unbuildable, match=r"cannot write to the cache.*KDA_LAB_CACHE"):
        build.build_rung(build.RUNGS["v0"])


def test_prebuilt_libraries(lab, tmp_path, monkeypatch):
    rung, folder = build.RUNGS["v0"], tmp_path / "prebuilt"
    build.copy_out(build.build_rung(rung), folder)
    monkeypatch.setenv("KDA_LAB_LIBRARY_DIR", str(folder))
    monkeypatch.setenv("PATH", "/nonexistent")
    assert build.library(rung) == folder / "libkda_v0.so"
    (lab / "common/shared.h").write_text('#define ANSWER "never"\n')
    with pytest.raises(toolchain.Unbuildable, match=r"compiled from other sources.*--out"):
        build.library(rung)
    assert "compiled from other sources" in build.why_not(rung)


def test_a_prebuilt_library_for_another_gpu(lab, tmp_path, monkeypatch):
    rung, folder = replace(build.RUNGS["v0"], architectures=("80+",)), tmp_path / "prebuilt"
    folder.mkdir()
    (folder / "libkda_v0.so").write_text("")
    record = {"closure_hash": closure_hash(rung, lab), "architectures": ["80"]}
    (folder / "libkda_v0.json").write_text(json.dumps(record))
    monkeypatch.setenv("KDA_LAB_LIBRARY_DIR", str(folder))
    monkeypatch.setattr(toolchain, "gpu_arch", lambda: "90a")
    with pytest.raises(toolchain.Unbuildable, match=r"code for sm_80, not for .* sm_90a"):
        build.library(rung)


def test_command_line(lab, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(build, "build_binding", lambda *_: build.build_rung(build.RUNGS["v0"]))
    assert build.main(["--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/libkda_v1.so").is_file() and (tmp_path / "out/libkda_v1.json").is_file()
    monkeypatch.setitem(build.RUNGS, "v1", replace(build.RUNGS["v1"], architectures=("80+",)))
    monkeypatch.setenv("KDA_LAB_NVCC", "/nonexistent/nvcc")
    assert build.main([]) == 0  # what cannot be compiled here is skipped, and said
    assert "v1       skipped: KDA_LAB_NVCC names" in capsys.readouterr().out
    assert build.main(["--rung", "v1"]) == 1  # unless it was asked for
    assert build.main(["--arch", "75"]) == 0
    assert "v1       skipped: not for sm_75" in capsys.readouterr().out
    (lab / "v0/v0.cpp").write_text("broken")
    assert build.main([]) == 1
    assert "v0       failed: v0 did not compile" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        build.main(["--arch", "hopper"])


def test_everything_else_works_without_a_compiler(tmp_path):
    """A machine with neither compiler nor cache: the package imports, says why, and auto passes over."""
    code = """
import torch, kda_lab
from kda_lab.contract import make_call
reasons = kda_lab.backends()
assert "install g++" in reasons["cpu"], reasons
kw = make_call("weak", torch.float32)
o, state = kda_lab.chunk_kda(**kw)
assert torch.equal(o, kda_lab.chunk_kda(**kw, backend="chunked")[0])
try:
    kda_lab.chunk_kda(**kw, backend="cpu")
except ValueError as error:
    assert "backend 'cpu' cannot serve this call: no C++ compiler" in str(error), error
else:
    raise AssertionError("a rung ran that cannot be here")
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("CXX", "KDA_LAB_LIBRARY_DIR")}
    environment |= {"PATH": "/nonexistent", "KDA_LAB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_closure(lab, tmp_path):
    (tmp_path / "outside.h").write_text("")
    (lab / "v0/v0.cpp").write_text(
        '#include <vector>\n  #  include "own.h"\n#if 0\n#include "unlikely.h"\n#endif\n'
        '#include <common/shared.h>\n#include "../../outside.h"\n#include "nowhere.h"\n#include "own.h"\n'
    )
    (lab / "v0/unlikely.h").write_text('#include "kda_lab.h"\n#include "unlikely.h"\n')
    names = [p.relative_to(lab).as_posix() for p in include_closure([lab / "v0/v0.cpp"], lab)]
    assert names == [
        "common/shared.h",
        "include/kda_lab.h",
        "v0/own.h",
        "v0/unlikely.h",
        "v0/v0.cpp",
    ]


def test_closure_hash(lab, tmp_path):
    rung = build.RUNGS["v0"]
    first = closure_hash(rung, lab)
    moved = shutil.copytree(lab, tmp_path / "elsewhere/kernels")
    assert closure_hash(rung, moved) == first  # paths of the machine do not matter, bytes do
    header = lab / "common/shared.h"
    header.write_bytes(header.read_bytes().replace(b"\n", b"\r\n"))
    assert closure_hash(rung, lab) != first
    shutil.copy(header, lab / "common/renamed.h")
    assert files_hash([header], lab) != files_hash(
        [lab / "common/renamed.h"], lab
    )  # a file's name below kernels counts


@pytest.mark.parametrize("name", RUNGS)
def test_every_rung_is_complete(name):
    """Sources, the header comment that the contract asks for, notes outside the hash, one table row."""
    rung = RUNGS[name]
    files = closure(rung)
    assert kernels_dir() / "include/kda_lab.h" in files
    for source in rung.sources:
        assert kernels_dir() / source in files
        opening = (kernels_dir() / source).read_text()[:3000].lower()
        for word in ("idea", "changed", "predicted", "ledger"):
            assert word in opening, f"{source} opens without its {word}"
    notes = kernels_dir() / rung.sources[0].split("/")[0] / "NOTES.md"
    assert notes.is_file() and notes not in files
    assert set(rung.gates) <= set(rungs.GATES)
    assert rung.direction in ("forward", "decode")
    assert set(rung.gates) <= set(call.GATE_KINDS)
