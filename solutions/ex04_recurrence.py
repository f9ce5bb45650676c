"""Exercises of notebook 04: the recurrence, and how to know that it is right.

Symbols and shapes as in the notebook: q, k [B,T,H,K]; v, o [B,T,HV,V]; g [B,T,HV,K] is the *log*
of the decay (0 keeps, -5 nearly forgets); beta [B,T,HV] says how much of the surprise is written.
One head's memory S is [K,V]: row i belongs to key channel i.
"""

import torch
from torch import Tensor


# exercise kda_step: 3 points, 15 minutes, 6 lines
# hint 1: Four things happen in one order: forget, predict, correct, read. Only the first touches the
#     memory before the key does.
# hint 2: The memory's own prediction for this key is S^T k, taken after the decay. Write back beta
#     times the surprise, v minus that prediction, as an outer product with k.
# hint 3: All but one line:
#     S = g.exp()[:, None] * S
#     u = beta * (v - S.T @ k)
#     S = ...
#     return scale * (S.T @ q), S
# why: Reading happens after writing, so a token can recall what it has just stored. The decay stands
#     first because the prediction must come from the memory that the correction is added to.
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
    # solution
    S = g.exp()[:, None] * S  # forget: each key channel at its own rate
    u = beta * (v - S.T @ k)  # the part of the surprise that is learnt  [V]
    S = S + k[:, None] * u[None, :]  # write
    return scale * (S.T @ q), S  # read what is now there
    # end solution


# exercise kda_recurrent: 5 points, 25 minutes, 13 lines
# hint 1: It is kda_step in a loop over t, done for all batches and heads at once: the memory becomes
#     [B,HV,K,V] and every vector gets two more axes in front.
# hint 2: Give every value head its q and k first (repeat_interleave over the head axis by HV / H).
#     Then S^T k is an einsum "bhkv,bhk->bhv", and the outer product is k[..., :, None] * u[..., None, :].
# hint 3: All but one line, inside the loop over t:
#     S = g[:, t].exp()[..., None] * S
#     u = beta[:, t, :, None] * (v[:, t] - ...)
#     S = S + k[:, t][..., None] * u[..., None, :]
#     o[:, t] = scale * torch.einsum("bhkv,bhk->bhv", S, q[:, t])
# why: The loop runs over tokens only; batches and heads never meet, so they ride along as leading
#     axes. It is slow, obvious and exact: every faster version in this course is compared with it.
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
    # solution
    T, H = q.shape[1:3]
    HV = v.shape[2]
    q = q.repeat_interleave(HV // H, dim=2)  # [B,T,HV,K]
    k = k.repeat_interleave(HV // H, dim=2)
    S, o = initial_state, torch.empty_like(v)
    for t in range(T):
        S = g[:, t].exp()[..., None] * S  # [B,HV,K,V]
        seen = torch.einsum("bhkv,bhk->bhv", S, k[:, t])
        u = beta[:, t, :, None] * (v[:, t] - seen)
        S = S + k[:, t][..., None] * u[..., None, :]
        o[:, t] = scale * torch.einsum("bhkv,bhk->bhv", S, q[:, t])
    return o, S
    # end solution


# exercise token_cost: 2 points, 10 minutes, 4 lines
# hint 1: Walk through the lines of kda_step and ask of each: does it touch all K * V numbers of the
#     memory, and how many operations does it spend on each of them?
# hint 2: The decay spends one operation on each number of S. The prediction, the write and the read
#     spend two each: a multiplication and an addition.
# hint 3: All but one line:
#     flops = (1 + 2 + 2 + 2) * K * V
#     numbers = 2 * K * V + ...
#     return flops, numbers * bytes_per_number
# why: Seven operations for each eight bytes of fp32 memory, less than one a byte: far too few to keep any
#     processor busy. Keeping S in registers takes most of the bytes away, and chunks (notebook 05) turn
#     the operations into matrix products.
def token_cost(K: int, V: int, bytes_per_number: int) -> tuple[int, int]:
    """Operations and bytes of one kda_step whose memory S lives in main memory.

    Count only operations on all of S: the decay, the prediction S^T k, the write and the read S^T q.
    A multiplication counts one, an addition counts one. Bytes: S is read once and written once;
    q, k, g, v and beta are read once; o is written once. All numbers have the same size.
    Returns (operations, bytes).

    >>> token_cost(1, 1, 4)
    (7, 32)
    """
    # solution
    flops = (1 + 2 + 2 + 2) * K * V  # decay, predict, write, read
    numbers = 2 * K * V + 3 * K + 2 * V + 1  # S twice; q k g; v o; beta
    return flops, numbers * bytes_per_number
    # end solution


# exercise telling_inputs: 4 points, 20 minutes, 14 lines
# hint 1: Look at each wrong version and ask which inputs hide it. A scale of 1 hides a forgotten scale;
#     a memory of zeros hides a forgotten initial state.
# hint 2: Everything that could be equal should differ: K and V, the gates of two channels, the betas,
#     two heads, two batch entries, H and HV. Nothing should be 0 or 1, and T no multiple of 4 or 16.
# hint 3: All but one line:
#     B, T, H, HV, K, V = 2, 7, 2, 4, 4, 3
#     q, k = torch.randn(B, T, H, K), torch.nn.functional.normalize(torch.randn(B, T, H, K), dim=-1)
#     v, beta = torch.randn(B, T, HV, V), 0.2 + 0.6 * torch.rand(B, T, HV)
#     g = ...
#     return q, k, v, g, beta, 0.5, torch.randn(B, HV, K, V)
# why: Random is not enough. All ones catch two of the sixteen wrong versions, random inputs without
#     gates three. Strong gates that differ per channel catch the order of decay and erase, which gentle
#     ones hide below half a percent.
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
    # solution
    B, T, H, HV, K, V = 2, 7, 2, 4, 4, 3
    gen = torch.Generator().manual_seed(4)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=gen, dtype=torch.float64)

    q = randn(B, T, H, K)
    k = torch.nn.functional.normalize(randn(B, T, H, K), dim=-1)
    v = randn(B, T, HV, V)
    g = -3.0 * torch.rand(B, T, HV, K, generator=gen, dtype=torch.float64)
    beta = 0.2 + 0.6 * torch.rand(B, T, HV, generator=gen, dtype=torch.float64)
    scale, initial_state = 0.5, randn(B, HV, K, V)
    return q, k, v, g, beta, scale, initial_state
    # end solution
