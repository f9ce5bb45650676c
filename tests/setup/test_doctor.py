"""The doctor: what it finds, what it says of what is missing, and what it keeps to itself."""

import json
import re
import sys

import pytest
import torch

from kda_lab import doctor
from kda_lab.backend import BACKENDS
from kda_lab.native import toolchain


def by_name() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.findings()}


@pytest.fixture
def bare(monkeypatch):
    """A machine with neither compilers nor CUDA packages nor a GPU."""
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH", "KDA_LAB_NVCC", "KDA_LAB_CUOBJDUMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain, "_package_dirs", lambda name: [])
    monkeypatch.setattr(toolchain, "find_cuda_program", lambda program: None)
    monkeypatch.setattr(toolchain, "driver_cuda_version", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_bare_machine_has_no_problem_and_every_lack_has_a_remedy(bare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = by_name()
    missing = {name for name, finding in found.items() if finding.state == "missing"}
    assert missing == {"course folder", "C++ compiler", "nvcc", "cuobjdump", "CUTLASS", "GPU"}
    assert all(found[name].remedy for name in missing)
    assert all(finding.state != "problem" for finding in found.values())
    assert "kda-lab start" in found["course folder"].remedy
    assert "apt install g++" in found["C++ compiler"].remedy
    assert "pip install" in found["nvcc"].remedy


def test_a_missing_package_is_a_problem_that_names_it(monkeypatch):
    version = doctor.metadata.version

    def lacks_anywidget(name):
        if name == "anywidget":
            raise doctor.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor.metadata, "version", lacks_anywidget)
    found = by_name()["packages"]
    assert found.state == "problem" and "missing: anywidget" in found.remedy


def test_a_torch_too_old(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    found = by_name()["PyTorch"]
    assert found.state == "problem" and "torch>=2.6" in found.remedy


def test_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(toolchain, "driver_cuda_version", lambda: (13, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    found = by_name()
    assert found["PyTorch"].state == "problem" and "CUDA build" in found["PyTorch"].remedy
    assert found["GPU"].state == "problem"


def test_an_nvcc_too_old_is_a_problem(monkeypatch, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 11.8, V11.8.89'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("KDA_LAB_NVCC", str(nvcc))
    found = by_name()["nvcc"]
    assert found.state == "problem" and "too old" in found.remedy and found.where == str(nvcc)


def test_report_names_every_implementation_and_its_lack():
    report = doctor.report()
    for name, backend in BACKENDS.items():
        assert re.search(rf"^    {name} ", report, re.MULTILINE)
        if reason := backend.unavailable():
            assert reason in report


def test_recordings_are_named(monkeypatch):
    monkeypatch.setattr(doctor, "recorded", lambda: {"v0": ["NVIDIA H200"]})
    found = doctor.examine()
    v0 = next(x for x in found["implementations"] if x["name"] == "v0")
    v0["unavailable"] = "no GPU"
    assert "v0         no GPU; shown as recorded on NVIDIA H200" in doctor.report(found)


def test_a_torn_ledger_is_a_problem(monkeypatch):
    from kda_lab.bench import ledger

    def torn():
        raise ledger.LedgerError("bench-x.json: cannot be read")

    monkeypatch.setattr(ledger, "show", torn)
    found = doctor.examine()
    problem = next(x for x in found["findings"] if x["name"] == "ledger")
    assert problem["state"] == "problem" and "bench-x.json" in problem["found"]


def test_without_folders():
    report = doctor.report(where=False)
    assert sys.prefix not in report and str(doctor.Path.cwd()) not in report


def test_json_and_exit_status(capsys, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    assert doctor.main(["--json"]) == 1, "a problem shows in the exit status"
    found = json.loads(capsys.readouterr().out)
    assert {x["name"] for x in found["implementations"]} == set(BACKENDS)
    assert all(x["remedy"] for x in found["findings"] if x["state"] != "ok")
