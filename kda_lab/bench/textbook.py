"""Chunked KDA as a textbook writes it: chunks of 64, with a loop over tokens inside each chunk.

The yardstick of `kda-lab bench cpu`: right, and readable beside the formulas, but every column of L
and M and every row of the inverse is a separate small operation.
"""

import torch
from torch import Tensor

C = 64


def textbook_kda(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, S: Tensor
) -> tuple[Tensor, Tensor]:
    """q, k, g `[B,T,H,K]` (g the log decay), v `[B,T,H,V]`, beta `[B,T,H]`, S `[B,H,K,V]`; T a multiple of 64.

    Returns o `[B,T,H,V]` and the state after the last token.
    """
    if q.shape[1] % C:
        raise ValueError(f"q has T = {q.shape[1]} tokens; T must be a multiple of {C}")
    q, k, v, g, beta = (chunks(x) for x in (q * scale, k, v, g, beta[..., None]))
    G = g.cumsum(-2)  # [B,H,n,C,K]

    L = torch.zeros(*G.shape[:-1], C)
    M = torch.zeros_like(L)
    for j in range(C):  # column j: what token j's write means to every later token
        D = torch.where(torch.arange(C)[:, None] >= j, G - G[..., j : j + 1, :], -torch.inf).exp()
        L[..., j] = (beta * k * D * k[..., j : j + 1, :]).sum(-1)
        M[..., j] = (q * D * k[..., j : j + 1, :]).sum(-1)
    L = L.tril(-1)

    T = -L
    for i in range(1, C):  # row i of (I + L)^-1 from the rows above it
        T[..., i, :i] += (T[..., i, :i, None] * T[..., :i, :i]).sum(-2)
    T = T + torch.eye(C)
    W, U0 = T @ (beta * k * G.exp()), T @ (beta * v)

    o = torch.empty_like(v)
    for n in range(v.shape[2]):
        U = U0[:, :, n] - W[:, :, n] @ S
        o[:, :, n] = (q[:, :, n] * G[:, :, n].exp()) @ S + M[:, :, n] @ U
        last = G[:, :, n, -1:]
        S = last.exp().mT * S + (k[:, :, n] * (last - G[:, :, n]).exp()).mT @ U
    return o.flatten(2, 3).transpose(1, 2), S


def chunks(x: Tensor) -> Tensor:
    """`[B,T,H,D]` -> `[B,H,T/64,64,D]`."""
    return x.transpose(1, 2).unflatten(2, (-1, C))
