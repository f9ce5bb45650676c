"""Every exercise keeps its promises: solution passes, stub fails rightly, every mutant dies by name."""

import doctest
import os
from pathlib import Path

import pytest

from kda_lab.grading import matrix, source, stubs
from kda_lab.grading.engine import grade_file, verdict
from kda_lab.grading.runner import Local, Submission

ALL = source.exercise_files()
TESTS = Path(source.PACKAGE) / "grading" / "exercises"
FILES = {stem: file for stem, file in ALL.items() if (TESTS / f"{stem}.py").exists()}
PYTHON = [stem for stem, file in FILES.items() if not file.cuda]
IDS = [key for file in FILES.values() for key in file.statements]


def exercise_of(exercise_id: str):
    return source.exercises(source.exercise_file(exercise_id))[exercise_id]


MUTANTS = [(key, m.name) for key in IDS for m in exercise_of(key).mutants]


def test_every_file_has_its_tests():
    assert FILES == ALL
    assert {p.stem for p in TESTS.glob("ex*.py")} == set(ALL)
    assert len(IDS) == len(set(IDS)), "two files of a notebook share a name"


@pytest.mark.parametrize("exercise_id", IDS)
def test_statement_is_complete(exercise_id):
    said, exercise = source.statement(exercise_id), exercise_of(exercise_id)
    assert 1 <= said.points <= 5 and 1 <= said.minutes <= 60
    assert len(said.hints) == 3 and all(len(hint) > 20 for hint in said.hints) and said.why
    if source.exercise_file(exercise_id).cuda:
        assert "Example: " in said.docstring, "a worked example"
        assert any(case.expect is not None for case in exercise.cases), "and a case like it"
    else:
        assert ">>>" in said.docstring, "a worked example"
    assert source.body_lines(said.source) <= said.lines, "the model solution fits its line budget"
    assert all(case.why and case.hint for case in exercise.cases)
    names = [case.name for case in exercise.cases]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("exercise_id", IDS)
def test_at_least_eight_mutants_each_with_its_own_words(exercise_id):
    mutants = exercise_of(exercise_id).mutants
    assert len(mutants) >= 8
    assert len({m.says for m in mutants}) == len({m.name for m in mutants}) == len(mutants)


@pytest.mark.parametrize("key", PYTHON)
def test_worked_examples(key):
    module = source.model_module(key)
    found = doctest.DocTestFinder().find(module, module.__name__)
    runner = doctest.DocTestRunner()
    for example in found:
        runner.run(example)
    assert runner.summarize().failed == 0


@pytest.mark.parametrize("key", FILES)
def test_solution_passes_as_a_submission(key, tmp_path):
    (tmp_path / FILES[key].filename).write_text(FILES[key].text)
    verdicts = list(grade_file(FILES[key], tmp_path))
    assert [(v.id, v.status, v.message) for v in verdicts] == [
        (key, "passed", "") for key in FILES[key].statements
    ]


@pytest.mark.parametrize("key", FILES)
def test_stub_is_not_attempted_and_nothing_else(key, tmp_path):
    stubs.write(tmp_path)
    verdicts = list(grade_file(FILES[key], tmp_path))
    assert [v.status for v in verdicts] == ["not_attempted"] * len(FILES[key].statements)
    assert all(f"kda-lab hint {v.id}" in v.message and v.points == 0 for v in verdicts)
    if FILES[key].cuda:
        return
    module = source.load(FILES[key].stub, f"stub_{key}")
    for exercise_id, said in FILES[key].statements.items():
        case = exercise_of(exercise_id).cases[0]
        args = case.make(source_draw(case))
        with pytest.raises(NotImplementedError, match=f"kda-lab hint {exercise_id}"):
            getattr(module, said.name)(*args)


def source_draw(case):
    from kda_lab.grading.spec import Draw

    return Draw(1, case.dtype)


@pytest.mark.parametrize(("exercise_id", "name"), MUTANTS, ids=[f"{k}: {n}" for k, n in MUTANTS])
def test_mutant_dies_with_its_own_words(exercise_id, name):
    exercise = exercise_of(exercise_id)
    mutant = next(m for m in exercise.mutants if m.name == name)
    for function in source.mutant_functions(exercise_id, mutant):
        found = verdict(exercise, source.statement(exercise_id), Local(function))
        assert found.status in ("failed", "error") and found.points == 0
        assert found.looks_like == name, found.message
        assert f"Looks like {mutant.says}." in found.message


