"""Exercises of notebook 06: sixteen, the triangular inverse and the exponent range.

One head, one chunk of C tokens: q, k, g [C,K]; g is the log of the decay, 0 or below, and G its
cumulative sum. The overlaps are A_ij = sum over channels of q_i k_j exp(G_i - G_j), for j <= i.
"""

import math

import torch
from torch import Tensor


# ex06.largest_chunk: 2 points, 10 minutes, about 1 lines
# A hint: kda-lab hint ex06.largest_chunk     Your verdict: kda-lab grade ex06
def largest_chunk(lower_bound: float, largest: float) -> int:
    """The largest C for which exp(-G_j) stays finite when every gate sits at its lower bound.

    lower_bound: log decay of one token, negative. largest: the largest number of the dtype.
    exp(-lower_bound * C) must be at most `largest`.

    Gates of -1 in a toy format that ends at 100: e^4 = 54.6 fits, e^5 = 148 does not.

    >>> largest_chunk(-1.0, 100.0)
    4
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex06.largest_chunk")


# ex06.anchored_overlaps: 4 points, 20 minutes, about 5 lines
# A hint: kda-lab hint ex06.anchored_overlaps     Your verdict: kda-lab grade ex06
def anchored_overlaps(q: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """A_ij of a block of 16 tokens as one matrix product, for gates down to -5, in fp32.

    q, k, g: [16,K]. Factor exp(G_i - G_j) into a part for token i and one for token j, around the
    middle of the block, so that no exponent passes 45. Returns A [16,16], 0 above the diagonal.

    Equal tokens, each halving one channel: row i counts down from the diagonal.

    >>> one = torch.ones(16, 1)
    >>> A = anchored_overlaps(one, one, -0.6931472 * one)
    >>> [round(x, 4) for x in A[3].tolist()[:5]]
    [0.125, 0.25, 0.5, 1.0, 0.0]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex06.anchored_overlaps")


# ex06.forward_substitution: 4 points, 20 minutes, about 6 lines
# A hint: kda-lab hint ex06.forward_substitution     Your verdict: kda-lab grade ex06
def forward_substitution(L: Tensor) -> Tensor:
    """T = (I + L)^-1 of a strictly lower triangular L [C,C], row by row, without torch.linalg.

    Returns T [C,C]. L stays as it was.

    >>> forward_substitution(torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 3, 0]])).tolist()
    [[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0], [6.0, -3.0, 1.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex06.forward_substitution")


# ex06.neumann_doubling: 4 points, 20 minutes, about 7 lines
# A hint: kda-lab hint ex06.neumann_doubling     Your verdict: kda-lab grade ex06
def neumann_doubling(L: Tensor) -> Tensor:
    """T = (I + L)^-1 of a strictly lower triangular L [C,C] as (I - L)(I + L^2)(I + L^4)...

    Only matrix products of C x C matrices: at most 2 log2(C) of them. Returns T [C,C], in L's dtype.

    >>> neumann_doubling(torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 3, 0]])).tolist()
    [[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0], [6.0, -3.0, 1.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex06.neumann_doubling")


# ex06.rebased_overlaps: 5 points, 30 minutes, about 14 lines
# A hint: kda-lab hint ex06.rebased_overlaps     Your verdict: kda-lab grade ex06
def rebased_overlaps(q: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """A_ij of a chunk of C tokens, C a multiple of 16, exact in fp32 for gates down to -5.

    q, k, g: [C,K]. Use matrix products only, never a [C,C,K] array, and no exponent above 45: inside
    a block of 16 factor around the block's middle; between blocks around the edge of the later one.
    Returns A [C,C], 0 above the diagonal.

    Two blocks without decay are plain overlaps:

    >>> one = torch.ones(32, 1)
    >>> A = rebased_overlaps(one, one, 0 * one)
    >>> A.sum().item(), A[0, 1].item()
    (528.0, 0.0)
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex06.rebased_overlaps")
