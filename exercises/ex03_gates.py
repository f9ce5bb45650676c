"""Exercises of notebook 03: gates, from one scalar to one per channel.

One memory S [K,V]: K key channels, V value channels. A gate g is the *natural log* of what is left
after one token: 0 keeps all, log(1/2) keeps half, -5 keeps less than one percent. KDA has one gate
for each key channel, that is, for each row of S.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


# ex03.decay: 2 points, 5 minutes, about 1 lines
# A hint: kda-lab hint ex03.decay     Your verdict: kda-lab grade ex03
def decay(S: Tensor, g: Tensor) -> Tensor:
    """The memory one token later, when each key channel has forgotten at its own rate.

    S: [K,V]. g: [K] log decay, one for each row of S, at most 0. Returns the new memory [K,V]; S stays as it was.

    >>> decay(torch.tensor([[4.0, 8.0], [4.0, 8.0]]), torch.tensor([1.0, 0.5]).log()).tolist()
    [[4.0, 8.0], [2.0, 4.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex03.decay")


# ex03.half_life: 2 points, 10 minutes, about 1 lines
# A hint: kda-lab hint ex03.half_life     Your verdict: kda-lab grade ex03
def half_life(g: Tensor) -> Tensor:
    """Tokens until half of a channel's memory is left, if its gate stays at g.

    g: any shape, log decay for each token, below 0. Returns the same shape, in tokens, not rounded.

    >>> half_life(torch.tensor([0.5, 0.25], dtype=torch.float64).log()).tolist()
    [1.0, 0.5]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex03.half_life")


# ex03.gated_step: 4 points, 15 minutes, about 3 lines
# A hint: kda-lab hint ex03.gated_step     Your verdict: kda-lab grade ex03
def gated_step(S: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: float) -> Tensor:
    """One step of the gated delta rule: forget, erase, write.

    S: [K,V]. k: [K], length 1. v: [V]. beta: a number.
    g: log decay, [K] for one gate a channel (KDA), or [1] for one gate for all (Gated DeltaNet).
    Returns the new memory [K,V]; S stays as it was.

    The memory says 8, forgets half of it, is told 6, and goes half of the way from 4:

    >>> gated_step(torch.tensor([[8.0]]), torch.ones(1), torch.tensor([6.0]), torch.tensor([0.5]).log(), 0.5).tolist()
    [[5.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex03.gated_step")


# ex03.softplus_gate: 3 points, 15 minutes, about 2 lines
# A hint: kda-lab hint ex03.softplus_gate     Your verdict: kda-lab grade ex03
def softplus_gate(raw: Tensor, A_log: Tensor, dt_bias: Tensor) -> Tensor:
    """Log decay of the first Kimi Linear model: minus a rate times a softplus, without a lower bound.

    raw: [T,HV,K] what the model says, any size and sign. A_log: [HV], log of each head's rate.
    dt_bias: [HV,K], an offset for each channel, added to raw. Returns g [T,HV,K], below 0.
    softplus(x) = log(1 + e^x); torch.nn.functional (F) has one that does not overflow.

    A large raw value passes through the softplus unchanged, and the head's rate is 2:

    >>> softplus_gate(torch.tensor([[[50.0]]]), torch.tensor([2.0]).log(), torch.tensor([[10.0]])).tolist()
    [[[-120.0]]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex03.softplus_gate")


# ex03.sigmoid_gate: 3 points, 15 minutes, about 2 lines
# A hint: kda-lab hint ex03.sigmoid_gate     Your verdict: kda-lab grade ex03
def sigmoid_gate(raw: Tensor, A_log: Tensor, dt_bias: Tensor, lower_bound: float) -> Tensor:
    """Log decay with a floor: between lower_bound and 0.

    raw: [T,HV,K] what the model says. A_log: [HV], log of each head's rate, which multiplies raw + dt_bias.
    dt_bias: [HV,K]. lower_bound: a negative number, -5 in the models. Returns g [T,HV,K].

    In the middle of the sigmoid the gate is half of the bound:

    >>> sigmoid_gate(torch.tensor([[[2.0]]]), torch.tensor([0.0]), torch.tensor([[-2.0]]), -5.0).tolist()
    [[[-2.5]]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex03.sigmoid_gate")
