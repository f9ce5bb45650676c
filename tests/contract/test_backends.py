"""Every implementation that can run here, through every case of the contract."""

from dataclasses import replace

import pytest
import torch

import kda_lab
from kda_lab.backend import BACKENDS
from kda_lab.contract import TOKEN_RUNGS, Case, cases, judge

CASES = {case.name: case for case in cases()}
HERE = [name for name, reason in kda_lab.backends().items() if reason is None]
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
ON_CPU = [name for name in HERE if name in ("reference", "recurrent", "chunked", "cpu")]
ON_GPU = [name for name in HERE if name not in ON_CPU]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ON_CPU)
def test_contract(backend, case, dtype):
    verdict = judge(backend, CASES[case], DTYPES[dtype])
    assert verdict.problem is None, verdict.problem
    if verdict.declined:
        assert backend == "cpu", f"{backend} declined: {verdict.declined}"
        assert dtype == "fp64" or "chunk_size" in case, verdict.declined


@pytest.mark.parametrize("backend", ON_CPU)
def test_no_sequence_at_all(backend):
    case = Case("B = 0", dict(kind="weak", lengths=(20,), B=0))
    verdict = judge(backend, case, torch.float32)
    assert verdict.problem is None and verdict.declined is None


def test_torch_implementations_are_always_here():
    assert {"reference", "recurrent", "chunked"} <= set(HERE)


if ON_GPU:  # without a GPU these tests do not exist, rather than skip

    @pytest.mark.parametrize("backend", ON_GPU)
    @pytest.mark.parametrize("case", CASES)
    def test_contract_on_the_gpu(backend, case):
        verdict = judge(backend, CASES[case], torch.bfloat16, K=128, V=128, device="cuda")
        assert verdict.problem is None, verdict.problem
        if backend in TOKEN_RUNGS and not case.startswith("chunk_size"):
            assert verdict.declined is None, verdict.declined


def test_a_wrong_implementation_is_caught(monkeypatch):
    """The suite itself: an implementation with a small flaw fails somewhere."""
    right = BACKENDS["recurrent"]

    def flawed(flaw):
        def run(call):
            o, S = right.run(call)
            return flaw(o, S)

        return replace(right, name="flawed", run=run)

    flaws = {
        "scaled by 1.01": lambda o, S: (o * 1.01, S),
        "last token dropped": lambda o, S: (o.index_fill(1, torch.tensor(o.shape[1] - 1), 0), S),
        "state of the first sequence everywhere": lambda o, S: (o, S[:1].expand_as(S)),
        "NaN": lambda o, S: (o * torch.nan, S),
        "state transposed": lambda o, S: (o, S.mT),
    }
    for name, flaw in flaws.items():
        monkeypatch.setitem(BACKENDS, "flawed", flawed(flaw))
        case = CASES["gate strong, packed"]
        if name == "last token dropped":
            case = CASES["gate strong"]
        verdict = judge("flawed", case, torch.float32)
        assert verdict.problem, f"{name} passed"
