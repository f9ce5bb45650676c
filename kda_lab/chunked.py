"""KDA in chunks of 16, 32 or 64 tokens: T/C serial steps instead of T, in PyTorch; differentiable.

Inside a chunk, with decay factors between 0 and 1 only (sums of g over half-open token ranges):

    into(i)   = exp(sum of g from the chunk start to i)       what is left of S when token i reads it
    out(j)    = exp(sum of g after j to the chunk end)        what is left of token j's write at the end
    D(i,j)    = exp(sum of g after j up to i),  j <= i         what is left of j's write at i

    L_ij = beta_i <k_i D(i,j), k_j>  (j < i)      M_ij = <q_i D(i,j), k_j>  (j <= i)
    U = (I + L)^-1 (beta V - beta (k into) S)                 every token's correction at once
    O = (q into) S + M U
    S <- Diag(into(last)) S + (k out)^T U

D does not factor into a token's own numbers without a common origin, and one origin for the whole
chunk overflows. So it is formed block by block (16 tokens): between blocks as the product of a
factor at each block's edge; inside a block around its middle token when g >= -5 is known (exponents
within +-40), and pair by pair otherwise, which stays exact at -30 and at -inf.

Source: the WY/UT transform of DeltaNet (arXiv 2406.06484) and Kimi Linear (arXiv 2510.26692), sec. 3.
"""

import torch
from torch import Tensor

from kda_lab.backend import Backend, register
from kda_lab.gates import activate, compute_dtype
from kda_lab.inputs import SAFE_BOUND, Call
from kda_lab.recurrent import final_states, initial_states, longest_first

BLOCK = 16
DEFAULT_CHUNK = 64
SLAB = 1 << 20  # elements of one [rows,HV,C,K] tensor that are prepared at a time


def prefix_sum(g: Tensor) -> Tensor:
    """Inclusive sums from the first token on, along axis -2."""
    return g.cumsum(-2)


def suffix_sum(g: Tensor) -> Tensor:
    """Sums over the tokens after each one, along axis -2; summed directly, so -inf stays -inf."""
    later = torch.cat([g[..., 1:, :], torch.zeros_like(g[..., :1, :])], -2)
    return later.flip(-2).cumsum(-2).flip(-2)


