"""Exercises of notebook 03: gates, from one scalar to one per channel.

One memory S [K,V]: K key channels, V value channels. A gate g is the *natural log* of what is left
after one token: 0 keeps all, log(1/2) keeps half, -5 keeps less than one percent. KDA has one gate
for each key channel, that is, for each row of S.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


# exercise decay: 2 points, 5 minutes, 1 lines
# hint 1: The gate is a logarithm. What number does row i of the memory get multiplied by?
# hint 2: Row i is multiplied by alpha_i = exp(g_i). One number for each row: [K] must become [K,1].
# hint 3: All but one piece:
#     return g.exp()[...] * S
# why: K numbers against K * V entries: multiplying rows is the same as multiplying by the matrix Diag(alpha), without
#     ever building it. A logarithm is used because decays over many tokens then add up instead of multiplying.
def decay(S: Tensor, g: Tensor) -> Tensor:
    """The memory one token later, when each key channel has forgotten at its own rate.

    S: [K,V]. g: [K] log decay, one for each row of S, at most 0. Returns the new memory [K,V]; S stays as it was.

    >>> decay(torch.tensor([[4.0, 8.0], [4.0, 8.0]]), torch.tensor([1.0, 0.5]).log()).tolist()
    [[4.0, 8.0], [2.0, 4.0]]
    """
    # solution
    return g.exp()[:, None] * S
    # end solution


# exercise half_life: 2 points, 10 minutes, 1 lines
# hint 1: After n tokens with the same gate, what is left? Write it with one exponential.
# hint 2: exp(n g) = 1/2. Take the logarithm of both sides and solve for n.
# hint 3: All but one piece:
#     return ... / g
# why: A gate of -0.01 tells nobody anything; "half is gone after 69 tokens" does. Half-lives are how one looks at
#     the gates of a trained model.
def half_life(g: Tensor) -> Tensor:
    """Tokens until half of a channel's memory is left, if its gate stays at g.

    g: any shape, log decay for each token, below 0. Returns the same shape, in tokens, not rounded.

    >>> half_life(torch.tensor([0.5, 0.25], dtype=torch.float64).log()).tolist()
    [1.0, 0.5]
    """
    # solution
    return math.log(0.5) / g
    # end solution


# exercise gated_step: 4 points, 15 minutes, 3 lines
# hint 1: Three things happen in one order: forget, predict, correct. Which memory makes the prediction?
# hint 2: Decay the rows first. The decayed memory predicts S^T k; beta times the surprise is written under k.
# hint 3: All but one line:
#     S = g.exp()[:, None] * S
#     u = ...
#     return S + k[:, None] * u[None, :]
# why: With the decay first, the correction is added to the very memory that made the prediction, so that beta = 1
#     leaves exactly v under k. Any other order leaves a remainder.
def gated_step(S: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: float) -> Tensor:
    """One step of the gated delta rule: forget, erase, write.

    S: [K,V]. k: [K], length 1. v: [V]. beta: a number.
    g: log decay, [K] for one gate a channel (KDA), or [1] for one gate for all (Gated DeltaNet).
    Returns the new memory [K,V]; S stays as it was.

    The memory says 8, forgets half of it, is told 6, and goes half of the way from 4:

    >>> gated_step(torch.tensor([[8.0]]), torch.ones(1), torch.tensor([6.0]), torch.tensor([0.5]).log(), 0.5).tolist()
    [[5.0]]
    """
    # solution
    S = g.exp()[:, None] * S
    u = beta * (v - S.T @ k)  # the part of the surprise that is learnt  [V]
    return S + k[:, None] * u[None, :]
    # end solution


# exercise softplus_gate: 3 points, 15 minutes, 2 lines
# hint 1: Three numbers make one gate: what the model says, an offset of the channel, and a speed of the head.
# hint 2: g = -exp(A_log) * softplus(raw + dt_bias). A_log has one number a head: [HV] must become [HV,1].
# hint 3: All but one line:
#     rate = A_log.exp()[:, None]
#     return ...
# why: Both factors are positive by construction, so g is below 0 whatever the optimiser does to the parameters. The
#     softplus has no upper end: a large raw value closes the gate as firmly as one likes.
def softplus_gate(raw: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """Log decay of the first Kimi Linear model: minus a rate times a softplus, without a lower bound.

    raw: [T,HV,K] what the model says, any size and sign. A_log: [HV], log of each head's rate.
    dt_bias: [HV,K], an offset for each channel, added to raw. Returns g [T,HV,K], below 0.
    softplus(x) = log(1 + e^x); torch.nn.functional (F) has one that does not overflow.

    A large raw value passes through the softplus unchanged, and the head's rate is 2:

    >>> softplus_gate(torch.tensor([[[50.0]]]), torch.tensor([2.0]).log(), torch.tensor([[10.0]])).tolist()
    [[[-120.0]]]
    """
    # solution
    rate = A_log.exp()[:, None]  # [HV,1]
    return -rate * F.softplus(raw + dt_bias)
    # end solution


# exercise sigmoid_gate: 3 points, 15 minutes, 2 lines
# hint 1: A sigmoid lies between 0 and 1. What must it be multiplied by to lie between -5 and 0?
# hint 2: g = lower_bound * sigmoid(exp(A_log) * (raw + dt_bias)). The rate is inside now: it makes the sigmoid steep.
# hint 3: All but one line:
#     rate = A_log.exp()[:, None]
#     return ...
# why: At -5 less than one percent is left after a single token, so nothing is lost by stopping there; and a kernel
#     can rely on 16 tokens never decaying by more than e^-80, which still is a number in fp32.
def sigmoid_gate(raw: Tensor, A_log: Tensor, dt_bias: Tensor, lower_bound: float) -> Tensor:
    """Log decay with a floor: between lower_bound and 0.

    raw: [T,HV,K] what the model says. A_log: [HV], log of each head's rate, which multiplies raw + dt_bias.
    dt_bias: [HV,K]. lower_bound: a negative number, -5 in the models. Returns g [T,HV,K].

    In the middle of the sigmoid the gate is half of the bound:

    >>> sigmoid_gate(torch.tensor([[[2.0]]]), torch.tensor([0.0]), torch.tensor([[-2.0]]), -5.0).tolist()
    [[[-2.5]]]
    """
    # solution
    rate = A_log.exp()[:, None]  # [HV,1]
    return lower_bound * torch.sigmoid(rate * (raw + dt_bias))
    # end solution
