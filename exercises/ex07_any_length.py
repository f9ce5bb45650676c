"""Exercises of notebook 07: any length, from packed requests to the affine scan.

One head: q, k, g [T,K]; v, o [T,V]; beta [T]; S [K,V]. g is the log of the decay, 0 or below.
`run` is the recurrence of notebook 04, given, for use in your own functions.
"""

import torch
from torch import Tensor


def run(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, S: Tensor
) -> tuple[Tensor, Tensor]:
    """All T tokens through the memory S [K,V]: returns o [T,V] and the memory afterwards.

    V is whatever v and S say. With T = 0 it returns an empty o and S itself.
    """
    o = torch.zeros_like(v)
    for t in range(len(q)):
        S = g[t].exp()[:, None] * S
        S = S + beta[t] * torch.outer(k[t], v[t] - S.T @ k[t])
        o[t] = scale * (S.T @ q[t])
    return o, S


# ex07.pack: 2 points, 10 minutes, about 5 lines
# A hint: kda-lab hint ex07.pack     Your verdict: kda-lab grade ex07
def pack(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Where everything is when sequences of these lengths lie end to end, without padding.

    lengths: N numbers of tokens, 0 allowed; T is their sum.
    cu_seqlens [N+1]: sequence n is tokens cu_seqlens[n] to cu_seqlens[n+1] (the latter excluded).
    sequence [T]: which sequence each token belongs to. position [T]: its place in that sequence.
    All int64. Returns (cu_seqlens, sequence, position).

    >>> cu_seqlens, sequence, position = pack([3, 0, 2])
    >>> cu_seqlens.tolist(), sequence.tolist(), position.tolist()
    ([0, 3, 3, 5], [0, 0, 0, 2, 2], [0, 1, 2, 0, 1])
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex07.pack")


# ex07.run_packed: 3 points, 15 minutes, about 5 lines
# A hint: kda-lab hint ex07.run_packed     Your verdict: kda-lab grade ex07
def run_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float,
    S: Tensor,
    cu_seqlens: Tensor,
) -> tuple[Tensor, Tensor]:
    """The recurrence on packed sequences, each with a memory of its own. Use the given `run`.

    q, k, g: [T,K]. v: [T,V]. beta: [T]. S: [N,K,V], one initial memory a sequence.
    cu_seqlens: [N+1] from `pack`; it may end before T, and o is 0 at tokens that belong to nobody.
    An empty sequence keeps its memory. Returns o [T,V] and the final memories [N,K,V].

    Two sequences of two tokens and one; every token has the same key and replaces what was there:

    >>> one = torch.ones(3, 1)
    >>> v, S = torch.tensor([[4.0], [6.0], [5.0]]), torch.zeros(2, 1, 1)
    >>> o, states = run_packed(one, one, v, 0 * one, torch.ones(3), 1.0, S, torch.tensor([0, 2, 3]))
    >>> o.flatten().tolist(), states.flatten().tolist()
    ([4.0, 6.0, 5.0], [6.0, 5.0])
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex07.run_packed")


# ex07.segment_map: 4 points, 20 minutes, about 5 lines
# A hint: kda-lab hint ex07.segment_map     Your verdict: kda-lab grade ex07
def segment_map(k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """M [K,K] and C [K,V] of a segment: it takes any starting memory S to M @ S + C.

    k, g: [T,K]. v: [T,V]. beta: [T]. Two calls of the given `run` are enough.

    One token that halves the memory, then writes 6 with beta 1/2: S -> S/4 + 3.

    >>> one = torch.ones(1, 1)
    >>> M, C = segment_map(one, 6 * one, (0.5 * one).log(), torch.tensor([0.5]))
    >>> round(M.item(), 4), C.item()
    (0.25, 3.0)
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex07.segment_map")


# ex07.combine: 2 points, 10 minutes, about 1 lines
# A hint: kda-lab hint ex07.combine     Your verdict: kda-lab grade ex07
def combine(M1: Tensor, C1: Tensor, M2: Tensor, C2: Tensor) -> tuple[Tensor, Tensor]:
    """The map of a segment (M1, C1) followed by a segment (M2, C2).

    M1, M2: [K,K]. C1, C2: [K,V]. Returns M [K,K] and C [K,V] with M S + C = M2 (M1 S + C1) + C2.

    First S/2 + 3, then S/5 + 4: together S/10 + 4.6.

    >>> M, C = combine(*(torch.tensor([[x]]) for x in (0.5, 3.0, 0.2, 4.0)))
    >>> round(M.item(), 6), round(C.item(), 6)
    (0.1, 4.6)
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex07.combine")


# ex07.tree_scan: 5 points, 30 minutes, about 9 lines
# A hint: kda-lab hint ex07.tree_scan     Your verdict: kda-lab grade ex07
def tree_scan(Ms: Tensor, Cs: Tensor, S: Tensor) -> tuple[Tensor, int]:
    """The memory at every border of P segments, in about log2 P rounds instead of P.

    Ms: [P,K,K] and Cs: [P,K,V], the segments' maps in order. S: [K,V] memory before the first.
    states [P+1,K,V]: states[p] is the memory before segment p, states[P] the one at the end.
    rounds: how many rounds of combines it took; all combines of a round are independent.
    Returns (states, rounds).

    Three segments, each S -> 2 S + 1, from 1: two rounds.

    >>> states, rounds = tree_scan(2 * torch.ones(3, 1, 1), torch.ones(3, 1, 1), torch.ones(1, 1))
    >>> states.flatten().tolist(), rounds
    ([1.0, 3.0, 7.0, 15.0], 2)
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex07.tree_scan")
