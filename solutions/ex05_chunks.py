"""Exercises of notebook 05: chunks, from T serial steps to T/C.

One head, one chunk of C tokens: q, k, g [C,K]; v, U, o [C,V]; beta [C]; S [K,V]. g is the log of
the decay, 0 or below. Token numbers i (later, reads) and j (earlier, wrote), both from 0.
"""

import torch
from torch import Tensor


# exercise decays: 3 points, 15 minutes, 8 lines
# hint 1: All three are sums of g over a stretch of tokens, then exp. Write down the stretch for each:
#     which token is the first one in it, which the last?
# hint 2: "into" sums tokens 0..i (a cumsum), "out" sums tokens j+1..C-1 (what comes after j), and
#     "between" sums j+1..i. With G the inclusive cumsum, the last one is G_i - G_j.
# hint 3: All but one line:
#     G = g.cumsum(0)
#     into = G.exp()
#     out = (G[-1] - G).exp()
#     between = ...   # [C,1,K] minus [1,C,K], exp, then zero where j > i
# why: A factor always belongs to a half-open stretch: the write of token j happens after its own decay,
#     so j itself never counts again. Subtracting cumulative sums is fine in fp64 with gates like these;
#     notebook 06 shows where it is not.
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
    # solution
    C = len(g)
    G = g.cumsum(0)
    into = G.exp()
    out = (G[-1] - G).exp()
    between = (G[:, None] - G[None]).exp()  # [C,C,K]
    later = torch.ones(C, C, dtype=torch.bool, device=g.device).triu(1)  # j > i
    return into, out, between.masked_fill(later[..., None], 0)
    # end solution


# exercise chunk_matrices: 4 points, 15 minutes, 5 lines
# hint 1: Both matrices hold dot products over the key channels, weighted by what is left at i of what j
#     wrote. One asks with k_i (the prediction), the other with q_i (the read).
# hint 2: Token i predicts before it writes, so L has nothing on its diagonal. It reads after it wrote, so M
#     has something there. beta belongs to the token that corrects, the row.
# hint 3: All but one line:
#     kk = torch.einsum("ik,ijk,jk->ij", k, between, k)
#     L = beta[:, None] * kk.tril(-1)
#     M = ...
# why: L is strictly lower because only earlier tokens can be in the way; that is what makes I + L
#     invertible whatever the keys are. M keeps its diagonal because a token can read its own write.
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
    # solution
    kk = torch.einsum("ik,ijk,jk->ij", k, between, k)
    qk = torch.einsum("ik,ijk,jk->ij", q, between, k)
    return beta[:, None] * kk.tril(-1), scale * qk.tril()
    # end solution


# exercise corrections: 4 points, 20 minutes, 6 lines
# hint 1: Take the rows in order. Row 0 has no earlier token in its way: u_0 is beta_0 (v_0 minus what the old
#     memory predicts). What must row 1 subtract besides that?
# hint 2: The rows say (I + L) U = R, with R_i = beta_i (v_i - (into_i k_i)^T S). Row i: u_i = R_i minus the
#     sum over j < i of L_ij u_j. torch.linalg.solve_triangular does all rows at once.
# hint 3: All but one line:
#     R = beta[:, None] * (v - (k * into) @ S)
#     eye = torch.eye(len(L), dtype=L.dtype)
#     return torch.linalg.solve_triangular(..., R, upper=False)
# why: A triangular system instead of a loop over the memory: the C corrections depend on each other only
#     through C x C numbers, and S [K,V] is read once for all of them.
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
    # solution
    R = beta[:, None] * (v - (k * into) @ S)  # [C,V]
    eye = torch.eye(len(L), dtype=L.dtype, device=L.device)
    return torch.linalg.solve_triangular(eye + L, R, upper=False)
    # end solution


# exercise chunk_step: 4 points, 15 minutes, 4 lines
# hint 1: A token reads two things: what the old memory still holds for it, and what the chunk's tokens up to
#     itself wrote. The memory at the end also has two parts.
# hint 2: o = scale (q into) S + M U. The new memory is the old one decayed over the whole chunk (into of
#     the last token) plus the sum over j of (k_j out_j) u_j^T, which is one matrix product.
# hint 3: All but one line:
#     o = scale * (q * into) @ S + M @ U
#     S = into[-1][:, None] * S + ...
#     return o, S
# why: Two products with the memory read it, one writes it: C tokens for the price that one token paid
#     before. This is the loop that every fast kernel of the course runs.
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
    # solution
    o = scale * (q * into) @ S + M @ U
    return o, into[-1][:, None] * S + (k * out).T @ U
    # end solution


# exercise kda_chunked: 5 points, 30 minutes, 20 lines
# hint 1: Cut T into pieces of at most C tokens, run the four steps on each piece in order, and hand the memory
#     on. The last piece may be shorter; slices do that by themselves.
# hint 2: Nothing changes in a piece with fewer tokens: every formula works for any C. Collect the o of each
#     piece and join them at the end.
# hint 3: All but one line, inside `for start in range(0, len(q), C):` with t = slice(start, start + C):
#     G = g[t].cumsum(0)
#     between = (G[:, None] - G[None]).exp()
#     L = beta[t][:, None] * torch.einsum("ik,ijk,jk->ij", k[t], between, k[t]).tril(-1)
#     M = scale * torch.einsum("ik,ijk,jk->ij", q[t], between, k[t]).tril()
#     R = ...
#     U = torch.linalg.solve_triangular(torch.eye(len(L), dtype=L.dtype) + L, R, upper=False)
#     o.append(scale * (q[t] * G.exp()) @ S + M @ U)
#     S = G[-1].exp()[:, None] * S + (k[t] * (G[-1] - G).exp()).T @ U
# why: T/C serial steps of matrix products instead of T steps of vector products. L, M and their decays do not
#     know S, so a GPU can prepare them for all chunks at the same time; only the last lines wait.
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
    # solution
    o = []
    for start in range(0, len(q), C):
        t = slice(start, start + C)
        G = g[t].cumsum(0)  # [C,K]
        into, out = G.exp(), (G[-1] - G).exp()
        between = (G[:, None] - G[None]).exp()  # [C,C,K], used for j <= i only
        kk = torch.einsum("ik,ijk,jk->ij", k[t], between.clamp(max=1), k[t])
        qk = torch.einsum("ik,ijk,jk->ij", q[t], between.clamp(max=1), k[t])
        L, M = beta[t][:, None] * kk.tril(-1), scale * qk.tril()
        R = beta[t][:, None] * (v[t] - (k[t] * into) @ S)
        eye = torch.eye(len(L), dtype=L.dtype, device=L.device)
        U = torch.linalg.solve_triangular(eye + L, R, upper=False)
        o.append(scale * (q[t] * into) @ S + M @ U)
        S = into[-1][:, None] * S + (k[t] * out).T @ U
    return torch.cat(o), S
    # end solution