def block_products_bounded(
    q: Tensor, k: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """<q_i D(i,j), k_j> and <k_i D(i,j), k_j> inside blocks, for g >= -5; `[...,16,K]` -> `[...,16,16]`.

    Both factors are anchored at the block's eighth token, so that no exponent passes 8 * 5 = 40.
    """
    half = BLOCK // 2
    E = torch.cat([-suffix_sum(g[..., :half, :]), prefix_sum(g[..., half:, :])], -2)
    right = (k * torch.exp(-E)).mT
    left = E.exp()
    return (q * left) @ right, (k * left) @ right


def block_products_exact(
    q: Tensor, k: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for any g <= 0, -inf included: the gates of each pair are summed directly."""
    i = torch.arange(BLOCK, device=g.device)
    after = (i[:, None] > i)[..., None]  # [i,j,1]: token i lies after j
    sums = torch.where(after, g[..., :, None, :], 0).cumsum(-3)  # [...,i,j,K]
    right = sums.exp() * k[..., None, :, :]
    return (right @ q[..., None]).squeeze(-1), (right @ k[..., None]).squeeze(-1)


def chunk_products(q: Tensor, k: Tensor, g: Tensor, bounded: bool) -> tuple[Tensor, Tensor]:
    """<q_i D(i,j), k_j> and <k_i D(i,j), k_j> for j <= i; `[...,C,K]` -> `[...,C,C]`, 0 above the diagonal blocks.

    Entries above the diagonal inside the diagonal blocks hold numbers without meaning.
    """
    C = q.shape[-2]
    qb, kb, gb = (x.unflatten(-2, (C // BLOCK, BLOCK)) for x in (q, k, g))
    M, L = (block_products_bounded if bounded else block_products_exact)(qb, kb, gb)
    if C == BLOCK:
        return M.squeeze(-3), L.squeeze(-3)
    into, out = prefix_sum(gb).exp(), suffix_sum(gb).exp()
    left_q, left_k, right_k = qb * into, kb * into, kb * out
    M_rows, L_rows, earlier = [], [], None
    for b in range(C // BLOCK):
        parts = [M[..., b, :, :]], [L[..., b, :, :]]
        if earlier is not None:
            parts[0].insert(0, left_q[..., b, :, :] @ earlier.mT)
            parts[1].insert(0, left_k[..., b, :, :] @ earlier.mT)
            earlier = torch.cat([earlier * into[..., b, -1:, :], right_k[..., b, :, :]], -2)
        else:
            earlier = right_k[..., b, :, :]
        room = M.new_zeros(*M.shape[:-3], BLOCK, C - BLOCK * (b + 1))
        M_rows.append(torch.cat([*parts[0], room], -1))
        L_rows.append(torch.cat([*parts[1], room], -1))
    return torch.cat(M_rows, -2), torch.cat(L_rows, -2)


def prepare(x: Call, tokens: Tensor, mask: Tensor, bounded: bool) -> dict[str, Tensor]:
    """All that a chunk contributes apart from the state, for chunks given by token numbers `[rows,C]`.

    Returns, with rows and heads in front: `reads` `[2C,K]` (rows W = T beta (k into), then
    scale (q into)), U0 = T beta V `[C,V]`, M scale `[C,C]`, k_out `[C,K]`, decay `[K]`.
    """
    group = x.HV // x.H

    def take(y: Tensor) -> Tensor:  # [B*T,heads,...] -> [rows,HV,C,...], 0 at padding
        y = y.flatten(0, 1)[tokens].masked_fill(~mask.view(*mask.shape, *[1] * (y.dim() - 2)), 0)
        y = y.transpose(1, 2)
        return y.repeat_interleave(group, 1) if y.shape[1] != x.HV else y.contiguous()

    q, k, v, g, beta = (take(y) for y in (x.q, x.k, x.v, x.g, x.beta))
    q = q * x.scale
    M, L = chunk_products(q, k, g, bounded)
    into = prefix_sum(g).exp()
    beta = beta[..., None]
    right = torch.cat([beta * k * into, beta * v], -1)
    solved = torch.linalg.solve_triangular(
        (beta * L).tril(-1), right, upper=False, unitriangular=True
    )
    W, U0 = solved.split([x.K, x.V], -1)
    return dict(
        reads=torch.cat([W, q * into], -2),
        U0=U0,
        M=M.tril(),
        k_out=k * suffix_sum(g).exp(),
        decay=into[..., -1, :, None],
    )


def schedule(spans: list[tuple[int, int]], order: list[int], C: int):
    """The chunks in the order in which they run: first every sequence's first chunk, then every second, ...

    Returns token numbers and validity `[rows,C]` and how many sequences run at each step.
    """
    starts = torch.tensor([spans[n][0] for n in order])
    lengths = torch.tensor([spans[n][1] - spans[n][0] for n in order])
    longest = max((b - a for a, b in spans), default=0)
    steps = [int((lengths > c * C).sum()) for c in range(-(-longest // C))]
    first = [c * C + starts[:running] for c, running in enumerate(steps)]
    left = [lengths[:running] - c * C for c, running in enumerate(steps)]
    if not steps:
        return torch.zeros(0, C, dtype=torch.long), torch.zeros(0, C, dtype=torch.bool), steps
    i = torch.arange(C)
    tokens, mask = torch.cat(first)[:, None] + i, torch.cat(left)[:, None] > i
    return tokens.where(mask, torch.cat(first)[:, None]), mask, steps


def known_bounded(x: Call) -> bool:
    """Whether g >= -5 everywhere: by promise or gate, or on CPU by looking."""
    if x.safe_gate:
        return True
    if x.q.device.type != "cpu":
        return False  # looking would stall the stream
    return all(bool((x.g.flatten(0, 1)[a:b] >= SAFE_BOUND).all()) for a, b in x.spans())


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    dtype = compute_dtype(call)
    x = activate(call, dtype)
    C = call.chunk_size or DEFAULT_CHUNK
    bounded = known_bounded(x)
    spans = call.spans()
    order = longest_first(spans)
    rank = torch.tensor(order, dtype=torch.long, device=x.q.device)
    tokens, mask, steps = schedule(spans, order, C)
    tokens, mask = tokens.to(x.q.device), mask.to(x.q.device)

    S = initial_states(call, dtype)[rank]
    finished: list[Tensor] = []
    o = x.v.new_zeros(x.B * x.T, x.HV, x.V)
    rows_per_slab = max(1, SLAB // (x.HV * C * x.K * (1 if bounded else BLOCK)))
    row = step = 0
    while step < len(steps):
        first_row, last = row, step
        while last < len(steps) and (last == step or row + steps[last] - first_row <= rows_per_slab):
            row += steps[last]
            last += 1
        part = prepare(x, tokens[first_row:row], mask[first_row:row], bounded)
        r, outputs = 0, []
        for running in steps[step:last]:
            if running < len(S):
                finished.append(S[running:])
                S = S[:running]
            here = slice(r, r + running)
            read = part["reads"][here] @ S  # [n,HV,2C,V]
            U = part["U0"][here] - read[:, :, :C]
            outputs.append(read[:, :, C:] + part["M"][here] @ U)
            S = part["decay"][here] * S + part["k_out"][here].mT @ U
            r += running
        valid = mask[first_row:row]
        O = torch.cat(outputs).transpose(1, 2)  # [rows,C,HV,V]
        o = o.index_copy(0, tokens[first_row:row][valid], O[valid])
        step = last
    S = torch.cat([S, *reversed(finished)])[torch.argsort(rank)]
    return o.view(x.B, x.T, x.HV, x.V).to(call.v.dtype), final_states(call, S)


register(
    Backend(
        "chunked", "chunks of 16, 32 or 64 tokens by the WY/UT transform, in PyTorch", run,
        differentiable=True,
    )  # fmt: skip
)
