"""Exercises of notebook 02: the delta rule, erase and then write.

One memory S [K,V]; a pair is a key k [K] and a value v [V]; beta is a number, how much of the
correction is made: 0 nothing, 1 all of it, up to 2.
"""

import torch
from torch import Tensor


# exercise erase: 3 points, 10 minutes, 2 lines
# hint 1: Ask the memory what it says about k, then take exactly that out again, under the same key.
# hint 2: The old answer is S^T k. Subtract the pair (k, old answer), weighted by beta, the way pairs are written.
# hint 3: All but one line:
#     old = S.T @ k
#     return S - beta * ...
# why: For a key of length 1 and beta 1, nothing is left under k, and whatever lies at right angles to k stays
#     untouched: erasing one guest does not erase the table.
def erase(S: Tensor, k: Tensor, beta: float) -> Tensor:
    """The memory with what it says about key k taken out, a part beta of it.

    S: [K,V]. k: [K], length 1. Returns the new memory [K,V]; S stays as it was.

    >>> S = torch.tensor([[3.0, 1.0], [5.0, 7.0]])
    >>> erase(S, torch.tensor([1.0, 0.0]), 1.0).tolist()
    [[0.0, 0.0], [5.0, 7.0]]
    """
    # solution
    old = S.T @ k  # what the memory says about k  [V]
    return S - beta * k[:, None] * old[None, :]
    # end solution


# exercise delta_step: 3 points, 10 minutes, 2 lines
# hint 1: Erase what the memory says about k, then write v, both with the same weight beta. Can it be one correction?
# hint 2: -k (S^T k)^T + k v^T = k (v - S^T k)^T: write the surprise, v minus what the memory says.
# hint 3: All but one line:
#     u = beta * (...)
#     return S + k[:, None] * u[None, :]
# why: One outer product does both. If the memory already knows the answer, the surprise is zero and nothing changes:
#     saying "coffee" twice stores one coffee.
def delta_step(S: Tensor, k: Tensor, v: Tensor, beta: float) -> Tensor:
    """One step of the delta rule: the memory after it has been told that k goes with v.

    S: [K,V]. k: [K]. v: [V]. Returns the new memory [K,V]; S stays as it was.

    The memory says 4, is told 6, and goes half of the way:

    >>> delta_step(torch.tensor([[4.0]]), torch.tensor([1.0]), torch.tensor([6.0]), 0.5).tolist()
    [[5.0]]
    """
    # solution
    u = beta * (v - S.T @ k)  # the part of the surprise that is learnt  [V]
    return S + k[:, None] * u[None, :]
    # end solution


# exercise gradient_step: 4 points, 20 minutes, 5 lines
# hint 1: The error of a memory on a pair is half the squared length of S^T k - v. Which way does it fall fastest?
# hint 2: Its gradient with respect to S is k (S^T k - v)^T. Autograd can find it for you: a copy of S with
#     requires_grad_(), the loss, torch.autograd.grad.
# hint 3: All but one line:
#     S = S.detach().clone().requires_grad_()
#     loss = ...
#     (gradient,) = torch.autograd.grad(loss, S)
#     return (S - beta * gradient).detach()
# why: The delta rule is one step of stochastic gradient descent, with beta as the learning rate, on a model whose
#     weights are the memory itself. The network trains a smaller network while it reads.
def gradient_step(S: Tensor, k: Tensor, v: Tensor, beta: float) -> Tensor:
    """One step of gradient descent with step size beta on the recall error 1/2 |S^T k - v|^2.

    S: [K,V], the weights. k: [K], the input. v: [V], the target. Use autograd for the gradient.
    Returns the new weights [K,V], detached; S stays as it was.

    >>> gradient_step(torch.tensor([[4.0]]), torch.tensor([1.0]), torch.tensor([6.0]), 0.5).tolist()
    [[5.0]]
    """
    # solution
    S = S.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = 0.5 * (S.T @ k - v).square().sum()
        (gradient,) = torch.autograd.grad(loss, S)
    return (S - beta * gradient).detach()
    # end solution


# exercise householder: 3 points, 15 minutes, 2 lines
# hint 1: Erasing is linear in S, so it must be a matrix times S. Which one? Try it on K = 1 first.
# hint 2: S - beta k (k^T S) = (I - beta k k^T) S. The identity minus beta times an outer product.
# hint 3: All but one piece:
#     eye = torch.eye(len(k), dtype=k.dtype)
#     return eye - ...
# why: Its eigenvalue along k is 1 - beta, and 1 everywhere else. beta = 1 projects k away, beta = 2 reflects it, the
#     Householder reflection of numerical linear algebra; above 2 the memory would grow without end.
def householder(k: Tensor, beta: float) -> Tensor:
    """The matrix that erases: A S is the memory with a part beta of key k taken out.

    k: [K], length 1. Returns A [K,K].

    >>> householder(torch.tensor([1.0, 0.0]), 1.5).tolist()
    [[-0.5, 0.0], [0.0, 1.0]]
    """
    # solution
    eye = torch.eye(len(k), dtype=k.dtype, device=k.device)
    return eye - beta * k[:, None] * k[None, :]
    # end solution


# exercise delta_rule: 4 points, 15 minutes, 7 lines
# hint 1: It is the loop of linear_attention with another write.
# hint 2: At each token: u = beta_t (v_t - S^T k_t), add k_t u^T, then read with q_t.
# hint 3: All but one line, inside `for t in range(len(q)):`:
#     u = beta[t] * (v[t] - S.T @ k[t])
#     S = ...
#     o[t] = scale * (S.T @ q[t])
# why: This layer is called DeltaNet. It reads the memory twice a token, once to predict and once to answer, and that
#     second dependency is what makes it hard to run in parallel, until notebook 05.
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
    # solution
    o = torch.empty_like(v)
    for t in range(len(q)):
        u = beta[t] * (v[t] - S.T @ k[t])
        S = S + k[t][:, None] * u[None, :]
        o[t] = scale * (S.T @ q[t])
    return o, S
    # end solution
