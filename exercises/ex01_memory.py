"""Exercises of notebook 01: a matrix that remembers.

One memory S [K,V]: K key channels, V value channels. A pair is a key k [K] and a value v [V]; a
question is a query q [K]. T tokens stand in the rows of q, k [T,K] and v [T,V].
"""

import torch
from torch import Tensor


# ex01.write_pair: 2 points, 10 minutes, about 1 lines
# A hint: kda-lab hint ex01.write_pair     Your verdict: kda-lab grade ex01
def write_pair(S: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The memory after one more pair has been written into it.

    S: [K,V]. k: [K]. v: [V]. Returns the new memory [K,V]; S itself stays as it was.

    >>> write_pair(torch.zeros(2, 3), torch.tensor([1.0, 0.5]), torch.tensor([2.0, 4.0, 6.0])).tolist()
    [[2.0, 4.0, 6.0], [1.0, 2.0, 3.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex01.write_pair")


# ex01.crosstalk: 3 points, 15 minutes, about 3 lines
# A hint: kda-lab hint ex01.crosstalk     Your verdict: kda-lab grade ex01
def crosstalk(k: Tensor) -> Tensor:
    """How much of value j comes back when the memory is asked for key i, j != i.

    k: [n,K] keys, all written once into one memory. Returns [n,n]; the diagonal is 0.

    Two keys at right angles and one halfway between:

    >>> crosstalk(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])).tolist()
    [[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.5, 0.5, 0.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex01.crosstalk")


# ex01.linear_attention: 4 points, 20 minutes, about 6 lines
# A hint: kda-lab hint ex01.linear_attention     Your verdict: kda-lab grade ex01
def linear_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Reads after every write: o_t = scale * S_t^T q_t, where S_t holds the pairs 0 to t.

    q, k: [T,K]. v: [T,V]. Starts from an empty memory. Returns o [T,V].

    >>> q = k = torch.ones(3, 1)
    >>> linear_attention(q, k, torch.tensor([[1.0], [2.0], [4.0]]), 1.0).flatten().tolist()
    [1.0, 3.0, 7.0]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex01.linear_attention")


# ex01.attention_form: 3 points, 15 minutes, about 2 lines
# A hint: kda-lab hint ex01.attention_form     Your verdict: kda-lab grade ex01
def attention_form(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The answers of `linear_attention` without a memory: scores of every pair of tokens, masked, times v.

    q, k: [T,K]. v: [T,V]. Returns o [T,V]. No loop.

    >>> q = k = torch.ones(3, 1)
    >>> attention_form(q, k, torch.tensor([[1.0], [2.0], [4.0]]), 1.0).flatten().tolist()
    [1.0, 3.0, 7.0]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex01.attention_form")


# ex01.break_even: 2 points, 10 minutes, about 1 lines
# A hint: kda-lab hint ex01.break_even     Your verdict: kda-lab grade ex01
def break_even(K: int, V: int) -> int:
    """The smallest number of tokens T at which a list of all keys and values is larger than the memory.

    The list holds T keys of K numbers and T values of V numbers; the memory holds K * V numbers.

    >>> break_even(4, 4)    # 3 tokens are 24 numbers, the memory is 16; 2 tokens are 16, not larger
    3
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex01.break_even")
