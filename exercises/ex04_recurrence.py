"""Exercises of notebook 04: the recurrence, and how to know that it is right.

Symbols and shapes as in the notebook: q, k [B,T,H,K]; v, o [B,T,HV,V]; g [B,T,HV,K] is the *log*
of the decay (0 keeps, -5 nearly forgets); beta [B,T,HV] says how much of the surprise is written.
One head's memory S is [K,V]: row i belongs to key channel i.
"""

import torch
from torch import Tensor


# ex04.kda_step: 3 points, 15 minutes, about 6 lines
# A hint: kda-lab hint ex04.kda_step     Your verdict: kda-lab grade ex04
def kda_step(
    S: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """One token through one head's memory: decay, erase and write, read.

    S: [K,V] memory before the token. q, k: [K]. v: [V]. g: [K] log decay, one per key channel.
    beta: a tensor with one number. scale: multiplies what is read.
    Returns o [V] and the new memory [K,V]. None of the arguments is changed.

    An empty memory stores half of v under the first key, and reads it back:

    >>> key, v = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 6.0, 8.0])
    >>> o, S = kda_step(torch.zeros(2, 3), key, key, v, torch.zeros(2), torch.tensor(0.5), 1.0)
    >>> o.tolist()
    [2.0, 3.0, 4.0]
    >>> S.tolist()
    [[2.0, 3.0, 4.0], [0.0, 0.0, 0.0]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex04.kda_step")


# ex04.kda_recurrent: 5 points, 25 minutes, about 13 lines
# A hint: kda-lab hint ex04.kda_recurrent     Your verdict: kda-lab grade ex04
def kda_recurrent(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float, initial_state: Tensor
) -> tuple[Tensor, Tensor]:
    """The whole recurrence, token by token, for every batch entry and value head.

    q, k: [B,T,H,K]. v: [B,T,HV,V], HV a multiple of H: value head h uses query and key head
    h // (HV / H). g: [B,T,HV,K] log decay. beta: [B,T,HV]. initial_state: [B,HV,K,V].
    Returns o [B,T,HV,V] and the final state [B,HV,K,V]. None of the arguments is changed.

    One batch entry, two tokens, one head, K = V = 1. The second token halves the memory (to 2)
    and stores nothing, because its beta is 0:

    >>> one = torch.ones(1, 2, 1, 1)
    >>> v, g = torch.tensor([4.0, 9.0]), torch.tensor([1.0, 0.5]).log()
    >>> beta, S0 = torch.tensor([1.0, 0.0]), torch.zeros(1, 1, 1, 1)
    >>> o, S = kda_recurrent(
    ...     one, one, v.view(1, 2, 1, 1), g.view(1, 2, 1, 1), beta.view(1, 2, 1), 1.0, S0
    ... )
    >>> o.flatten().tolist(), S.flatten().tolist()
    ([4.0, 2.0], [2.0])
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex04.kda_recurrent")


# ex04.token_cost: 2 points, 10 minutes, about 4 lines
# A hint: kda-lab hint ex04.token_cost     Your verdict: kda-lab grade ex04
def token_cost(K: int, V: int, bytes_per_number: int) -> tuple[int, int]:
    """Operations and bytes of one kda_step whose memory S lives in main memory.

    Count only operations on all of S: the decay, the prediction S^T k, the write and the read S^T q.
    A multiplication counts one, an addition counts one. Bytes: S is read once and written once;
    q, k, g, v and beta are read once; o is written once. All numbers have the same size.
    Returns (operations, bytes).

    >>> token_cost(1, 1, 4)
    (7, 32)
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex04.token_cost")


# ex04.telling_inputs: 4 points, 20 minutes, about 14 lines
# A hint: kda-lab hint ex04.telling_inputs     Your verdict: kda-lab grade ex04
def telling_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float, Tensor]:
    """Arguments for kda_recurrent on which all sixteen wrong versions give a wrong answer.

    The wrong versions: no gate; one gate a head; gate on the value axis; no delta rule; decay after
    erase; prediction from the undecayed state; beta on the write only; beta on the erase only; no
    beta; read before write; state transposed; no scale; initial state ignored; state leaked across
    the batch; tail dropped (T cut to a multiple of 4); another head's final state.

    Each must differ from the right o or final state by at least 1% (relative L2). Where a wrong
    version raises an error, you have caught it. T at most 32, every other size at most 8.
    Returns (q, k, v, g, beta, scale, initial_state), shapes as for kda_recurrent, fp32 or fp64.

    With all ones and no gate, most of them hide:

    >>> ones = torch.ones(1, 1, 1, 1)
    >>> hiding = (ones, ones, ones, 0 * ones, ones[..., 0], 1.0, 0 * ones)   # far from enough
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex04.telling_inputs")
