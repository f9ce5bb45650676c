"""Exercises of notebook 01: a matrix that remembers.

One memory S [K,V]: K key channels, V value channels. A pair is a key k [K] and a value v [V]; a
question is a query q [K]. T tokens stand in the rows of q, k [T,K] and v [T,V].
"""

import torch
from torch import Tensor


# exercise write_pair: 2 points, 10 minutes, 1 lines
# hint 1: The memory is a table with one row per key channel. Which rows should change when k is (1, 0), and by what?
# hint 2: Row i gains k_i times v. All rows at once: an outer product.
# hint 3: All but one piece:
#     return S + k[:, None] * ...
# why: Writing is one multiplication and one addition per entry of S, and it never looks at what is there already:
#     that is its beauty, and the flaw that notebook 02 mends.
def write_pair(S: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The memory after one more pair has been written into it.

    S: [K,V]. k: [K]. v: [V]. Returns the new memory [K,V]; S itself stays as it was.

    >>> write_pair(torch.zeros(2, 3), torch.tensor([1.0, 0.5]), torch.tensor([2.0, 4.0, 6.0])).tolist()
    [[2.0, 4.0, 6.0], [1.0, 2.0, 3.0]]
    """
    # solution
    return S + k[:, None] * v[None, :]
    # end solution


# exercise crosstalk: 3 points, 15 minutes, 3 lines
# hint 1: Write all pairs, then ask with k_i. Which multiples of the other values come back beside v_i?
# hint 2: S^T k_i = sum over j of (k_j . k_i) v_j. Everything but j = i is crosstalk: one dot product for each
#     pair of keys, and nothing on the diagonal.
# hint 3: All but one line:
#     A = ...
#     return A - A.diagonal().diag()
# why: How well a matrix remembers has nothing to do with the values: it is all in the dot products of the keys.
#     The same matrix, with decays and betas, becomes L in notebook 05.
def crosstalk(k: Tensor) -> Tensor:
    """How much of value j comes back when the memory is asked for key i, j != i.

    k: [n,K] keys, all written once into one memory. Returns [n,n]; the diagonal is 0.

    Two keys at right angles and one halfway between:

    >>> crosstalk(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])).tolist()
    [[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.5, 0.5, 0.0]]
    """
    # solution
    A = k @ k.T
    return A - A.diagonal().diag()
    # end solution


# exercise linear_attention: 4 points, 20 minutes, 6 lines
# hint 1: Keep one memory. At each token: write its pair, then ask with its query. In this order.
# hint 2: S = S + k_t v_t^T, then o_t = scale times S^T q_t. Collect the o_t in a [T,V] tensor.
# hint 3: All but one line, inside `for t in range(len(q)):`:
#     S = S + k[t][:, None] * v[t][None, :]
#     o[t] = ...
# why: T tokens, one memory of fixed size: this loop is linear attention. It costs the same at token one million
#     as at token one.
def linear_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Reads after every write: o_t = scale * S_t^T q_t, where S_t holds the pairs 0 to t.

    q, k: [T,K]. v: [T,V]. Starts from an empty memory. Returns o [T,V].

    >>> q = k = torch.ones(3, 1)
    >>> linear_attention(q, k, torch.tensor([[1.0], [2.0], [4.0]]), 1.0).flatten().tolist()
    [1.0, 3.0, 7.0]
    """
    # solution
    S = torch.zeros(k.shape[1], v.shape[1], dtype=q.dtype, device=q.device)
    o = torch.empty_like(v)
    for t in range(len(q)):
        S = S + k[t][:, None] * v[t][None, :]
        o[t] = scale * (S.T @ q[t])
    return o
    # end solution


# exercise attention_form: 3 points, 15 minutes, 2 lines
# hint 1: o_t is a sum over the tokens up to t. What is the number in front of v_j?
# hint 2: It is scale times q_t . k_j, for j <= t, and nothing for later tokens: a [T,T] matrix times v.
# hint 3: All but one piece:
#     scores = (q @ k.T)...
#     return scale * scores @ v
# why: This is attention without its softmax. Because nothing stands between the two products, their order may be
#     swapped, and (q k^T) v becomes q (k^T v): a memory instead of a list of everything.
def attention_form(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The answers of `linear_attention` without a memory: scores of every pair of tokens, masked, times v.

    q, k: [T,K]. v: [T,V]. Returns o [T,V]. No loop.

    >>> q = k = torch.ones(3, 1)
    >>> attention_form(q, k, torch.tensor([[1.0], [2.0], [4.0]]), 1.0).flatten().tolist()
    [1.0, 3.0, 7.0]
    """
    # solution
    scores = (q @ k.T).tril()  # (T,K)·(K,T) -> (T,T)
    return scale * scores @ v
    # end solution


# exercise break_even: 2 points, 10 minutes, 1 lines
# hint 1: A list of T tokens keeps a key and a value for each. The memory keeps K * V numbers, whatever T is.
# hint 2: You want the smallest whole T with T (K + V) > K V.
# hint 3: All but one piece:
#     return K * V // ... + 1
# why: At K = V = 128 the list is larger from token 65 on. At a million tokens it is fifteen thousand times larger,
#     and every new token must read all of it.
def break_even(K: int, V: int) -> int:
    """The smallest number of tokens T at which a list of all keys and values is larger than the memory.

    The list holds T keys of K numbers and T values of V numbers; the memory holds K * V numbers.

    >>> break_even(4, 4)    # 3 tokens are 24 numbers, the memory is 16; 2 tokens are 16, not larger
    3
    """
    # solution
    return K * V // (K + V) + 1
    # end solution
