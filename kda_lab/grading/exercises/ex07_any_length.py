"""Cases and wrong versions of `ex07_any_length`: packed requests and the affine scan."""

import torch
from torch import Tensor

from kda_lab.grading.spec import Case, Draw, Exercise, Mutant, close, finite, shape, unmodified


def t(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def column(*numbers) -> Tensor:
    return t(*numbers)[:, None]


# ---- pack -----------------------------------------------------------------------------------------


def lengths(*fixed: int):
    """These lengths, or five random ones when none are given."""
    return lambda draw: (list(fixed) or [draw.integer(1, 7) for _ in range(5)],)


PACK = Exercise(
    "pack",
    outputs=("cu_seqlens", "sequence", "position"),
    cases=[
        Case("shape", lengths(3, 1, 4), shape(), "N+1 offsets; one sequence number and one position for each token.",
             "All three are int64 tensors: N+1, T and T entries."),
        Case("hand-worked", lengths(2, 3), close(0), "Tokens 0 and 1 are the first sequence, 2 to 4 the second.",
             "Write the five tokens in a row and number them twice.",
             expect=(torch.tensor([0, 2, 5]), torch.tensor([0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 2]))),
        Case("random lengths", lengths(), close(0), "The lengths keep their order, and nothing lies between two sequences.",
             "cu_seqlens[n+1] - cu_seqlens[n] must be lengths[n]."),
        Case("empty sequences", lengths(3, 0, 0, 2, 0), close(0), "An empty sequence has two equal offsets, and no tokens; its number is not given to anybody else.",
             "Do not drop it: the fourth sequence is still number 3."),
        Case("one sequence", lengths(4), close(0), "One sequence: offsets 0 and 4.", "The leading 0 is always there."),
        Case("only empty", lengths(0, 0), close(0), "No tokens at all is a legal batch.", "Let the shapes become 0 by themselves."),
    ],
    mutants=[
        Mutant("no leading zero", "the leading 0 of cu_seqlens is missing", [("torch.cat([torch.zeros(1, dtype=torch.long), n.cumsum(0)])", "n.cumsum(0)")]),
        Mutant("no end", "the end of the last sequence is missing", [("return cu_seqlens, sequence", "return cu_seqlens[:-1], sequence")]),
        Mutant("inclusive ends", "the offsets point at the last token of a sequence, not past it", [("return cu_seqlens,", "return cu_seqlens - (torch.arange(len(cu_seqlens)) > 0).long(),")]),
        Mutant("lengths for offsets", "cu_seqlens holds the lengths: they must be added up", [("n.cumsum(0)", "n")]),
        Mutant("sequence from one", "sequences are numbered from 1", [("return cu_seqlens, sequence,", "return cu_seqlens, sequence + 1,")]),
        Mutant("position from one", "positions are counted from 1", [("return cu_seqlens, sequence, position", "return cu_seqlens, sequence, position + 1")]),
        Mutant("position in the pack", "position is the place in the pack, not in the sequence", [(" - cu_seqlens[sequence]", "")]),
        Mutant("position from the end", "positions count down to the end of the sequence", [("torch.arange(len(sequence)) - cu_seqlens[sequence]", "cu_seqlens[sequence + 1] - 1 - torch.arange(len(sequence))")]),
        Mutant("empty dropped", "empty sequences were dropped", [("n = torch.tensor(lengths, dtype=torch.long)", "n = torch.tensor([x for x in lengths if x], dtype=torch.long)")]),
        Mutant("padded", "every sequence was given the room of the longest", [("n = torch.tensor(lengths, dtype=torch.long)", "n = torch.tensor([max(lengths)] * len(lengths), dtype=torch.long)")]),
        Mutant("sorted", "the sequences were sorted by length", [("torch.tensor(lengths,", "torch.tensor(sorted(lengths),")]),
        Mutant("dealt in turn", "tokens were dealt out to the sequences in turn", [("sequence = torch.repeat_interleave(torch.arange(len(n)), n)", "sequence = torch.arange(int(n.sum())) % len(n)")]),
    ],
)  # fmt: skip

# ---- run_packed -----------------------------------------------------------------------------------


def packed(*sizes: int, K: int = 5, V: int = 3, spare: int = 0, state: bool = True):
    def make(draw: Draw) -> tuple:
        T, S = sum(sizes) + spare, draw.normal(len(sizes), K, V)
        cu = torch.tensor([0, *sizes]).cumsum(0)
        return (draw.unit(T, K), draw.unit(T, K), draw.normal(T, V), draw.gates(T, K), draw.uniform(0.2, 0.9, T),
                0.6, S if state else 0 * S, cu)  # fmt: skip

    return make


def packed_by_hand(_: Draw) -> tuple:
    one = column(1, 1, 1)
    return (one, one.clone(), column(4, 6, 5), column(1, 0.5, 0.5).log(), t(1, 0.5, 1), 0.5,
            t(2, 8)[:, None, None], torch.tensor([0, 2, 3]))  # fmt: skip


RUN_PACKED = Exercise(
    "run_packed",
    outputs=("o", "states"),
    cases=[
        Case("shape", packed(3, 4), shape(), "One o for each token, one memory for each sequence.", "Allocate o like v, and the states like S."),
        Case("finite", packed(3, 4), finite(), "Every slot of o is written or 0.", "torch.empty leaves old bytes behind."),
        Case("hand-worked", packed_by_hand, close(1e-12),
             "First sequence: 4, then 2 + (6 - 2)/2 = 4. Second: 8/2 replaced by 5. Each o is half the memory.",
             "Follow both memories on paper, each with its own tokens.", expect=(column(2, 2, 2.5), t(4, 5)[:, None, None])),
        Case("zero memories", packed(4, 1, 5, state=False), close(1e-10), "Each sequence begins with its own memory, here zeros.",
             "Does the second sequence still know something of the first?"),
        Case("initial memories", packed(2, 5, 3), close(1e-10), "Sequence n starts from S[n].", "Which S does your loop hand to `run`?"),
        Case("empty sequences", packed(0, 4, 0, 2, 0), close(1e-10), "No tokens: the memory stays, bit for bit.", "Start from a copy of S."),
        Case("tokens of nobody", packed(3, 2, spare=3), close(1e-10), "cu_seqlens ends before T: the rest belongs to nobody, and its o is 0.",
             "Start o from zeros, and stop at cu_seqlens[-1]."),
        Case("inputs unmodified", packed(3, 0, 4), unmodified(), "The caller may start again from S.", "Copy S first."),
        Case("precision", packed(9, 17, K=8, V=8), close(1e-5), "fp32 in, fp32 arithmetic.", "Keep the dtype of the arguments.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("memory leaks", "each sequence went on from its neighbour's memory", [("scale, S[n])", "scale, states[n - 1] if n else S[0])")]),
        Mutant("starts from zeros", "the initial memories were ignored", [("scale, S[n])", "scale, 0 * S[n])")]),
        Mutant("first memory for all", "every sequence started from the first memory", [("scale, S[n])", "scale, S[0])")]),
        Mutant("memories reversed", "the final memories are in reverse order", [("states[n] =", "states[-1 - n] =")]),
        Mutant("empty zeroed", "an empty sequence lost its memory", [("S.clone()\n", "torch.zeros_like(S)\n"), ("t = slice(", "if cu_seqlens[n] == cu_seqlens[n + 1]:\n            continue\n        t = slice(")]),
        Mutant("last sequence missing", "the last sequence was left out", [("len(cu_seqlens) - 1)", "len(cu_seqlens) - 2)")]),
        Mutant("first token dropped", "the first token of each sequence was left out", [("slice(cu_seqlens[n],", "slice(cu_seqlens[n] + 1,")]),
        Mutant("last token dropped", "the last token of each sequence was left out", [("cu_seqlens[n + 1])\n", "max(cu_seqlens[n + 1] - 1, cu_seqlens[n]))\n")]),
        Mutant("one token too many", "each sequence took the first token of the next", [("cu_seqlens[n + 1])\n", "cu_seqlens[n + 1] + 1)\n")]),
        Mutant("rest to the last", "tokens after the last offset were given to the last sequence", [("cu_seqlens[n + 1])\n", "cu_seqlens[n + 1] if n + 2 < len(cu_seqlens) else len(q))\n")]),
        Mutant("o from v", "o is not 0 where tokens belong to nobody", [("torch.zeros_like(v)", "v.clone()")]),
        Mutant("old memories returned", "the memories returned are those from before", [("return o, states", "return o, S")]),
        Mutant("no scale", "scale is not used", [("beta[t], scale,", "beta[t], 1.0,")]),
        Mutant("in place", "the caller's memories were changed in place", [("S.clone()\n", "S\n")]),
    ],
)  # fmt: skip

# ---- segment_map ----------------------------------------------------------------------------------


def segment(T: int, K: int = 5, V: int = 3):
    return lambda draw: (draw.unit(T, K), draw.normal(T, V), draw.gates(T, K), draw.uniform(0.2, 0.9, T))


M_LINE = "_, M = run(k, k, torch.zeros_like(k), g, beta, 1.0, torch.eye(K, dtype=k.dtype))"
C_LINE = "_, C = run(k, k, v, g, beta, 1.0, torch.zeros(K, V, dtype=v.dtype))"
SEGMENT_MAP = Exercise(
    "segment_map",
    outputs=("M", "C"),
    cases=[
        Case("shape", segment(4), shape(), "M acts on the key axis, C looks like a memory.", "M is [K,K], C is [K,V]."),
        Case("finite", segment(4), finite(), "Products of numbers of at most 1.", "g is a log: pass it on as it is."),
        Case("hand-worked", lambda _: (column(1, 1), column(6, 5), column(0.5, 0.25).log(), t(0.5, 0.8)), close(1e-12),
             "First S -> S/4 + 3; then a quarter, 80% erased, 4 added: S -> 0.05 (S/4 + 3) + 4.",
             "Follow the unknown S through both tokens on paper.", expect=(t(0.0125)[None], t(4.15)[None])),
        Case("one token", segment(1), close(1e-12), "One token: M = (I - beta k k^T) Diag(e^g), C = beta k v^T.", "Decay first, so it stands on the right."),
        Case("algebra", segment(7), close(1e-10), "M from the identity and no values, C from zeros and the real values.", "Which of the two is off?"),
        Case("algebra, K != V", segment(6, 3, 6), close(1e-10), "The values for M are zeros of width K.", "Mark every axis with T, K or V."),
        Case("inputs unmodified", segment(4), unmodified(), "The tokens are needed again, for the outputs.", "No in-place operation on the arguments."),
        Case("precision", segment(16, 8, 8), close(1e-5), "fp32 in, fp32 arithmetic.", "Build the seeds in the dtype of k.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("ones as seed", "M was started from ones, not from the identity", [("torch.eye(K, dtype=k.dtype)", "torch.ones(K, K, dtype=k.dtype)")]),
        Mutant("keys as values", "M was run with values: it must see none", [("torch.zeros_like(k)", "k")]),
        Mutant("identity under C", "C was started from an identity, not from zeros", [("torch.zeros(K, V, dtype=v.dtype)", "torch.eye(K, V, dtype=v.dtype)")]),
        Mutant("M transposed", "M is transposed", [("return M, C", "return M.T, C")]),
        Mutant("no decay in M", "M ignores the decay", [("torch.zeros_like(k), g,", "torch.zeros_like(k), 0 * g,")]),
        Mutant("no decay in C", "C ignores the decay", [("k, v, g,", "k, v, 0 * g,")]),
        Mutant("no erase in M", "M holds only the decays: the erase is missing", [(M_LINE, "M = torch.diag(g.sum(0).exp())")]),
        Mutant("no delta rule in C", "C adds up the writes without subtracting what was already there", [(C_LINE, "G = g.cumsum(0)\n    C = (beta[:, None] * k * (G[-1] - G).exp()).T @ v")]),
        Mutant("M backwards", "the tokens went into M from last to first", [(M_LINE, M_LINE.replace("run(k, k,", "run(k.flip(0), k.flip(0),").replace("g, beta,", "g.flip(0), beta.flip(0),"))]),
        Mutant("no beta in M", "M erases with beta 1", [("torch.zeros_like(k), g, beta,", "torch.zeros_like(k), g, torch.ones_like(beta),")]),
        Mutant("erase sign", "the erase in M has the wrong sign", [("torch.zeros_like(k), g, beta,", "torch.zeros_like(k), g, -beta,")]),
        Mutant("swapped", "M and C are swapped", [("return M, C", "return C, M")]),
        Mutant("scalar gate", "one decay was used for all key channels in M", [("torch.zeros_like(k), g,", "torch.zeros_like(k), g.mean(1, keepdim=True).expand_as(g),")]),
    ],
)  # fmt: skip

# ---- combine --------------------------------------------------------------------------------------


def two_maps(K: int = 5, V: int = 3):
    return lambda draw: (draw.normal(K, K), draw.normal(K, V), draw.normal(K, K), draw.normal(K, V))


def square(a: float, b: float, c: float, d: float) -> Tensor:
    return torch.stack([t(a, b), t(c, d)])


RIGHT = "return M2 @ M1, M2 @ C1 + C2"
COMBINE = Exercise(
    "combine",
    outputs=("M", "C"),
    cases=[
        Case("shape", two_maps(), shape(), "Two maps make a map of the same size.", "M is [K,K], C is [K,V]."),
        Case("hand-worked", lambda _: (square(1, 0, 0, 0.5), column(1, 2), square(0, 1, 1, 0), column(3, 0)), close(1e-12),
             "The first halves the second row, the second swaps the rows and adds 3 to the first.",
             "Send the memory (8, 8) through both maps on paper.", expect=(square(0, 0.5, 1, 0), column(5, 1))),
        Case("algebra", two_maps(), close(1e-10), "M2 (M1 S + C1) + C2 = (M2 M1) S + (M2 C1 + C2).", "What the first segment wrote goes through the second one too."),
        Case("algebra, K < V", two_maps(3, 6), close(1e-10), "The same for any sizes.", "Only matrix products and one sum."),
        Case("inputs unmodified", two_maps(), unmodified(), "Both maps may be combined with others as well.", "Make new tensors."),
    ],
    mutants=[
        Mutant("M in reading order", "the product is M1 M2: the later map must stand on the left", [(RIGHT, "return M1 @ M2, M2 @ C1 + C2")]),
        Mutant("segments swapped", "the second segment was taken first", [(RIGHT, "return M1 @ M2, M1 @ C2 + C1")]),
        Mutant("C with M1", "C1 went through its own segment again instead of the second", [(RIGHT, "return M2 @ M1, M1 @ C1 + C2")]),
        Mutant("C added", "C1 did not go through the second segment", [(RIGHT, "return M2 @ M1, C1 + C2")]),
        Mutant("C2 lost", "what the second segment wrote is missing", [(RIGHT, "return M2 @ M1, M2 @ C1")]),
        Mutant("C1 lost", "what the first segment wrote is missing", [(RIGHT, "return M2 @ M1, C2.clone()")]),
        Mutant("C1 and C2 swapped", "C1 and C2 are swapped", [(RIGHT, "return M2 @ M1, M2 @ C2 + C1")]),
        Mutant("elementwise", "M2 and M1 were multiplied entry by entry", [(RIGHT, "return M2 * M1, M2 @ C1 + C2")]),
        Mutant("M added", "M2 and M1 were added", [(RIGHT, "return M2 + M1, M2 @ C1 + C2")]),
        Mutant("M1 lost", "the combined M forgot the first segment", [(RIGHT, "return M2.clone(), M2 @ C1 + C2")]),
        Mutant("transposed", "M2 was transposed on its way to C1", [(RIGHT, "return M2 @ M1, M2.T @ C1 + C2")]),
        Mutant("sign", "C2 was subtracted", [(RIGHT, "return M2 @ M1, M2 @ C1 - C2")]),
        Mutant("in place", "C2 was changed in place", [(RIGHT, "C2 += M2 @ C1\n    return M2 @ M1, C2")]),
    ],
)  # fmt: skip

# ---- tree_scan ------------------------------------------------------------------------------------


def maps(P: int, K: int = 4, V: int = 3):
    return lambda draw: (0.6 * draw.normal(P, K, K), draw.normal(P, K, V), draw.normal(K, V))


def one_after_another(Ms: Tensor, Cs: Tensor, S: Tensor) -> tuple[Tensor, int]:
    states = [S]
    for M, C in zip(Ms, Cs, strict=True):
        states.append(M @ states[-1] + C)
    return torch.stack(states), len(Ms) - 1


C_ROUND = "C = torch.cat([C[:d], M[d:] @ C[:-d] + C[d:]])"
M_ROUND = "M = torch.cat([M[:d], M[d:] @ M[:-d]])"
TREE_SCAN = Exercise(
    "tree_scan",
    outputs=("states", "rounds"),
    cases=[
        Case("shape", maps(4), shape(), "P segments have P+1 borders.", "Put S in front of the P memories at the segments' ends."),
        Case("finite", maps(4), finite(), "Sums of products of finite numbers.", "Look for a tensor from torch.empty that was never filled."),
        Case("hand-worked", lambda _: (t(2, 3, 0.5)[:, None, None], t(1, 0, 4)[:, None, None], t(1)[None]), close(1e-12),
             "1, then 2 + 1 = 3, then 9, then 4.5 + 4; three segments take two rounds.",
             "Draw three slots and say after each round which segments a slot covers.", expect=(t(1, 3, 9, 8.5)[:, None, None], 2)),
        Case("two segments", maps(2), close(1e-10), "One round: slot 1 takes slot 0 followed by its own.", "The later M stands on the left."),
        Case("eight segments", maps(8), close(1e-10), "Three rounds, at distances 1, 2 and 4.", "After each round compare slot p with the serial answer for the segments it covers."),
        Case("eleven segments", maps(11, 3, 5), close(1e-10), "Any number of segments: four rounds for eleven.", "Stop when the distance reaches P."),
        Case("one segment", maps(1), close(1e-12), "Nothing to combine: no rounds.", "The loop must not run at all."),
        Case("inputs unmodified", maps(6), unmodified(), "The caller may scan again from another S.", "Build new tensors in each round."),
        Case("precision", maps(8), close(1e-5), "fp32 in, fp32 arithmetic.", "Keep the dtype of the arguments.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("M in reading order", "the earlier M stands on the left in a round", [("M[d:] @ M[:-d]", "M[:-d] @ M[d:]")]),
        Mutant("C with the earlier M", "C went through the earlier segment's M", [("M[d:] @ C[:-d]", "M[:-d] @ C[:-d]")]),
        Mutant("C after M", "C was combined with the M that the round had already changed", [(f"{C_ROUND}\n        {M_ROUND}", f"{M_ROUND}\n        {C_ROUND}")]),
        Mutant("C of the slot lost", "a slot lost its own C when it combined", [("@ C[:-d] + C[d:]])", "@ C[:-d]])")]),
        Mutant("C added", "the earlier C did not go through the later segment", [("M[d:] @ C[:-d] + C[d:]", "C[:-d] + C[d:]")]),
        Mutant("one round", "there was one round only", [("while d < P:", "if d < P:")]),
        Mutant("last round missing", "the last round is missing", [("while d < P:", "while 2 * d < P:")]),
        Mutant("a round too many", "there is a round too many when P is a power of two", [("while d < P:", "while d <= P:")]),
        Mutant("distance grows by one", "the distance grew by one in place of doubling", [("2 * d, rounds", "d + 1, rounds")]),
        Mutant("always the neighbour", "every round combined with the slot next door", [("M[d:] @ C[:-d]", "M[d:] @ C[d - 1 : -1]"), ("M[d:] @ M[:-d]", "M[d:] @ M[d - 1 : -1]")]),
        Mutant("one after another", "the segments were combined one after another: right, but in P - 1 rounds", function=one_after_another),
        Mutant("S ignored", "the memory before the first segment was left out", [("M @ S + C]", "C]")]),
        Mutant("C ignored", "what the segments wrote is missing at the end", [("M @ S + C]", "M @ S]")]),
        Mutant("no start", "the memory before the first segment is not among the borders", [("torch.cat([S[None], M @ S + C])", "M @ S + C")]),
        Mutant("in place", "the maps were changed in place", [(C_ROUND, "C[d:] = M[d:] @ C[:-d] + C[d:]"), (M_ROUND, "M[d:] = M[d:] @ M[:-d]")]),
    ],
)  # fmt: skip

EXERCISES = [PACK, RUN_PACKED, SEGMENT_MAP, COMBINE, TREE_SCAN]
