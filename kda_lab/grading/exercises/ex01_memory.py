"""Cases and wrong versions of `ex01_memory`: writing, recalling, and what gets in the way."""

import torch
from torch import Tensor

from kda_lab.grading.spec import Case, Draw, Exercise, Mutant, close, finite, shape, unmodified, zeros


def t(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---- write_pair -----------------------------------------------------------------------------------


def pair(K: int = 5, V: int = 3):
    return lambda draw: (draw.normal(K, V), draw.unit(K), draw.normal(V))


WRITE_PAIR = Exercise(
    "write_pair",
    outputs=("S",),
    cases=[
        Case("shape", pair(), shape(), "Keys index the rows, values the columns: [K,V].", "(K,1)·(1,V) -> (K,V)."),
        Case("finite", pair(), finite(), "Products and sums of finite numbers.", "Is every entry filled?"),
        Case("hand-worked", lambda _: (torch.stack([t(1, 1), t(0, 2)]), t(2, -1), t(3, 5)), close(1e-12),
             "Row 0 gains 2 v = (6, 10), row 1 gains -v = (-3, -5).", "Do the two rows on paper.",
             expect=torch.stack([t(7, 11), t(-3, -3)])),
        Case("algebra", pair(4, 4), close(1e-12), "S_ij gains k_i v_j.", "With K = V a transposed product hides: compare single entries."),
        Case("K != V", pair(7, 2), close(1e-12), "The key's axis comes first.", "Mark both axes of your product."),
        Case("inputs unmodified", pair(), unmodified(), "The caller may still need the memory before the pair.", "S + ..., not S += ... ."),
    ],
    mutants=[
        Mutant("replaces", "the memory was replaced, not added to", [("S + k", "k")]),
        Mutant("subtracts", "the pair was subtracted", [("S + k", "S - k")]),
        Mutant("key ignored", "v was written into every row alike: k is not used", [("k[:, None] * v[None, :]", "0 * k[:, None] + v[None, :]")]),
        Mutant("value ignored", "v is not used", [("k[:, None] * v[None, :]", "k[:, None] + 0 * v[None, :]")]),
        Mutant("sum instead of product", "k and v were added, not multiplied", [("k[:, None] * v[None, :]", "(k[:, None] + v[None, :])")]),
        Mutant("absolute key", "the sign of the key was lost", [("k[:, None] *", "k.abs()[:, None] *")]),
        Mutant("key squared", "the key was used twice", [("k[:, None] * v", "k[:, None] ** 2 * v")]),
        Mutant("decays", "the old memory was halved: nothing is forgotten here yet", [("S + k", "0.5 * S + k")]),
        Mutant("largest channel only", "only the row of the largest key channel was written",
               [("k[:, None] * v[None, :]", "(k * (k.abs() == k.abs().max()))[:, None] * v[None, :]")]),
        Mutant("in place", "the caller's memory was changed in place", [("return S + k[:, None] * v[None, :]", "S += k[:, None] * v[None, :]\n    return S")]),
    ],
)  # fmt: skip

# ---- crosstalk ------------------------------------------------------------------------------------


def keys(n: int = 5, K: int = 4):
    return lambda draw: (draw.normal(n, K),)


CROSSTALK = Exercise(
    "crosstalk",
    outputs=("A",),
    cases=[
        Case("shape", keys(6, 4), shape(), "One number for each pair of keys.", "(n,K)·(K,n) -> (n,n)."),
        Case("finite", keys(), finite(), "Dot products of finite numbers.", "No division is needed."),
        Case("mask", keys(), zeros(lambda x: torch.eye(len(x), dtype=torch.bool), "a key does not disturb itself"),
             "Asking for key i is meant to bring back v_i.", "Take the diagonal out."),
        Case("hand-worked", lambda _: (torch.stack([t(2, 0), t(1, 3)]),), close(1e-12), "The dot product of (2, 0) and (1, 3) is 2.",
             "Keys need not have length one: do not divide.", expect=torch.stack([t(0, 2), t(2, 0)])),
        Case("algebra", keys(7, 3), close(1e-12), "A_ij = k_i . k_j for i != j.", "Write three pairs into a memory and ask: what comes back?"),
        Case("inputs unmodified", keys(), unmodified(), "The keys are used again.", "No in-place operation on k."),
    ],
    mutants=[
        Mutant("diagonal kept", "the diagonal was kept", [(" - A.diagonal().diag()", "")]),
        Mutant("identity subtracted", "the identity was subtracted: keys need not have length one", [("A.diagonal().diag()", "torch.eye(len(k), dtype=k.dtype)")]),
        Mutant("lower half", "only earlier keys were counted: here all pairs are written before asking", [("return A - A.diagonal().diag()", "return A.tril(-1)")]),
        Mutant("channels", "the product ran over keys instead of channels, and was cut to size",
               [("A = k @ k.T", "B = k.T @ k\n    A = torch.zeros(len(k), len(k), dtype=k.dtype)\n    m = min(len(k), len(B))\n    A[:m, :m] = B[:m, :m]")]),
        Mutant("cosine", "the keys were normalised first", [("A = k @ k.T", "k = k / k.norm(dim=1, keepdim=True)\n    A = k @ k.T")]),
        Mutant("absolute", "the sign of the overlap was lost", [("A = k @ k.T", "A = (k @ k.T).abs()")]),
        Mutant("squared", "the overlaps were squared", [("A = k @ k.T", "A = (k @ k.T) ** 2")]),
        Mutant("divided by K", "the overlaps were divided by the number of channels", [("A = k @ k.T", "A = k @ k.T / k.shape[1]")]),
        Mutant("first channel", "only the first channel was compared", [("A = k @ k.T", "A = k[:, :1] @ k[:, :1].T")]),
        Mutant("distance", "these are distances, not dot products", [("A = k @ k.T", "A = torch.cdist(k, k)")]),
    ],
)  # fmt: skip

# ---- linear_attention and attention_form ----------------------------------------------------------


def sequence(T: int = 6, K: int = 4, V: int = 3, scale: float = 0.6):
    return lambda draw: (draw.unit(T, K), draw.unit(T, K), draw.normal(T, V), scale)


def by_hand(_: Draw) -> tuple:
    return t(1, 2, 1)[:, None], t(1, 1, 2)[:, None], t(3, 5, 1)[:, None], 0.5


def attention_cases(on_paper: str) -> list[Case]:
    return [
        Case("shape", sequence(), shape(), "One answer for each token, on the value axis.", "o has the shape and the dtype of v: torch.empty_like(v)."),
        Case("finite", sequence(), finite(), "Products and sums of finite numbers.", "Is every row of o filled?"),
        Case("hand-worked", by_hand, close(1e-12), "q = (1, 2, 1), k = (1, 1, 2), v = (3, 5, 1), scale 1/2: the sums are 3, 2 * 8 and 10.",
             on_paper, expect=t(1.5, 8, 5)[:, None]),
        Case("algebra", sequence(9, 5, 5), close(1e-10), "Token t reads the pairs 0 to t, its own among them, and no later ones.", "Compare o_0 and o_1 by hand first."),
        Case("K != V", sequence(8, 6, 2), close(1e-10), "Questions live on the key axis, answers on the value axis.", "Mark every axis with T, K or V."),
        Case("one token", sequence(1, 4, 3), close(1e-12), "A single token reads back its own value, times scale q.k.", "Does the loop, or the mask, include the token itself?"),
        Case("inputs unmodified", sequence(), unmodified(), "q, k and v are used again.", "No in-place operation on the arguments."),
        Case("precision", sequence(32, 8, 8), close(1e-5), "fp32 in, fp32 algebra.", "Keep the dtype of the arguments.", dtype=torch.float32),
    ]  # fmt: skip


LINEAR_ATTENTION = Exercise(
    "linear_attention",
    outputs=("o",),
    cases=attention_cases("Follow the memory token by token on paper: 3, 8, 10."),
    mutants=[
        Mutant("read before write", "each token read before its own pair was written",
               [("        S = S + k[t][:, None] * v[t][None, :]\n        o[t] = scale * (S.T @ q[t])", "        o[t] = scale * (S.T @ q[t])\n        S = S + k[t][:, None] * v[t][None, :]")]),
        Mutant("forgets", "the memory was replaced at every token", [("S = S + k[t]", "S = k[t]")]),
        Mutant("no scale", "scale is not used", [("scale * (S.T", "(S.T")]),
        Mutant("scale per token", "the scale was applied to the memory at every token", [("S = S + k[t]", "S = scale * S + k[t]"), ("scale * (S.T", "(S.T")]),
        Mutant("asks with k", "the key was used as the question", [("@ q[t])", "@ k[t])")]),
        Mutant("writes under q", "the query was used as the key", [("k[t][:, None]", "q[t][:, None]")]),
        Mutant("last memory for all", "every token read the memory of the last one", [("return o\n", "return scale * q @ S\n")]),
        Mutant("tail dropped", "the last tokens were left out", [("range(len(q))", "range(len(q) // 4 * 4)"), ("empty_like", "zeros_like")]),
        Mutant("normalised", "the answers were divided by the number of tokens", [("scale * (S.T @ q[t])", "scale * (S.T @ q[t]) / (t + 1)")]),
        Mutant("softmax", "a softmax crept in: linear attention has none", [("return o\n", "A = (scale * q @ k.T).masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -torch.inf)\n    return A.softmax(-1) @ v\n")]),
    ],
)  # fmt: skip

ATTENTION_FORM = Exercise(
    "attention_form",
    outputs=("o",),
    cases=attention_cases("Write the 3 x 3 scores q_t k_j on paper, cross out the later tokens, multiply by v."),
    mutants=[
        Mutant("no mask", "later tokens were read", [("(q @ k.T).tril()", "(q @ k.T)")]),
        Mutant("strict mask", "the token's own pair was masked", [(".tril()", ".tril(-1)")]),
        Mutant("upper half", "the mask kept the later tokens", [(".tril()", ".triu()")]),
        Mutant("no scale", "scale is not used", [("scale * scores", "scores")]),
        Mutant("transposed", "questions and keys are swapped", [("(q @ k.T)", "(k @ q.T)")]),
        Mutant("keys with keys", "keys asked keys", [("(q @ k.T)", "(k @ k.T)")]),
        Mutant("queries with queries", "queries asked queries", [("(q @ k.T)", "(q @ q.T)")]),
        Mutant("softmax", "a softmax crept in: linear attention has none",
               [("scores = (q @ k.T).tril()", "scores = (q @ k.T).masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), -torch.inf).softmax(-1)")]),
        Mutant("averaged", "each row was divided by its number of tokens", [("return scale * scores @ v", "return scale * scores @ v / torch.arange(1, len(q) + 1)[:, None]")]),
        Mutant("absolute", "the sign of the scores was lost", [("(q @ k.T).tril()", "(q @ k.T).abs().tril()")]),
    ],
)  # fmt: skip

# ---- break_even -----------------------------------------------------------------------------------


def sizes(K: int, V: int):
    return lambda draw: (K, V)


BREAK_EVEN = Exercise(
    "break_even",
    outputs=("T",),
    cases=[
        Case("shape", sizes(4, 4), shape(), "A number of tokens is a whole number.", "Use //, not /."),
        Case("hand-worked", sizes(4, 4), close(0), "2 tokens are 16 numbers, exactly the memory's size; 3 are larger.", "Larger, not equal.", expect=3),
        Case("K = V = 128", sizes(128, 128), close(0), "128 * 128 / 256 = 64, so 65 is the first that is larger.", "What does one token add to the list?", expect=65),
        Case("K != V", sizes(64, 256), close(0), "One token adds K + V numbers.", "64 * 256 / 320 = 51.2: the first whole number above."),
        Case("any sizes", lambda draw: (draw.integer(2, 300), draw.integer(2, 300)), close(0), "The smallest T with T (K + V) > K V.", "Try the T before yours: is its list still no larger?"),
    ],
    mutants=[
        Mutant("rounded down", "at that T the list is not larger yet", [(" + 1", "")]),
        Mutant("rounded up", "where the sizes are equal, the list is not larger", [("K * V // (K + V) + 1", "-(-K * V // (K + V))")]),
        Mutant("keys only", "the list keeps values too", [("(K + V)", "K")]),
        Mutant("values only", "the list keeps keys too", [("(K + V)", "V")]),
        Mutant("sum", "the memory has K times V numbers, not their sum", [("K * V //", "(K + V) * 2 //")]),
        Mutant("both doubled", "each token keeps one key and one value, not two", [("(K + V)", "(2 * (K + V))")]),
        Mutant("K squared", "the memory has K rows and V columns", [("K * V //", "K * K //")]),
        Mutant("half", "the result is twice too small", [("K * V // (K + V) + 1", "(K * V // (K + V) + 1) // 2")]),
        Mutant("V squared", "the memory has K rows and V columns, not V rows", [("K * V //", "V * V //")]),
        Mutant("two too many", "one T earlier the list is larger already", [(" + 1", " + 2")]),
    ],
)  # fmt: skip

EXERCISES = [WRITE_PAIR, CROSSTALK, LINEAR_ATTENTION, ATTENTION_FORM, BREAK_EVEN]
