"""The oracle and every PyTorch form share `gates`, so it is judged here against scalar arithmetic."""

import math

import pytest
import torch

from kda_lab import gates
from kda_lab.contract import make_call
from kda_lab.inputs import check_call
from kda_lab.reference import run_fp64

g = torch.tensor([[[-1.5, 0.25], [3.0, -40.0]]], dtype=torch.float64)  # [T=1,HV=2,K=2]
A_log = torch.tensor([0.3, -0.7], dtype=torch.float64)
dt_bias = torch.tensor([[0.1, -0.2], [0.5, 1.0]], dtype=torch.float64)


def each(function):
    """The scalar function of (g, A_log, dt_bias), entry by entry."""
    return [[function(g[0, h, c].item(), A_log[h].item(), dt_bias[h, c].item()) for c in (0, 1)] for h in (0, 1)]


def same(got, want):
    torch.testing.assert_close(got[0], torch.tensor(want, dtype=torch.float64), rtol=1e-14, atol=0)


def test_softplus_gate():
    got = gates.softplus_gate(g, A_log, dt_bias)
    same(got, each(lambda x, a, b: -math.exp(a) * math.log1p(math.exp(x + b))))
    same(gates.softplus_gate(g, A_log), each(lambda x, a, b: -math.exp(a) * math.log1p(math.exp(x))))


@pytest.mark.parametrize("bound", [-5.0, -0.5])
def test_sigmoid_gate(bound):
    got = gates.sigmoid_gate(g, bound, A_log, dt_bias)
    same(got, each(lambda x, a, b: bound / (1 + math.exp(-math.exp(a) * (x + b)))))
    same(gates.sigmoid_gate(g, bound), each(lambda x, a, b: bound / (1 + math.exp(-x))))
    same(gates.sigmoid_gate(g, bound, A_log), each(lambda x, a, b: bound / (1 + math.exp(-math.exp(a) * x))))


def test_beta():
    x = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    want = [1 / (1 + math.exp(-y)) for y in x.tolist()]
    torch.testing.assert_close(gates.beta_sigmoid(x).tolist(), want)
    torch.testing.assert_close(gates.beta_sigmoid(x, True).tolist(), [2 * w for w in want])


def test_norm():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], dtype=torch.float64)
    want = [[3 / math.sqrt(25 + 1e-6), 4 / math.sqrt(25 + 1e-6)], [0, 0], [1e-3 / math.sqrt(2e-6), 0]]
    torch.testing.assert_close(gates.l2_normalize(x), torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["strong", "softplus"])
def test_activation_happens_once_and_in_order(kind):
    """Activating by hand outside equals activating inside, in the oracle."""
    call = make_call(kind, torch.float64, lengths=(9,), activate_inside=True)
    A, b = call["A_log"], call["dt_bias"].reshape(4, 24)
    plain = {n: x for n, x in call.items() if n not in ("A_log", "dt_bias", "lower_bound", "safe_gate")}
    plain |= dict.fromkeys(
        ("use_gate_in_kernel", "use_qk_l2norm_in_kernel", "use_beta_sigmoid_in_kernel", "allow_neg_eigval"), False
    )
    for n in ("q", "k"):
        plain[n] = call[n] / (call[n].pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()
    plain["beta"] = 2 / (1 + (-call["beta"]).exp())
    if kind == "strong":
        plain["g"] = -5 / (1 + (-(A.exp()[:, None] * (call["g"] + b))).exp())
    else:
        plain["g"] = -A.exp()[:, None] * (1 + (call["g"] + b).exp()).log()
    for got, want in zip(run_fp64(check_call(**call)), run_fp64(check_call(**plain)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


def test_the_oracle_by_hand():
    """Two tokens, one head, K = 2, V = 1, numbers to check on paper."""
    x = lambda *v: torch.tensor(v, dtype=torch.float64)  # noqa: E731
    call = check_call(
        q=x(1, 0, 1, 1).view(1, 2, 1, 2), k=x(1, 0, 0.6, 0.8).view(1, 2, 1, 2), v=x(2, 5).view(1, 2, 1, 1),
        g=x(math.log(0.5), 0, math.log(0.5), math.log(0.25)).view(1, 2, 1, 2), beta=x(1, 0.5).view(1, 2, 1),
        scale=2.0, initial_state=x(4, 8).view(1, 1, 2, 1), output_final_state=True,
    )  # fmt: skip
    # token 1: S = (2, 8); recall 2; u = 0; o = 2 * 2 = 4
    # token 2: S = (1, 2); recall .6 + 1.6 = 2.2; u = .5 * 2.8 = 1.4; S = (1.84, 3.12); o = 2 * 4.96
    o, S = run_fp64(call)
    torch.testing.assert_close(o.flatten(), x(4, 9.92))
    torch.testing.assert_close(S.flatten(), x(1.84, 3.12))
