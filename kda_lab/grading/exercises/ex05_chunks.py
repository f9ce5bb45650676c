"""Cases and wrong versions of `ex05_chunks`: from T serial steps to T/C."""

import torch
from torch import Tensor

from kda_lab.grading.spec import Case, Draw, Exercise, Mutant, close, finite, shape, unmodified, zeros


def t(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def upper(x: Tensor) -> Tensor:
    """True above the diagonal of the first two axes."""
    mask = torch.ones(x.shape[:2], dtype=torch.bool).triu(1)
    return mask.view(*mask.shape, *[1] * (x.dim() - 2)).expand_as(x)


def chunk_decays(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    G = g.cumsum(0)
    between = (G[:, None] - G[None]).clamp(max=0).exp()
    return G.exp(), (G[-1] - G).exp(), between.masked_fill(upper(between), 0)


def chunk_inputs(draw: Draw, C: int, K: int, V: int) -> dict:
    """A consistent chunk: every array that a step of the lesson hands to the next one."""
    q, k, v, g = draw.unit(C, K), draw.unit(C, K), draw.normal(C, V), draw.gates(C, K)
    beta, S = draw.uniform(0.2, 0.9, C), draw.normal(K, V)
    into, out, between = chunk_decays(g)
    L = beta[:, None] * torch.einsum("ik,ijk,jk->ij", k, between, k).tril(-1)
    M = 0.6 * torch.einsum("ik,ijk,jk->ij", q, between, k).tril()
    U = torch.linalg.solve_triangular(torch.eye(C, dtype=L.dtype) + L, beta[:, None] * (v - (k * into) @ S), upper=False)
    return dict(q=q, k=k, v=v, g=g, beta=beta, S=S, into=into, out=out, between=between, L=L, M=M, U=U, scale=0.6)


def taking(*names: str, C: int = 6, K: int = 5, V: int = 3):
    def make(draw: Draw) -> tuple:
        x = chunk_inputs(draw, C, K, V)
        return tuple(x[n] for n in names)

    return make


# ---- decays ---------------------------------------------------------------------------------------


def gates(C: int, K: int):
    return lambda draw: (draw.gates(C, K),)


DECAYS = Exercise(
    "decays",
    outputs=("into", "out", "between"),
    cases=[
        Case("shape", gates(6, 4), shape(), "into and out have g's shape; between has one factor for each pair of tokens and channel.",
             "[C,1,K] minus [1,C,K] gives [C,C,K]: row i, column j."),
        Case("finite", gates(6, 4), finite(), "Every factor lies between 0 and 1.", "Mask after exp, and look for 0 times infinity."),
        Case("mask", gates(5, 3), zeros(lambda x: upper(x) if x.dim() == 3 else torch.zeros_like(x, dtype=torch.bool),
             "token i cannot hold anything of a later token j"), "Only earlier tokens, and itself, are left at token i.",
             "Set the entries with j > i to 0 after exp."),
        Case("hand-worked", lambda _: (t(0.5, 0.25, 0.5).log()[:, None],), close(1e-12),
             "Three tokens that keep 1/2, 1/4, 1/2: into is 1/2, 1/8, 1/16; out is 1/8, 1/2, 1.",
             "For every factor, write down which tokens' decays are in it.",
             expect=(t(1 / 2, 1 / 8, 1 / 16)[:, None], t(1 / 8, 1 / 2, 1)[:, None],
                     torch.stack([t(1, 0, 0), t(1 / 4, 1, 0), t(1 / 8, 1 / 2, 1)])[..., None])),
        Case("algebra", gates(9, 5), close(1e-10), "Sums over half-open stretches: into 0..i, out j+1..C-1, between j+1..i.",
             "Check that into[i] equals between[i,0] times into[0]."),
        Case("one token", gates(1, 3), close(1e-12), "A chunk of one token has one decay, and nothing after it.",
             "out of the last token is 1, and so is between[i,i]."),
        Case("inputs unmodified", gates(6, 4), unmodified(), "g is used again for the next step.", "No in-place operation on g."),
    ],
    mutants=[
        Mutant("into without its own token", "into leaves out token i's own decay", [("into = G.exp()", "into = (G - g).exp()")]),
        Mutant("out with its own token", "out counts the decay of token j itself: its write happened after that", [("out = (G[-1] - G)", "out = (G[-1] - G + g)")]),
        Mutant("between with its own token", "between counts the decay of token j itself", [("(G[:, None] - G[None]).exp()", "(G[:, None] - G[None] + g[None]).exp()")]),
        Mutant("between transposed", "between has rows and columns swapped: row i reads, column j wrote",
               [("return into, out, between.masked_fill(later[..., None], 0)", "return into, out, between.masked_fill(later[..., None], 0).transpose(0, 1)")]),
        Mutant("no mask", "between is not 0 where j > i", [("between.masked_fill(later[..., None], 0)", "between")]),
        Mutant("strict mask", "the diagonal of between was masked too: a token reads its own write", [("triu(1)", "triu(0)")]),
        Mutant("no exp", "these are sums of logs: exp is missing", [("into = G.exp()", "into = G"), ("out = (G[-1] - G).exp()", "out = G[-1] - G"),
               ("(G[:, None] - G[None]).exp()", "(G[:, None] - G[None])")]),
        Mutant("out as the whole decay", "out is the decay of the whole chunk for every token", [("out = (G[-1] - G).exp()", "out = G[-1].exp().expand_as(G).clone()")]),
        Mutant("into and out swapped", "into and out are swapped", [("return into, out,", "return out, into,")]),
        Mutant("scalar gate", "one decay was used for all key channels", [("G = g.cumsum(0)", "G = g.mean(1, keepdim=True).expand_as(g).cumsum(0)")]),
        Mutant("no cumsum", "each factor holds one token's decay only: they add up", [("G = g.cumsum(0)", "G = g")]),
    ],
)  # fmt: skip

# ---- chunk_matrices -------------------------------------------------------------------------------

MATRICES = ("q", "k", "beta", "between", "scale")
CHUNK_MATRICES = Exercise(
    "chunk_matrices",
    outputs=("L", "M"),
    cases=[
        Case("shape", taking(*MATRICES), shape(), "Both have one number for each pair of tokens.", "Sum over the key channels: (C,K), (C,C,K), (C,K) -> (C,C)."),
        Case("finite", taking(*MATRICES), finite(), "Dot products of finite numbers.", "Look for a tensor from torch.empty that was never filled."),
        Case("mask", taking(*MATRICES), zeros(upper, "only earlier tokens can be in the way, or be read"),
             "A token knows nothing of later ones.", "tril(-1) for L, tril() for M."),
        Case("hand-worked", lambda _: (t(1, 2)[:, None], t(3, 5)[:, None], t(0.5, 0.25), torch.stack([t(1, 0), t(0.5, 1)])[..., None], 2.0),
             close(1e-12), "L_10 = 1/4 * 5 * 1/2 * 3 = 1.875; M_00 = 2 * 1 * 3, M_10 = 2 * 2 * 1/2 * 3, M_11 = 2 * 2 * 5.",
             "Write the sum for L[1,0] and M[1,0] out on paper.",
             expect=(torch.stack([t(0, 0), t(1.875, 0)]), torch.stack([t(6, 0), t(6, 20)]))),
        Case("algebra", taking(*MATRICES, C=7, K=4), close(1e-10), "beta scales the row of the token that corrects; the decay sits inside the sum over channels.",
             "Does `between` carry the channel axis of q and k in your product?"),
        Case("inputs unmodified", taking(*MATRICES), unmodified(), "The same arrays are used by the next step.", "No in-place operation on the arguments."),
    ],
    mutants=[
        Mutant("diagonal in L", "L has a diagonal: a token does not get in its own way", [("kk.tril(-1)", "kk.tril()")]),
        Mutant("M without its diagonal", "M lacks its diagonal: a token reads its own write", [("qk.tril()", "qk.tril(-1)")]),
        Mutant("beta on the column", "beta of the earlier token was used: it belongs to the row", [("beta[:, None] *", "beta[None] *")]),
        Mutant("no beta", "beta is not used in L", [("beta[:, None] * ", "")]),
        Mutant("beta in M", "beta was used in M: reading knows no beta", [("scale * qk", "scale * beta[:, None] * qk")]),
        Mutant("no scale", "scale is not used", [("scale * qk", "qk")]),
        Mutant("scale in L", "scale was used in L: it belongs to the output", [("beta[:, None] * kk", "scale * beta[:, None] * kk")]),
        Mutant("no decay in L", "L ignores the decay between the tokens", [('kk = torch.einsum("ik,ijk,jk->ij", k, between, k)', "kk = k @ k.T")]),
        Mutant("no decay in M", "M ignores the decay between the tokens", [('qk = torch.einsum("ik,ijk,jk->ij", q, between, k)', "qk = q @ k.T")]),
        Mutant("q and k swapped", "M asks with k_i for q_j: it must ask with q_i for k_j", [("q, between, k)", "k, between, q)")]),
        Mutant("q in both", "L asks with q_i: the prediction asks with k_i", [("ij\", k, between, k)", "ij\", q, between, k)")]),
        Mutant("decay outside the sum", "the decay was averaged over channels before the product", [('kk = torch.einsum("ik,ijk,jk->ij", k, between, k)', "kk = between.mean(-1) * (k @ k.T)")]),
    ],
)  # fmt: skip

# ---- corrections ----------------------------------------------------------------------------------

CORRECTIONS_IN = ("L", "k", "v", "beta", "into", "S")
CORRECTIONS = Exercise(
    "corrections",
    outputs=("U",),
    cases=[
        Case("shape", taking(*CORRECTIONS_IN), shape(), "One correction on the value axis for every token.", "(C,K)·(K,V) -> (C,V), then a system with C unknown rows."),
        Case("finite", taking(*CORRECTIONS_IN), finite(), "I + L is triangular with ones on its diagonal: it always has an inverse.", "Did the identity get lost?"),
        Case("hand-worked", lambda _: (torch.stack([t(0, 0), t(0.5, 0)]), t(1, 1)[:, None], t(3, 4)[:, None], t(1, 0.5), t(0.5, 0.25)[:, None], t(2)[:, None]),
             close(1e-12), "R = (1 (3 - 1/2 * 2), 1/2 (4 - 1/4 * 2)) = (2, 1.75); u_1 = 1.75 - 1/2 * 2.",
             "Row 0 first; row 1 subtracts L_10 times u_0.", expect=t(2, 0.75)[:, None]),
        Case("algebra", taking(*CORRECTIONS_IN), close(1e-10), "(I + L) U = R, R_i = beta_i (v_i - (into_i k_i)^T S).",
             "Put your U back: does (I + L) U give R?"),
        Case("algebra, K != V", taking(*CORRECTIONS_IN, C=9, K=3, V=7), close(1e-10), "into and k live on the key axis, v and U on the value axis.",
             "Mark every axis with C, K or V."),
        Case("inputs unmodified", taking(*CORRECTIONS_IN), unmodified(), "L and S are used again.", "No in-place operation on the arguments."),
        Case("precision", taking(*CORRECTIONS_IN, C=16, K=8, V=8), close(1e-5), "A triangular solve keeps fp32's digits.",
             "Keep the dtype; use a solve, not an explicit inverse in lower precision.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("L ignored", "each token corrects as if it were alone in the chunk", [("torch.linalg.solve_triangular(eye + L, R, upper=False)", "R")]),
        Mutant("first order", "only one round of L was subtracted: (I - L) R in place of the inverse", [("torch.linalg.solve_triangular(eye + L, R, upper=False)", "R - L @ R")]),
        Mutant("wrong sign", "the system was (I - L) U = R", [("eye + L", "eye - L")]),
        Mutant("L transposed", "L was transposed: later tokens corrected earlier ones", [("solve_triangular(eye + L, R, upper=False)", "solve_triangular((eye + L).T, R, upper=True)")]),
        Mutant("memory ignored", "the memory before the chunk was not asked", [("(v - (k * into) @ S)", "v")]),
        Mutant("memory not decayed", "the memory's prediction did not decay on its way to token i", [("(k * into)", "k")]),
        Mutant("beta on v only", "beta scales v but not the memory's prediction", [("beta[:, None] * (v - (k * into) @ S)", "beta[:, None] * v - (k * into) @ S")]),
        Mutant("no beta", "beta is not used", [("beta[:, None] * (v", "(v")]),
        Mutant("beta after the solve", "beta was applied after the solve as well", [("return torch.linalg", "return beta[:, None] * torch.linalg")]),
        Mutant("surprise sign", "the surprise has the wrong sign: it is v minus the prediction", [("(v - (k * into) @ S)", "((k * into) @ S - v)")]),
    ],
)  # fmt: skip

# ---- chunk_step -----------------------------------------------------------------------------------

STEP_IN = ("q", "k", "U", "M", "into", "out", "scale", "S")
CHUNK_STEP = Exercise(
    "chunk_step",
    outputs=("o", "S"),
    cases=[
        Case("shape", taking(*STEP_IN), shape(), "o has a row for each token on the value axis; S keeps [K,V].", "(C,K)·(K,V), (C,C)·(C,V), and (K,C)·(C,V)."),
        Case("finite", taking(*STEP_IN), finite(), "Sums of products of finite numbers.", "Look for a tensor from torch.empty that was never filled."),
        Case("hand-worked", lambda _: (t(1, 2)[:, None], t(1, 1)[:, None], t(3, 1)[:, None], torch.stack([t(1, 0), t(1, 2)]), t(0.5, 0.25)[:, None], t(0.5, 1)[:, None], 2.0, t(8)[:, None]),
             close(1e-12), "o = (2*1*4 + 3, 2*2*2 + 3 + 2) = (11, 13); S = 8/4 + 3/2 + 1 = 4.5.",
             "Follow the two reads and the two parts of the new memory on paper.", expect=(t(11, 13)[:, None], t(4.5)[:, None])),
        Case("algebra", taking(*STEP_IN), close(1e-10), "o = scale (q into) S + M U; S decays by into of the last token, then gains (k out)^T U.",
             "Compare o and S one after the other: which of the two is off?"),
        Case("algebra, K != V", taking(*STEP_IN, C=4, K=7, V=2), close(1e-10), "Decay factors belong to the rows of S.", "Mark every axis with C, K or V."),
        Case("inputs unmodified", taking(*STEP_IN), unmodified(), "The caller may still need the memory before the chunk.", "Make a new S instead of changing it."),
    ],
    mutants=[
        Mutant("memory not read", "o lacks what the old memory holds", [("scale * (q * into) @ S + M @ U", "M @ U")]),
        Mutant("chunk not read", "o lacks what the chunk itself wrote", [("+ M @ U", "")]),
        Mutant("undecayed read", "the old memory was read without its decay", [("(q * into)", "q")]),
        Mutant("reads the new memory", "o reads the memory after the chunk",
               [("o = scale * (q * into) @ S + M @ U", "S0, S = S, into[-1][:, None] * S + (k * out).T @ U\n    o = scale * (q * into) @ S + M @ U"), ("return o, into[-1][:, None] * S + (k * out).T @ U", "return o, S")]),
        Mutant("no scale", "scale is not used on the old memory's part", [("scale * (q", "(q")]),
        Mutant("scale twice", "M has the scale inside already", [("M @ U\n", "scale * M @ U\n")]),
        Mutant("memory not decayed", "the memory did not decay over the chunk", [("into[-1][:, None] * S", "S")]),
        Mutant("decayed by the first token", "the memory decayed by the first token only", [("into[-1][:, None]", "into[0][:, None]")]),
        Mutant("writes not decayed", "what the tokens wrote did not decay to the end of the chunk", [("(k * out).T", "k.T")]),
        Mutant("into for out", "the writes were decayed by into instead of out", [("(k * out).T", "(k * into).T")]),
        Mutant("no writes", "the new memory lacks what the chunk wrote", [(" + (k * out).T @ U", "")]),
        Mutant("in place", "the caller's memory was changed in place", [("return o, into[-1][:, None] * S + (k * out).T @ U", "S *= into[-1][:, None]\n    S += (k * out).T @ U\n    return o, S")]),
    ],
)  # fmt: skip

# ---- kda_chunked ----------------------------------------------------------------------------------


def sequence(T: int, C: int, K: int = 5, V: int = 3, state: bool = True, gate: bool = True):
    def make(draw: Draw) -> tuple:
        g, S = draw.gates(T, K), draw.normal(K, V)
        return (draw.unit(T, K), draw.unit(T, K), draw.normal(T, V), g if gate else 0 * g,
                draw.uniform(0.2, 0.9, T), 0.6, S if state else 0 * S, C)  # fmt: skip

    return make


def by_hand(_: Draw) -> tuple:
    one = torch.ones(3, 1, dtype=torch.float64)
    return one, one.clone(), t(4, 6, 5)[:, None], t(1, 0.5, 0.5).log()[:, None], t(1, 0.5, 1), 0.5, t(2)[:, None], 2


KDA_CHUNKED = Exercise(
    "kda_chunked",
    outputs=("o", "S"),
    cases=[
        Case("shape", sequence(8, 4), shape(), "One o for each token, one memory at the end.", "Join the pieces with torch.cat."),
        Case("finite", sequence(8, 4), finite(), "Nothing here divides.", "Look for a tensor from torch.empty that was never filled."),
        Case("hand-worked", by_hand, close(1e-12),
             "The memory goes 4, then 2 + (6 - 2)/2 = 4, then 5; each o is half of it.",
             "Follow the memory token by token; then ask which chunk boundary your numbers miss.",
             expect=(t(2, 2, 2.5)[:, None], t(5)[:, None])),
        Case("one chunk", sequence(6, 6, state=False), close(1e-10), "T = C: the loop runs once.", "Run the four steps by hand on these numbers."),
        Case("many chunks", sequence(12, 4, state=False), close(1e-10), "The memory after one chunk is the memory before the next.",
             "Compare the memory after each chunk with the recurrence at that token."),
        Case("initial memory", sequence(8, 4), close(1e-10), "The first chunk starts from S, not from zeros.", "S goes into the first R and the first o."),
        Case("ragged T, K != V", sequence(13, 4, 3, 6), close(1e-10), "The last chunk holds one token.", "A slice past the end is simply shorter."),
        Case("chunks of one", sequence(5, 1), close(1e-10), "C = 1 is the recurrence itself.", "With one token L is 0 and M is scale q.k."),
        Case("inputs unmodified", sequence(8, 4), unmodified(), "The caller may use S again.", "Make a new S instead of changing it."),
        Case("precision", sequence(24, 8, 8, 8), close(1e-5), "fp32 in, fp32 algebra.", "Keep the dtype of the arguments.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("tail dropped", "the last tokens were left out when T is no multiple of C",
               [("range(0, len(q), C)", "range(0, len(q) - C + 1, C)"), ("return torch.cat(o), S", "return torch.cat([*o, torch.zeros_like(v)])[: len(q)], S")]),
        Mutant("memory not handed on", "every chunk started from the first memory", [("o = []\n", "o, S0 = [], S\n"), ("G = g[t].cumsum(0)  # [C,K]\n", "G, S = g[t].cumsum(0), S0\n")]),
        Mutant("starts from zeros", "the first chunk started from zeros", [("o = []\n", "o, S = [], torch.zeros_like(S)\n")]),
        Mutant("cumsum over all tokens", "the decays were summed from the start of the sequence, not of the chunk", [("G = g[t].cumsum(0)", "G = g.cumsum(0)[t]")]),
        Mutant("L ignored", "tokens of one chunk did not get in each other's way", [("solve_triangular(eye + L,", "solve_triangular(eye + 0 * L,")]),
        Mutant("wrong sign of L", "the system was (I - L) U = R", [("eye + L,", "eye - L,")]),
        Mutant("memory not decayed", "the memory did not decay over a chunk", [("S = into[-1][:, None] * S +", "S = S +")]),
        Mutant("no scale", "scale is not used", [("scale * qk", "qk"), ("scale * (q[t]", "(q[t]")]),
        Mutant("no beta in L", "beta is missing in L", [("beta[t][:, None] * kk", "kk")]),
        Mutant("chunk not read", "o lacks what its own chunk wrote", [("@ S + M @ U)", "@ S)")]),
        Mutant("no delta rule", "v was written without subtracting what the memory predicts", [("(v[t] - (k[t] * into) @ S)", "v[t]")]),
        Mutant("scalar gate", "one decay was used for all key channels", [("G = g[t].cumsum(0)", "G = g[t].mean(1, keepdim=True).expand_as(g[t]).cumsum(0)")]),
        Mutant("writes not decayed", "what the tokens wrote did not decay to the end of the chunk", [("(k[t] * out).T", "k[t].T")]),
        Mutant("in place", "the caller's memory was changed in place", [("S = into[-1][:, None] * S + (k[t] * out).T @ U", "S *= into[-1][:, None]\n        S += (k[t] * out).T @ U")]),
    ],
)  # fmt: skip

EXERCISES = [DECAYS, CHUNK_MATRICES, CORRECTIONS, CHUNK_STEP, KDA_CHUNKED]
