"""Exercises of notebook 02: the delta rule, erase and then write.

One memory S [K,V]; a pair is a key k [K] and a value v [V]; beta is a number, how much of the
correction is made: 0 nothing, 1 all of it, up to 2.
"""

import torch
from torch import Tensor


# ex02.erase: 3 points, 10 minutes, about 2 lines
# A hint: kda-lab hint ex02.erase     Your verdict: kda-lab grade ex02
def erase(S: Tensor, k: Tensor, beta: float) -> Tensor:
    """The memory with what it says about key k taken out, a part beta of it.

    S: [K,V]. k: [K], length 1. Returns the new memory [K,V]; S stays as it was.

    >>> S = torch.tensor([[3.0, 1.0], [5.0, 7.0]])
    >>> erase(S, torch.tensor([1.0, 0.0]), 1.0).tolist()
    [[0.0, 0.0], [5.0, 7.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex02.erase")


# ex02.delta_step: 3 points, 10 minutes, about 2 lines
# A hint: kda-lab hint ex02.delta_step     Your verdict: kda-lab grade ex02
def delta_step(S: Tensor, k: Tensor, v: Tensor, beta: float) -> Tensor:
    """One step of the delta rule: the memory after it has been told that k goes with v.

    S: [K,V]. k: [K]. v: [V]. Returns the new memory [K,V]; S stays as it was.

    The memory says 4, is told 6, and goes half of the way:

    >>> delta_step(torch.tensor([[4.0]]), torch.tensor([1.0]), torch.tensor([6.0]), 0.5).tolist()
    [[5.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex02.delta_step")


# ex02.gradient_step: 4 points, 20 minutes, about 5 lines
# A hint: kda-lab hint ex02.gradient_step     Your verdict: kda-lab grade ex02
def gradient_step(S: Tensor, k: Tensor, v: Tensor, beta: float) -> Tensor:
    """One step of gradient descent with step size beta on the recall error 1/2 |S^T k - v|^2.

    S: [K,V], the weights. k: [K], the input. v: [V], the target. Use autograd for the gradient.
    Returns the new weights [K,V], detached; S stays as it was.

    >>> gradient_step(torch.tensor([[4.0]]), torch.tensor([1.0]), torch.tensor([6.0]), 0.5).tolist()
    [[5.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex02.gradient_step")


# ex02.householder: 3 points, 15 minutes, about 2 lines
# A hint: kda-lab hint ex02.householder     Your verdict: kda-lab grade ex02
def householder(k: Tensor, beta: float) -> Tensor:
    """The matrix that erases: A S is the memory with a part beta of key k taken out.

    k: [K], length 1. Returns A [K,K].

    >>> householder(torch.tensor([1.0, 0.0]), 1.5).tolist()
    [[-0.5, 0.0], [0.0, 1.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex02.householder")


# ex02.delta_rule: 4 points, 15 minutes, about 7 lines
# A hint: kda-lab hint ex02.delta_rule     Your verdict: kda-lab grade ex02
def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, scale: float, S: Tensor) -> tuple[Tensor, Tensor]:
    """The delta rule over a whole sequence: correct, then read.

    q, k: [T,K]. v: [T,V]. beta: [T]. S: [K,V] memory before the first token.
    Returns o [T,V] and the final memory [K,V]. None of the arguments is changed.

    The same key three times; the last value replaces the ones before:

    >>> one = torch.ones(3, 1)
    >>> o, S = delta_rule(one, one, torch.tensor([[1.0], [2.0], [4.0]]), torch.ones(3), 1.0, torch.zeros(1, 1))
    >>> o.flatten().tolist(), S.tolist()
    ([1.0, 2.0, 4.0], [[4.0]])
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex02.delta_rule")
