"""Exercises of notebook 05: chunks, from T serial steps to T/C.

One head, one chunk of C tokens: q, k, g [C,K]; v, U, o [C,V]; beta [C]; S [K,V]. g is the log of
the decay, 0 or below. Token numbers i (later, reads) and j (earlier, wrote), both from 0.
"""

import torch
from torch import Tensor


# ex05.decays: 3 points, 15 minutes, about 8 lines
# A hint: kda-lab hint ex05.decays     Your verdict: kda-lab grade ex05
def decays(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three decay factors of a chunk, each between 0 and 1, one per key channel.

    g: [C,K] log decay per token.
    into [C,K]: what is left of the memory at the chunk's start when token i reads it.
    out [C,K]: what is left, at the chunk's end, of what token j wrote.
    between [C,C,K]: what is left at token i of what token j wrote, for j <= i; 0 for j > i.
    Returns (into, out, between).

    Three tokens that each halve one channel:

    >>> into, out, between = decays(torch.full((3, 1), 0.5).log())
    >>> [[round(x, 3) for x in y.flatten().tolist()] for y in (into, out)]
    [[0.5, 0.25, 0.125], [0.25, 0.5, 1.0]]
    >>> [[round(x, 3) for x in row] for row in between[..., 0].tolist()]
    [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex05.decays")


# ex05.chunk_matrices: 4 points, 15 minutes, about 5 lines
# A hint: kda-lab hint ex05.chunk_matrices     Your verdict: kda-lab grade ex05
def chunk_matrices(q: Tensor, k: Tensor, beta: Tensor, between: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """How the tokens of a chunk get in each other's way, and how they read each other.

    q, k: [C,K]. beta: [C]. between: [C,C,K] from `decays`. scale: of the output.
    L [C,C]: beta_i times what k_i finds of key k_j when token i predicts; nothing for j >= i.
    M [C,C]: scale times what q_i finds of key k_j when token i reads; nothing for j > i.
    Returns (L, M).

    Two tokens with one key, no decay:

    >>> q = k = torch.tensor([[1.0], [1.0]])
    >>> L, M = chunk_matrices(q, k, torch.tensor([1.0, 0.5]), torch.ones(2, 2, 1).tril(), 2.0)
    >>> L.tolist(), M.tolist()
    ([[0.0, 0.0], [0.5, 0.0]], [[2.0, 0.0], [2.0, 2.0]])
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex05.chunk_matrices")


# ex05.corrections: 4 points, 20 minutes, about 6 lines
# A hint: kda-lab hint ex05.corrections     Your verdict: kda-lab grade ex05
def corrections(L: Tensor, k: Tensor, v: Tensor, beta: Tensor, into: Tensor, S: Tensor) -> Tensor:
    """Every token's correction u_i at once, from the memory at the chunk's start.

    L: [C,C] from `chunk_matrices`. k: [C,K]. v: [C,V]. beta: [C]. into: [C,K] from `decays`.
    S: [K,V] memory before the chunk. Returns U [C,V].

    Two tokens with one key: the second finds the first in its way (L = 1) and has nothing to add.

    >>> one = torch.ones(2, 1)
    >>> L, S = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.zeros(1, 1)
    >>> corrections(L, one, 3 * one, torch.ones(2), one, S).flatten().tolist()
    [3.0, 0.0]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex05.corrections")


# ex05.chunk_step: 4 points, 15 minutes, about 4 lines
# A hint: kda-lab hint ex05.chunk_step     Your verdict: kda-lab grade ex05
def chunk_step(
    q: Tensor, k: Tensor, U: Tensor, M: Tensor, into: Tensor, out: Tensor, scale: float, S: Tensor
) -> tuple[Tensor, Tensor]:
    """Reads for all tokens of a chunk, and carries the memory to its end.

    q, k: [C,K]. U: [C,V] corrections. M: [C,C] (scale already inside). into, out: [C,K]. S: [K,V].
    Returns o [C,V] and the memory after the chunk [K,V]; S itself stays as it was.

    >>> one = torch.ones(2, 1)
    >>> U, M, S = torch.tensor([[3.0], [1.0]]), torch.ones(2, 2).tril(), 2 * torch.ones(1, 1)
    >>> o, S1 = chunk_step(one, one, U, M, one, one, 1.0, S)
    >>> o.flatten().tolist(), S1.tolist()
    ([5.0, 6.0], [[6.0]])
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex05.chunk_step")


# ex05.kda_chunked: 5 points, 30 minutes, about 20 lines
# A hint: kda-lab hint ex05.kda_chunked     Your verdict: kda-lab grade ex05
def kda_chunked(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, S: Tensor, C: int
) -> tuple[Tensor, Tensor]:
    """The whole sequence in chunks of C tokens: the recurrence's answer in T/C serial steps.

    q, k, g: [T,K]. v: [T,V]. beta: [T]. S: [K,V] initial memory. C: tokens a chunk; T need not be a
    multiple of it. Returns o [T,V] and the final memory [K,V]. None of the arguments is changed.

    Three tokens in chunks of two; every token has the same key, and beta is 1, so each simply replaces:

    >>> one = torch.ones(3, 1)
    >>> v, S = torch.tensor([[4.0], [6.0], [5.0]]), torch.zeros(1, 1)
    >>> o, S = kda_chunked(one, one, v, 0 * one, torch.ones(3), 1.0, S, 2)
    >>> o.flatten().tolist(), S.tolist()
    ([4.0, 6.0, 5.0], [[5.0]])
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex05.kda_chunked")
