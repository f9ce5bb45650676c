"""Cases and wrong versions of `ex06_inverse`: exponent range, anchors, and two ways to invert."""

import torch
from torch import Tensor

from kda_lab.grading.spec import Case, Draw, Exercise, Mutant, close, finite, shape, unmodified, zeros

FP32_MAX = 3.4028234663852886e38
FP16_MAX = 65504.0


def t(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def upper(x: Tensor) -> Tensor:
    return torch.ones(x.shape, dtype=torch.bool).triu(1)


# ---- largest_chunk --------------------------------------------------------------------------------


def both(*arguments):
    return lambda draw: arguments


LARGEST_CHUNK = Exercise(
    "largest_chunk",
    outputs=("C",),
    cases=[
        Case("shape", both(-5.0, FP32_MAX), shape(), "A number of tokens is a whole number.", "math.floor gives an int."),
        Case("hand-worked", both(-1.0, 100.0), close(0), "e^4 = 54.6 fits under 100, e^5 = 148.4 does not.",
             "Compute exp(C) for C = 3, 4, 5 and compare with 100.", expect=4),
        Case("fp32 at -5", both(-5.0, FP32_MAX), close(0), "e^85 fits into fp32, e^90 does not.", "log of the largest number, divided by 5.", expect=17),
        Case("fp16 at -5", both(-5.0, FP16_MAX), close(0), "fp16 ends at 65504 = e^11.09.", "The same formula: 11.09 / 5.", expect=2),
        Case("any bound", lambda draw: (-draw.integer(2, 40) / 8, FP32_MAX), close(0), "The formula holds for every bound.",
             "Is lower_bound used, and with the right sign?"),
        Case("any format", lambda draw: (-2.0, 10.0 ** draw.integer(3, 300)), close(0), "And for every largest number.", "Is `largest` used?"),
    ],
    mutants=[
        Mutant("rounded up", "the result was rounded up: that C overflows", [("math.floor(", "math.ceil(")]),
        Mutant("rounded", "the result was rounded to the nearest", [("math.floor(math.log(largest) / -lower_bound)", "round(math.log(largest) / -lower_bound + 0.1)")]),
        Mutant("one too few", "the last token that fits was left out", [("-lower_bound)", "-lower_bound) - 1")]),
        Mutant("log2", "log2 was used although g is a natural log", [("math.log(largest)", "math.log2(largest)")]),
        Mutant("log10", "log10 was used although g is a natural log", [("math.log(largest)", "math.log10(largest)")]),
        Mutant("sign", "the sign is wrong: the result is negative", [("largest) / -lower_bound)", "largest) / lower_bound)")]),
        Mutant("bound ignored", "the lower bound was not used", [(" / -lower_bound", "")]),
        Mutant("always 5", "the bound was taken as -5 whatever was passed", [("/ -lower_bound)", "/ 5)")]),
        Mutant("always fp32", "fp32 was assumed whatever was passed", [("math.log(largest)", "math.log(3.4e38)")]),
        Mutant("power of two", "the result was cut to a power of two: that choice comes later",
               [("return math.floor(math.log(largest) / -lower_bound)", "return 2 ** math.floor(math.log2(max(1, math.log(largest) / -lower_bound)))")]),
        Mutant("half range", "only half of the exponent range was used", [("/ -lower_bound", "/ -lower_bound / 2")]),
    ],
)  # fmt: skip

# ---- anchored_overlaps ----------------------------------------------------------------------------


def tokens(C: int, K: int, gate: str = "strong"):
    def make(draw: Draw) -> tuple:
        g = draw.gates(C, K)
        if gate == "bound":
            g = torch.full_like(g, -5.0)
        if gate == "twice":
            g = torch.full_like(g, -10.0)
        if gate == "none":
            g = 0 * g
        return draw.unit(C, K), draw.unit(C, K), g

    return make


ANCHORED = Exercise(
    "anchored_overlaps",
    outputs=("A",),
    cases=[
        Case("shape", tokens(16, 4), shape(), "One overlap for each pair of the 16 tokens.", "(16,K)·(K,16) -> (16,16)."),
        Case("finite", tokens(16, 4), finite(), "Sixteen tokens around the middle never pass e^45.", "Print the largest exponent that you take exp of."),
        Case("mask", tokens(16, 4), zeros(upper, "a later token cannot be read"), "Only j <= i has a meaning: above, exp(G_i - G_j) is above 1.", "tril() at the end."),
        Case("algebra, no gates", tokens(16, 4, "none"), close(1e-10), "Without gates A is the lower part of q k^T.", "Check the two factors with g = 0."),
        Case("algebra, strong gates", tokens(16, 6), close(1e-9), "exp(G_i - a) exp(a - G_j) = exp(G_i - G_j).", "Which sign has the exponent of the key's factor?"),
        Case("every gate at -5, fp32", tokens(16, 8, "bound"), close(2e-5), "With the origin at the middle, exponents stay within 45.",
             "Print the largest exponent that you take exp of.", dtype=torch.float32),
        Case("every gate at -10, fp32", tokens(16, 8, "twice"), close(1e-4),
             "Twice the bound: around the middle exponents reach 80 and still fit; from any other origin they pass 88 and overflow.",
             "Is your origin the middle token, or the first?", dtype=torch.float32),
        Case("inputs unmodified", tokens(16, 4), unmodified(), "q, k and g are used again.", "No in-place operation on them."),
    ],
    mutants=[
        Mutant("no mask", "entries above the diagonal were left", [("(left @ right.T).tril()", "left @ right.T")]),
        Mutant("strict mask", "the diagonal was masked: a token can read itself", [(".tril()", ".tril(-1)")]),
        Mutant("sign", "both factors have the same sign in the exponent", [("(-E).exp()", "E.exp()")]),
        Mutant("no decay", "the gates were not used", [("E = G - G[len(g) // 2 - 1]", "E = 0 * G")]),
        Mutant("q twice", "q was used for the keys too", [("k * (-E)", "q * (-E)")]),
        Mutant("k twice", "k was used for the queries too", [("q * E", "k * E")]),
        Mutant("transposed", "rows and columns are swapped", [("(left @ right.T).tril()", "(left @ right.T).tril().T")]),
        Mutant("no cumsum", "the gates were not summed over the tokens", [("G = g.cumsum(0)", "G = g")]),
        Mutant("exclusive sums", "the sum leaves out each token's own gate", [("G = g.cumsum(0)", "G = g.cumsum(0) - g")]),
        Mutant("base two", "exp2 was used although g is a natural log", [("E.exp()", "E.exp2()"), ("(-E).exp()", "(-E).exp2()")]),
        Mutant("scalar gate", "one decay was used for all key channels", [("G = g.cumsum(0)", "G = g.mean(1, keepdim=True).expand_as(g).cumsum(0)")]),
        Mutant("no anchor", "the origin is the start of the block: exponents reach 80 at -5, and overflow beyond",
               [("E = G - G[len(g) // 2 - 1]", "E = G")]),
        Mutant("first token as origin", "the origin is the block's first token: exponents reach 75 at -5, and overflow beyond",
               [("E = G - G[len(g) // 2 - 1]", "E = G - G[:1]")]),
        Mutant("clamped", "exponents were clamped: a strong decay comes out too weak", [("G = g.cumsum(0)", "G = g.cumsum(0).clamp(min=-20)")]),
    ],
)  # fmt: skip

# ---- forward_substitution and neumann_doubling ----------------------------------------------------


def system(C: int, size: float = 0.6):
    return lambda draw: (size * draw.normal(C, C).tril(-1),)


INVERSE_CASES = [
    Case("shape", system(5), shape(), "T has the shape of L.", "Start from the identity of L's size and dtype."),
    Case("finite", system(5), finite(), "I + L always has an inverse.", "Look for a division or a tensor that was never filled."),
    Case("mask", system(6), zeros(upper, "the inverse of a lower triangular matrix is lower triangular"), "Later rows never reach earlier ones.", "Compare T[0] with the first row of the identity."),
    Case("hand-worked", lambda _: (torch.stack([t(0, 0, 0), t(0.5, 0, 0), t(0.25, 2, 0)]),), close(1e-12),
         "T_10 = -1/2, T_21 = -2, T_20 = -1/4 + 2 * 1/2.", "Write the three rows out on paper.",
         expect=torch.stack([t(1, 0, 0), t(-0.5, 1, 0), t(0.75, -2, 1)])),
    Case("algebra, 16", system(16, 0.3), close(1e-9), "(I + L) T must be the identity.", "Multiply your T by I + L and look at the first wrong row."),
    Case("algebra, 12", system(12, 0.3), close(1e-9), "12 is no power of two.", "Does your loop reach the last row, the last power?"),
    Case("one token", lambda draw: (draw.normal(1, 1) * 0,), close(1e-12), "One token has nobody in its way.", "T is [[1]]."),
    Case("inputs unmodified", system(5), unmodified(), "L is used again.", "Make a new tensor for T and for the powers."),
]  # fmt: skip

FORWARD_SUBSTITUTION = Exercise(
    "forward_substitution",
    outputs=("T",),
    cases=[*INVERSE_CASES,
           Case("repeated keys", lambda draw: (draw.uniform(0.9, 0.99) * torch.ones(16, 16, dtype=draw.dtype).tril(-1),), close(1e-5),
                "Sixteen times the same key: T stays small, and fp32 keeps its digits.", "Use the rows of T that are done, not powers of L.", dtype=torch.float32)],
    mutants=[
        Mutant("first order", "only L itself was subtracted, not its detours", [("L[i, :i] @ T[:i]", "L[i]")]),
        Mutant("plus", "the earlier rows were added instead of subtracted", [("T[i] - L[i", "T[i] + L[i")]),
        Mutant("starts late", "row 1 was skipped", [("range(1, len(L))", "range(2, len(L))")]),
        Mutant("stops early", "the last row was left as the identity", [("range(1, len(L))", "range(1, len(L) - 1)")]),
        Mutant("first row only", "each row subtracted the first row alone", [("L[i, :i] @ T[:i]", "L[i, :1] @ T[:1]")]),
        Mutant("neighbour only", "each row subtracted only the row before it", [("L[i, :i] @ T[:i]", "L[i, i - 1 : i] @ T[i - 1 : i]")]),
        Mutant("L instead of T", "the sum ran over rows of L instead of rows of T", [("@ T[:i]", "@ (-L[:i])")]),
        Mutant("transposed", "columns of L were used instead of rows", [("L[i, :i]", "L.T[i, :i]")]),
        Mutant("minus the identity", "the identity was left out of the result", [("return T\n", "return T - torch.eye(len(L), dtype=L.dtype)\n")]),
        Mutant("lower precision", "the sums were made in half precision", [("L[i, :i] @ T[:i]", "(L[i, :i].bfloat16() @ T[:i].bfloat16()).to(T.dtype)")]),
        Mutant("in place", "L was changed in place", [("return T\n", "L += torch.eye(len(L), dtype=L.dtype)\n    return T\n")]),
    ],
)  # fmt: skip

NEUMANN_DOUBLING = Exercise(
    "neumann_doubling",
    outputs=("T",),
    cases=[*INVERSE_CASES,
           Case("algebra, 32", system(32, 0.8), close(1e-9), "32 tokens need one round more than 16.", "Let the loop run until the terms reach len(L)."),
           Case("precision", system(16, 0.15), close(1e-5), "On harmless overlaps fp32 keeps its digits.", "Keep the dtype of L.", dtype=torch.float32)],
    mutants=[
        Mutant("one factor", "only the first factor I - L was used", [("while terms < len(L):", "while False:")]),
        Mutant("one round short", "the last round is missing", [("terms < len(L)", "2 * terms < len(L)")]),
        Mutant("always three rounds", "three rounds were made whatever C is", [("while terms < len(L):", "for _ in range(3):")]),
        Mutant("wrong first sign", "the first factor was I + L", [("eye - L, L", "eye + L, L")]),
        Mutant("minus in the rounds", "the later factors were I - P: squares are positive", [("T + T @ P", "T - T @ P")]),
        Mutant("cubes", "P was multiplied by L instead of squared", [("P = P @ P", "P = P @ L")]),
        Mutant("elementwise", "P was squared entry by entry: it must be a matrix product", [("P = P @ P", "P = P * P")]),
        Mutant("powers added", "the powers were added instead of multiplied in", [("T + T @ P", "T + P")]),
        Mutant("product only", "the identity is missing in the factor I + P", [("T = T + T @ P", "T = T @ P")]),
        Mutant("square after", "P was squared after it was used", [("P = P @ P\n        T = T + T @ P", "T = T + T @ P\n        P = P @ P")]),
        Mutant("transposed", "L was transposed", [("T, P, terms = eye - L, L, 2", "T, P, terms = eye - L.T, L.T, 2")]),
        Mutant("lower precision", "the products were rounded to half precision", [("P = P @ P", "P = (P @ P).bfloat16().to(L.dtype)")]),
        Mutant("in place", "L was changed in place", [("P = P @ P", "P.copy_(P @ P)")]),
    ],
)  # fmt: skip

# ---- rebased_overlaps -----------------------------------------------------------------------------

REBASED = Exercise(
    "rebased_overlaps",
    outputs=("A",),
    cases=[
        Case("shape", tokens(32, 4), shape(), "One overlap for each pair of tokens.", "Fill a [C,C] tensor of zeros block by block."),
        Case("finite", tokens(32, 4), finite(), "No exponent passes 45 when the origins are right.", "Print the largest exponent that you take exp of."),
        Case("mask", tokens(32, 4), zeros(upper, "a later token cannot be read"), "Blocks above the diagonal stay 0, and tril inside the diagonal blocks.", "Which blocks do you fill?"),
        Case("one block", tokens(16, 5), close(1e-9), "One block is the exercise before.", "Start with anchored_overlaps."),
        Case("no gates", tokens(48, 4, "none"), close(1e-10), "Without gates A is the lower part of q k^T.", "Which rows and columns does each product fill?"),
        Case("strong gates", tokens(64, 6), close(1e-9), "Between blocks: exp(G_i - edge) exp(edge - G_j).", "Compare with the [C,C,K] array in fp64, block by block."),
        Case("every gate at -5, fp32", tokens(64, 8, "bound"), close(2e-5), "Both factors are at most 1 between blocks, and within e^45 inside.",
             "Where does exp get a positive exponent above 45?", dtype=torch.float32),
        Case("every gate at -10, fp32", tokens(48, 8, "twice"), close(1e-4),
             "Twice the bound: around the middle of a block exponents reach 80 and still fit; from its start they overflow.",
             "Is the origin inside a block its middle token?", dtype=torch.float32),
        Case("inputs unmodified", tokens(32, 4), unmodified(), "q, k and g are used again.", "No in-place operation on them."),
    ],
    mutants=[
        Mutant("diagonal blocks only", "blocks below the diagonal were left at 0", [("if a > 0:", "if False:")]),
        Mutant("neighbour block only", "only the block next to the diagonal was filled", [("A[rows, :a] =", "A[rows, a - 16 : a] ="), ("(k[:a] * (edge - G[:a]).exp())", "(k[a - 16 : a] * (edge - G[a - 16 : a]).exp())")]),
        Mutant("no mask", "the diagonal blocks were not masked", [(".T).tril()", ".T)")]),
        Mutant("strict mask", "the diagonal was masked: a token can read itself", [(".tril()", ".tril(-1)")]),
        Mutant("edge one late", "the edge includes the block's first token on one side only", [("(edge - G[:a]).exp()", "(G[a] - G[:a]).exp()")]),
        Mutant("query not decayed", "the queries of later blocks did not decay from the edge", [("(q[rows] * (G[rows] - edge).exp())", "q[rows]")]),
        Mutant("key not decayed", "the earlier keys did not decay to the edge", [("(k[:a] * (edge - G[:a]).exp())", "k[:a]")]),
        Mutant("q and k swapped", "queries and keys are swapped between blocks", [("(q[rows] * (G[rows] - edge).exp()) @ (k[:a]", "(k[rows] * (G[rows] - edge).exp()) @ (q[:a]")]),
        Mutant("sums restart", "the gates were summed from each block's start only", [("G = g.cumsum(0)", "G = g.unflatten(0, (-1, 16)).cumsum(1).flatten(0, 1)")]),
        Mutant("block start as origin", "inside a block the origin is its start, not its middle: exponents reach 75 at -5, and overflow beyond",
               [("E = G[rows] - G[a + 7]", "E = G[rows] - G[a]")]),
        Mutant("one origin", "one origin was used for the whole chunk: it overflows at -5",
               [("(q[rows] * (G[rows] - edge).exp()) @ (k[:a] * (edge - G[:a]).exp()).T", "(q[rows] * G[rows].exp()) @ (k[:a] * (-G[:a]).exp()).T")]),
        Mutant("clamped", "exponents were clamped instead of re-based: strong decays come out too weak", [("G = g.cumsum(0)", "G = g.cumsum(0).clamp(min=-20)")]),
        Mutant("scalar gate", "one decay was used for all key channels", [("G = g.cumsum(0)", "G = g.mean(1, keepdim=True).expand_as(g).cumsum(0)")]),
    ],
)  # fmt: skip

EXERCISES = [LARGEST_CHUNK, ANCHORED, FORWARD_SUBSTITUTION, NEUMANN_DOUBLING, REBASED]