@pytest.mark.parametrize("exercise_id", IDS)
def test_kill_matrix_is_full(exercise_id, capsys):
    text = matrix.matrix(exercise_id)
    with capsys.disabled():
        if not os.environ.get("PYTEST_XDIST_WORKER"):
            print("\n" + text)
    assert text.endswith(
        f"caught {len(exercise_of(exercise_id).mutants)} of {len(exercise_of(exercise_id).mutants)}"
    )


def test_committed_stubs_follow_from_committed_solutions():
    root = Path(source.course_files("solutions")).parent
    assert stubs.drift(root) == []


OTHERWISE = {  # right answers to ex04.kda_recurrent that look nothing like the model
    "one head at a time": """
import torch
def kda_recurrent(q, k, v, g, beta, scale, initial_state):
    B, T, H, K = q.shape
    HV, V = v.shape[2:]
    o = [[[None] * HV for _ in range(T)] for _ in range(B)]
    final = torch.zeros(B, HV, K, V, dtype=v.dtype)
    for b in range(B):
        for h in range(HV):
            S, j = initial_state[b, h].clone(), h * H // HV
            for t in range(T):
                S *= torch.exp(g[b, t, h]).unsqueeze(1)
                S += torch.outer(k[b, t, j], beta[b, t, h] * (v[b, t, h] - k[b, t, j] @ S))
                o[b][t][h] = scale * q[b, t, j] @ S
            final[b, h] = S
    return torch.stack([torch.stack([torch.stack(x) for x in row]) for row in o]), final
""",
    "NumPy in fp64": """
import numpy as np
def kda_recurrent(q, k, v, g, beta, scale, initial_state):
    kind = v.dtype
    q, k, v, g, beta, S = (x.double().numpy() for x in (q, k, v, g, beta, initial_state))
    n = v.shape[2] // q.shape[2]
    q, k = np.repeat(q, n, 2), np.repeat(k, n, 2)
    o = np.zeros_like(v)
    for t in range(q.shape[1]):
        S = np.exp(g[:, t])[..., None] * S
        u = beta[:, t][..., None] * (v[:, t] - np.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + np.einsum("bhk,bhv->bhkv", k[:, t], u)
        o[:, t] = scale * np.einsum("bhkv,bhk->bhv", S, q[:, t])
    import torch
    return torch.from_numpy(o).to(kind), torch.from_numpy(S).to(kind)
""",
    "with gradients, as a list, not contiguous": """
import torch
def step(S, x):
    q, k, v, g, beta = x
    A = torch.diag_embed(g.exp())
    I = torch.eye(k.shape[-1], dtype=k.dtype)
    kk = k.unsqueeze(-1) @ k.unsqueeze(-2)
    b = beta[..., None, None]
    S = (I - b * kk) @ A @ S + b * k.unsqueeze(-1) @ v.unsqueeze(-2)
    return S, (q.unsqueeze(-2) @ S).squeeze(-2)
def kda_recurrent(q, k, v, g, beta, scale, initial_state):
    heads = torch.arange(v.shape[2]) // (v.shape[2] // q.shape[2])
    S, out = initial_state.clone().requires_grad_(), []
    for x in zip(*(y.unbind(1) for y in (q[:, :, heads], k[:, :, heads], v, g, beta))):
        S, o = step(S, x)
        out.append(scale * o)
    return [torch.stack(out, dim=3).permute(0, 3, 1, 2), S]
""",
}


@pytest.mark.parametrize("way", OTHERWISE)
def test_other_right_answers_pass(way, tmp_path):
    (tmp_path / "ex04_recurrence.py").write_text(OTHERWISE[way])
    key = "ex04.kda_recurrent"
    with Submission(tmp_path, "ex04_recurrence.py") as submission:
        found = verdict(exercise_of(key), source.statement(key), submission)
    assert (found.status, found.message) == ("passed", "")
