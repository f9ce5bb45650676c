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


# exercise pack: 2 points, 10 minutes, 5 lines
# hint 1: Lay the sequences end to end on paper, with lengths 3, 0, 2. Where does each begin? Where does the last end?
# hint 2: The offsets are a running sum of the lengths with a 0 in front. torch.repeat_interleave writes each
#     sequence's number as often as it has tokens; an empty one is written no times.
# hint 3: All but one line:
#     n = torch.tensor(lengths)
#     cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), n.cumsum(0)])
#     sequence = torch.repeat_interleave(torch.arange(len(n)), n)
#     position = ...
# why: N+1 offsets describe any mix of lengths, empty ones included, and sequence n is always the slice
#     cu_seqlens[n] to cu_seqlens[n+1]: no special case at either end.
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
    # solution
    n = torch.tensor(lengths, dtype=torch.long)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.long), n.cumsum(0)])
    sequence = torch.repeat_interleave(torch.arange(len(n)), n)
    position = torch.arange(len(sequence)) - cu_seqlens[sequence]
    return cu_seqlens, sequence, position
    # end solution


# exercise run_packed: 3 points, 15 minutes, 5 lines
# hint 1: One sequence after the other, each from its own memory, each into its own slots. What must be in the
#     slots that no sequence touches?
# hint 2: Sequence n is the slice cu_seqlens[n] to cu_seqlens[n+1] of every token array, and entry n of S. Start
#     with o = zeros and the states = a copy of S: then an empty sequence has nothing left to do.
# hint 3: All but one line:
#     o, states = torch.zeros_like(v), S.clone()
#     for n in range(len(cu_seqlens) - 1):
#         t = slice(cu_seqlens[n], cu_seqlens[n + 1])
#         o[t], states[n] = ...
#     return o, states
# why: Sequences share an array, never a memory. That is also what makes them independent work: on a GPU
#     every pair of sequence and head can run at the same time.
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
    # solution
    o, states = torch.zeros_like(v), S.clone()
    for n in range(len(cu_seqlens) - 1):
        t = slice(cu_seqlens[n], cu_seqlens[n + 1])
        o[t], states[n] = run(q[t], k[t], v[t], g[t], beta[t], scale, S[n])
    return o, states
    # end solution


# exercise segment_map: 4 points, 20 minutes, 5 lines
# hint 1: An unknown map S -> M S + C. Which two starting memories, and which values, would show you M alone
#     and C alone?
# hint 2: With all values 0 nothing is added, so C = 0; starting from the identity, the memory ends at M I = M.
#     Starting from zeros with the real values, it ends at M 0 + C = C. `run` does both; its o is not needed.
# hint 3: All but one line:
#     K, V = k.shape[1], v.shape[1]
#     _, M = run(k, k, torch.zeros_like(k), g, beta, 1.0, torch.eye(K, dtype=k.dtype))
#     _, C = ...
#     return M, C
# why: Nothing new to program: the recurrence itself, asked twice, hands over its own matrix. M costs as much
#     as a memory with K value channels.
def segment_map(k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """M [K,K] and C [K,V] of a segment: it takes any starting memory S to M @ S + C.

    k, g: [T,K]. v: [T,V]. beta: [T]. Two calls of the given `run` are enough.

    One token that halves the memory, then writes 6 with beta 1/2: S -> S/4 + 3.

    >>> one = torch.ones(1, 1)
    >>> M, C = segment_map(one, 6 * one, (0.5 * one).log(), torch.tensor([0.5]))
    >>> round(M.item(), 4), C.item()
    (0.25, 3.0)
    """
    # solution
    K, V = k.shape[1], v.shape[1]
    _, M = run(k, k, torch.zeros_like(k), g, beta, 1.0, torch.eye(K, dtype=k.dtype))
    _, C = run(k, k, v, g, beta, 1.0, torch.zeros(K, V, dtype=v.dtype))
    return M, C
    # end solution


# exercise combine: 2 points, 10 minutes, 1 lines
# hint 1: Write the memory after the first segment, then put it into the second segment's map.
# hint 2: M2 (M1 S + C1) + C2. Multiply out, and sort by what stands in front of S and what does not.
# hint 3: All but one line; the answer is one line, so here is half of it:
#     return M2 @ M1, ...
# why: The later map stands on the left. Two maps become one of the same size, so a thousand segments
#     can too, in any grouping, but never in another order.
def combine(M1: Tensor, C1: Tensor, M2: Tensor, C2: Tensor) -> tuple[Tensor, Tensor]:
    """The map of a segment (M1, C1) followed by a segment (M2, C2).

    M1, M2: [K,K]. C1, C2: [K,V]. Returns M [K,K] and C [K,V] with M S + C = M2 (M1 S + C1) + C2.

    First S/2 + 3, then S/5 + 4: together S/10 + 4.6.

    >>> M, C = combine(*(torch.tensor([[x]]) for x in (0.5, 3.0, 0.2, 4.0)))
    >>> round(M.item(), 6), round(C.item(), 6)
    (0.1, 4.6)
    """
    # solution
    return M2 @ M1, M2 @ C1 + C2
    # end solution


# exercise tree_scan: 5 points, 30 minutes, 9 lines
# hint 1: Draw P = 4 slots. After a round at distance 1, which segments does slot 3 cover? With which slot must it
#     combine next, so that nothing is counted twice?
# hint 2: In the round at distance d every slot p >= d takes (slot p - d) followed by its own; slots below d are
#     finished. All of them read the slots as they stood before the round. Then d doubles, until d >= P.
# hint 3: All but one line, with M, C = Ms, Cs and d = 1, rounds = 0 before the loop:
#     while d < P:
#         C = torch.cat([C[:d], M[d:] @ C[:-d] + C[d:]])
#         M = ...
#         d, rounds = 2 * d, rounds + 1
#     return torch.cat([S[None], M @ S + C]), rounds
# why: Every slice is one batched product, so a round takes as long as one combine if the machine is wide
#     enough. C comes first because it still needs the old M.
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
    # solution
    M, C, P = Ms, Cs, len(Ms)
    d, rounds = 1, 0
    while d < P:
        C = torch.cat([C[:d], M[d:] @ C[:-d] + C[d:]])
        M = torch.cat([M[:d], M[d:] @ M[:-d]])
        d, rounds = 2 * d, rounds + 1
    return torch.cat([S[None], M @ S + C]), rounds
    # end solution
