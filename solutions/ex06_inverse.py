"""Exercises of notebook 06: sixteen, the triangular inverse and the exponent range.

One head, one chunk of C tokens: q, k, g [C,K]; g is the log of the decay, 0 or below, and G its
cumulative sum. The overlaps are A_ij = sum over channels of q_i k_j exp(G_i - G_j), for j <= i.
"""

import math

import torch
from torch import Tensor


# exercise largest_chunk: 2 points, 10 minutes, 1 lines
# hint 1: Every token may decay by e^lower_bound. The factored form needs exp(-G_j): how large can that get after
#     C tokens?
# hint 2: exp(-lower_bound * C) must not pass `largest`. Take the logarithm of both sides.
# hint 3: All but the rounding:
#     return ...(math.log(largest) / -lower_bound)
# why: At -5 a token, fp32 and bf16 (which share their exponent range) hold 17 tokens. The largest power of two
#     below that, and the edge of a tensor-core tile, is 16.
def largest_chunk(lower_bound: float, largest: float) -> int:
    """The largest C for which exp(-G_j) stays finite when every gate sits at its lower bound.

    lower_bound: log decay of one token, negative. largest: the largest number of the dtype.
    exp(-lower_bound * C) must be at most `largest`.

    Gates of -1 in a toy format that ends at 100: e^4 = 54.6 fits, e^5 = 148 does not.

    >>> largest_chunk(-1.0, 100.0)
    4
    """
    # solution
    return math.floor(math.log(largest) / -lower_bound)
    # end solution


# exercise anchored_overlaps: 4 points, 20 minutes, 5 lines
# hint 1: exp(G_i - G_j) = exp(G_i - a) exp(a - G_j) for any a, one number a channel. Which a keeps both exponents
#     small?
# hint 2: With a = G of the middle token, both exponents stay within half the chunk's range: 40 instead of 80 at -5
#     a token. Then the products are one matrix product.
# hint 3: All but one line:
#     G = g.cumsum(0)
#     E = G - G[len(g) // 2 - 1]
#     left, right = ..., k * (-E).exp()
#     return (left @ right.T).tril()
# why: Any origin is right in exact arithmetic; the middle one halves the exponents. At 16 tokens and -5 that is
#     e^40 instead of e^80: far from the end of fp32, and small enough to multiply by something.
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
    # solution
    G = g.cumsum(0)
    E = G - G[len(g) // 2 - 1]  # exponents around the middle token, [16,K]
    left, right = q * E.exp(), k * (-E).exp()
    return (left @ right.T).tril()
    # end solution


# exercise forward_substitution: 4 points, 20 minutes, 6 lines
# hint 1: (I + L) T = I, row by row from the top: the first row of T is the first row of I. What does row i say?
# hint 2: T_i = I_i - sum over j < i of L_ij T_j: the row of the identity minus L's row times the rows of T that are
#     known already.
# hint 3: All but one line:
#     T = torch.eye(len(L), dtype=L.dtype)
#     for i in range(1, len(L)):
#         T[i] = T[i] - ...
#     return T
# why: Each number is a sum of earlier ones, and no intermediate result is larger than the answer needs: that is
#     why kernels that must survive any input use it, although it takes C steps.
def forward_substitution(L: Tensor) -> Tensor:
    """T = (I + L)^-1 of a strictly lower triangular L [C,C], row by row, without torch.linalg.

    Returns T [C,C]. L stays as it was.

    >>> forward_substitution(torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 3, 0]])).tolist()
    [[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0], [6.0, -3.0, 1.0]]
    """
    # solution
    T = torch.eye(len(L), dtype=L.dtype, device=L.device)
    for i in range(1, len(L)):
        T[i] = T[i] - L[i, :i] @ T[:i]
    return T
    # end solution


# exercise neumann_doubling: 4 points, 20 minutes, 7 lines
# hint 1: The series I - L + L^2 - L^3 ... ends, because L^C = 0. Doubling makes it in a few products:
#     (I - L)(I + L^2) = I - L + L^2 - L^3.
# hint 2: Start from T = I - L and P = L. Each round squares P and multiplies T by (I + P): 2, 4, 8, 16 terms.
#     Stop once the terms reach C.
# hint 3: All but one line:
#     T, P, terms = eye - L, L, 2
#     while terms < len(L):
#         P = P @ P
#         T = ...
#         terms *= 2
#     return T
# why: Sixteen needs three rounds after the first factor, all matrix products: made for tensor cores. But on
#     repeated keys the powers of L grow to thousands before they cancel, and a short format does not forget that.
def neumann_doubling(L: Tensor) -> Tensor:
    """T = (I + L)^-1 of a strictly lower triangular L [C,C] as (I - L)(I + L^2)(I + L^4)...

    Only matrix products of C x C matrices: at most 2 log2(C) of them. Returns T [C,C], in L's dtype.

    >>> neumann_doubling(torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 3, 0]])).tolist()
    [[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0], [6.0, -3.0, 1.0]]
    """
    # solution
    eye = torch.eye(len(L), dtype=L.dtype, device=L.device)
    T, P, terms = eye - L, L, 2
    while terms < len(L):
        P = P @ P
        T = T + T @ P
        terms *= 2
    return T
    # end solution


# exercise rebased_overlaps: 5 points, 30 minutes, 14 lines
# hint 1: Cut the chunk into blocks of 16. Inside a block use the middle as origin, as before. For a later block of
#     queries and an earlier block of keys, put the origin where both exponents are 0 or below.
# hint 2: With `edge` = G just before the query's block: exp(G_i - edge) <= 1 for the queries of that block, and
#     exp(edge - G_j) <= 1 for every earlier key. Two factors, no overflow, at most an underflow to a true 0.
# hint 3: All but one line, for the block that starts at token a, with rows = slice(a, a + 16):
#     E = G[rows] - G[a + 7]
#     A[rows, rows] = ((q[rows] * E.exp()) @ (k[rows] * (-E).exp()).T).tril()
#     if a > 0:
#         edge = G[a - 1]
#         A[rows, :a] = ...
# why: A product of two numbers that are at most 1 can only lose what was negligible anyway. That is the whole
#     trick of re-basing; every chunk-64 kernel that survives a gate of -5 does it, one way or another.
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
    # solution
    C = len(g)
    G = g.cumsum(0)
    A = torch.zeros(C, C, dtype=q.dtype, device=q.device)
    for a in range(0, C, 16):
        rows = slice(a, a + 16)
        E = G[rows] - G[a + 7]
        A[rows, rows] = ((q[rows] * E.exp()) @ (k[rows] * (-E).exp()).T).tril()
        if a > 0:
            edge = G[a - 1]
            A[rows, :a] = (q[rows] * (G[rows] - edge).exp()) @ (k[:a] * (edge - G[:a]).exp()).T
    return A
    # end solution
