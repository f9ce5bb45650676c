"""Cases and wrong versions of `ex11_tensor_cores`: fragments, products, the inverse, a chunk."""

import torch
from torch import Tensor

from kda_lab.grading.spec import (
    Case,
    Draw,
    Exercise,
    InOut,
    Launch,
    Mutant,
    Out,
    close,
    finite,
    shape,
)

FP32 = torch.float32
K = 128


def numbered(columns: int) -> Tensor:
    """`[16, columns]`: 0, 1, 2, ... row by row, as far as bf16 counts exactly; then again from 0."""
    return (torch.arange(16 * columns) % 256).reshape(16, columns).bfloat16()


def lane_rows(x: Tensor) -> Tensor:
    """`[32,8]`: what the lanes hold of a [16,16] A operand, by the manual's table."""
    held = torch.empty(32, 8)
    for lane in range(32):
        g, t = divmod(lane, 4)
        places = [
            (g + 8 * down, 2 * t + 8 * right + i)
            for right in (0, 1)
            for down in (0, 1)
            for i in (0, 1)
        ]
        held[lane] = torch.stack([x[p].float() for p in places])
    return held


A_FRAGMENT = Exercise(
    "a_fragment",
    outputs=("held",),
    launch=lambda x, column: Launch("try_a_fragment", 1, 32, (x, Out(32, 8), x.shape[1], column)),
    cases=[
        Case("shape", lambda draw: (numbered(16), 0), finite(), "Every lane fills four registers of two numbers.", "Registers a[0] to a[3], each with pack_bf16.", dtype=FP32),
        Case("hand-worked", lambda draw: (numbered(16), 0), close(0), "Element 16 r + c is row r, column c.", "Lane 7 is g = 1, t = 3: it starts with 16 + 6 and 16 + 7.", expect=lane_rows(numbered(16)), dtype=FP32),
        Case("second tile", lambda draw: (numbered(32), 16), close(0), "The operand starts at `column`.", "Where does row 0 of the part begin?", expect=lane_rows(numbered(32)[:, 16:]), dtype=FP32),
        Case("wide rows", lambda draw: (draw.normal(16, 128).bfloat16(), 16 * draw.integer(1, 7)), close(0), "Rows lie `columns` elements apart, however few of them are used.", "A row's start is row * columns.", dtype=FP32),
    ],
    mutants=[
        Mutant("registers swapped", "registers 1 and 2 are swapped: the second lies eight rows down", [("(r % 2)", "(r / 2)"), ("8 * (r / 2);", "8 * (r % 2);")]),
        Mutant("single columns", "a lane's columns start at t: each lane has two, so 2 t", [("2 * t", "t")]),
        Mutant("lanes down first", "lanes were counted down the rows first: four neighbouring lanes share a row", [("g = lane / 4, t = lane % 4", "g = lane % 8, t = lane / 8")]),
        Mutant("next row", "the second row is the next one: it is eight further down", [("g + 8 * (r % 2)", "2 * g + (r % 2)")]),
        Mutant("transposed", "row and column changed places", [("(g + 8 * (r % 2)) * columns + column + 2 * t + 8 * (r / 2)", "(2 * t + 8 * (r / 2)) * columns + column + g + 8 * (r % 2)"), ("from[0], from[1]", "from[0], from[columns]")]),
        Mutant("four columns each", "a lane's four columns were taken side by side: the second pair lies eight columns to the right", [("2 * t + 8 * (r / 2)", "4 * t + 2 * (r / 2)")]),
        Mutant("halves swapped", "the two halves of a register are swapped: the left neighbour is the low one", [("from[0], from[1]", "from[1], from[0]")]),
        Mutant("first tile always", "the part always starts at column 0", [(" + column + ", " + ")]),
        Mutant("rows of 16", "rows were taken to be 16 apart", [(" * columns +", " * 16 +")]),
        Mutant("one row", "all registers came from row g", [("8 * (r % 2)", "0 * r")]),
    ],
)  # fmt: skip


def product_inputs(draw: Draw, channels: int = 128, c: float = 1.0) -> tuple:
    return (
        draw.normal(16, channels).bfloat16(),
        draw.normal(16, channels).bfloat16(),
        c * draw.normal(16, 16),
    )


def counted(draw: Draw) -> tuple:
    """Whole numbers: every sum is exact."""
    a = (torch.arange(256) % 7 - 3).reshape(16, 16).bfloat16()
    b = (torch.arange(256) % 5 - 2).reshape(16, 16).bfloat16()
    return a, b, torch.zeros(16, 16)


A_COUNTED, B_COUNTED, _ = counted(Draw(0))

TILE_PRODUCT = Exercise(
    "tile_product",
    outputs=("c",),
    launch=lambda a, b, c: Launch("try_tile_product", 1, 32, (a, b, InOut(c), a.shape[1])),
    cases=[
        Case("shape", lambda draw: product_inputs(draw, 16), shape(), "Two accumulators of four numbers a lane.", "Write into c, nothing else.", dtype=FP32),
        Case("identity", lambda draw: (torch.eye(16).bfloat16(), torch.eye(16).bfloat16(), torch.zeros(16, 16)), close(0), "The identity times itself.", "Where are the ones? Eight columns belong to c[0], eight to c[1].", expect=torch.eye(16), dtype=FP32),
        Case("whole numbers", counted, close(0), "One step of 16 channels, exact in bf16.", "Compare column by column: column j belongs to row j of b.", expect=A_COUNTED.float() @ B_COUNTED.float().mT, dtype=FP32),
        Case("eight steps", lambda draw: product_inputs(draw, 128, 0.0), close(1e-5), "128 channels are eight steps into the same accumulators.", "Does each step read its own 16 channels of a and of b?", dtype=FP32),
        Case("added", lambda draw: product_inputs(draw, 48), close(1e-5), "The product is added to what c holds.", "c goes into mma_m16n8k16 as it comes.", dtype=FP32),
    ],
    mutants=[
        Mutant("first step only", "only the first 16 channels were used", [("step += 16", "step += channels")]),
        Mutant("last step dropped", "the last 16 channels were left out", [("step < channels;", "step + 16 < channels;")]),
        Mutant("same rows of b", "both halves of the columns came from rows 0 to 7 of b", [("(g + 8 * n) * channels", "g * channels")]),
        Mutant("a stays", "a was always read at its first 16 channels", [("channels + step + 2 * t + 8 * (r / 2)", "channels + 2 * t + 8 * (r / 2)")]),
        Mutant("b stays", "b was always read at its first 16 channels", [("channels + step + 2 * t;", "channels + 2 * t;")]),
        Mutant("b side by side", "b's four channels were taken side by side: the second register lies eight further", [("from[8], from[9]", "from[2], from[3]")]),
        Mutant("b not transposed", "the product is a b, not a b^T: b's lane has a row of b", [("b + (g + 8 * n) * channels + step + 2 * t", "b + 2 * t * channels + g + 8 * n"), ("pack_bf16(from[0], from[1]), pack_bf16(from[8], from[9])", "pack_bf16(from[0], from[channels]), pack_bf16(from[8 * channels], from[9 * channels])")]),
        Mutant("registers swapped", "registers 1 and 2 of a are swapped", [("(r % 2)", "(r / 2)"), ("8 * (r / 2);", "8 * (r % 2);")]),
        Mutant("halves exchanged", "the two accumulators were exchanged", [("mma_m16n8k16(c[n]", "mma_m16n8k16(c[1 - n]")]),
        Mutant("started afresh", "each step began with an empty accumulator: only the last is left", [("mma_m16n8k16(c[n]", "c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0; mma_m16n8k16(c[n]")]),
        Mutant("b's registers swapped", "the two registers of b are swapped", [("pack_bf16(from[0], from[1]), pack_bf16(from[8], from[9])", "pack_bf16(from[8], from[9]), pack_bf16(from[0], from[1])")]),
    ],
)  # fmt: skip

ACCUMULATOR_TO_A = Exercise(
    "accumulator_to_a",
    outputs=("held",),
    launch=lambda x: Launch("try_accumulator_to_a", 1, 32, (x, Out(32, 8))),
    cases=[
        Case("shape", lambda draw: (numbered(16).float(),), finite(), "Four registers of two numbers.", "Fill a[0] to a[3].", dtype=FP32),
        Case("hand-worked", lambda draw: (numbered(16).float(),), close(0), "Element 16 r + c is row r, column c; no number changes lane.", "Lane 0 holds 0, 1 and 128, 129 on the left, 8, 9 and 136, 137 on the right.", expect=lane_rows(numbered(16).float()), dtype=FP32),
        Case("rounded", lambda draw: (1.0 + torch.arange(256).reshape(16, 16) / 512,), close(0), "Numbers go to the nearest bf16.", "pack_bf16 rounds; cutting off bits does not.", dtype=FP32),
        Case("any result", lambda draw: (draw.normal(16, 16),), close(0), "The same four lines for any result.", "Compare register by register.", dtype=FP32),
    ],
    mutants=[
        Mutant("left and right", "left and right changed places", [("a[0] = pack_bf16(left[0], left[1])", "a[0] = pack_bf16(right[0], right[1])"), ("a[1] = pack_bf16(left[2], left[3])", "a[1] = pack_bf16(right[2], right[3])"), ("a[2] = pack_bf16(right[0], right[1])", "a[2] = pack_bf16(left[0], left[1])"), ("a[3] = pack_bf16(right[2], right[3])", "a[3] = pack_bf16(left[2], left[3])")]),
        Mutant("registers swapped", "registers 1 and 2 are swapped: the second of A lies eight rows down", [("a[1] =", "a[9 - 7] ="), ("a[2] =", "a[1] =")]),
        Mutant("halves swapped", "the halves of the registers are swapped: the left neighbour is the low one", [("left[0], left[1]", "left[1], left[0]"), ("left[2], left[3]", "left[3], left[2]"), ("right[0], right[1]", "right[1], right[0]"), ("right[2], right[3]", "right[3], right[2]")]),
        Mutant("paired down", "row g was paired with row g + 8: pairs are neighbours in a row", [("left[0], left[1]", "left[0], left[2]"), ("left[2], left[3]", "left[1], left[3]"), ("right[0], right[1]", "right[0], right[2]"), ("right[2], right[3]", "right[1], right[3]")]),
        Mutant("left twice", "the right half of the columns came from left", [("pack_bf16(right[0], right[1])", "a[0]"), ("pack_bf16(right[2], right[3])", "a[1]")]),
        Mutant("cut off", "the lower bits were cut off, not rounded", [("a[0] =", "const auto cut = [](float x) { uint32_t bits; __builtin_memcpy(&bits, &x, 4); bits &= 0xffff0000u; __builtin_memcpy(&x, &bits, 4); return x; };\n  a[0] ="), ("left[0], left[1]", "cut(left[0]), cut(left[1])"), ("left[2], left[3]", "cut(left[2]), cut(left[3])"), ("right[0], right[1]", "cut(right[0]), cut(right[1])"), ("right[2], right[3]", "cut(right[2]), cut(right[3])")]),
        Mutant("one row", "both rows are row g", [("left[2], left[3]", "left[0], left[1]"), ("right[2], right[3]", "right[0], right[1]")]),
        Mutant("left with right", "left was paired with right: a pair is two neighbours of one accumulator", [("left[0], left[1]", "left[0], right[0]"), ("left[2], left[3]", "left[2], right[2]"), ("right[0], right[1]", "left[1], right[1]"), ("right[2], right[3]", "left[3], right[3]")]),
        Mutant("right upside down", "the two rows of right are exchanged", [("right[0], right[1]", "right[2], right[3]"), ("a[3] = pack_bf16(right[2], right[3])", "a[3] = pack_bf16(right[0], right[1])")]),
    ],
)  # fmt: skip


def with_rubbish(low: Tensor, rubbish: float) -> Tensor:
    """L below the diagonal, `rubbish` on it and above."""
    return low.tril(-1) + torch.full((16, 16), rubbish).triu()


def one_step(value: float = 0.5) -> Tensor:
    low = torch.zeros(16, 16)
    low[1, 0] = value
    return low


def repeated(draw: Draw) -> tuple:
    return (torch.full((16, 16), 0.9997).tril(-1),)


def random_low(draw: Draw) -> tuple:
    return (with_rubbish(0.4 * draw.normal(16, 16), 0.0),)


INVERSE16 = Exercise(
    "inverse16",
    outputs=("x",),
    launch=lambda low: Launch("try_inverse16", 1, 32, (low, Out(16, 16))),
    cases=[
        Case("shape", lambda draw: (torch.zeros(16, 16),), finite(), "All 256 elements of x are written, zeros as well.", "A lane writes all 16 rows of its column.", dtype=FP32),
        Case("hand-worked", lambda draw: (one_step(),), close(0), "One entry below the diagonal comes back with its sign changed.", "x[1][0] = -L[1][0] x[0][0].", expect=torch.eye(16) - one_step(), dtype=FP32),
        Case("any L", random_low, close(1e-5), "Every row needs all rows above it, final.", "Which is the first row that is off?", dtype=FP32),
        Case("rubbish above", lambda draw: (with_rubbish(0.4 * draw.normal(16, 16), 7.0),), close(1e-5), "What lies on the diagonal of l and above is not part of L.", "For row i, j runs below i.", dtype=FP32),
        Case("repeated keys", repeated, close(1e-5), "All ones below the diagonal: the inverse is tame, powers of L are not.", "Substitute; do not multiply L with itself.", dtype=FP32),
    ],
    mutants=[
        Mutant("plus", "the sign is wrong: this is the inverse of I - L", [("column[i] -= ", "column[i] += ")]),
        Mutant("no identity", "the right-hand side is empty: column j starts with a 1 in row j", [("i == lane ? 1.f : 0.f", "0.f")]),
        Mutant("transposed", "row and column of x changed places", [("x[i * 16 + lane]", "x[lane * 16 + i]")]),
        Mutant("l transposed", "L was read transposed: its rows are l[i][0], l[i][1], ...", [("l[i * 16 + j]", "l[j * 16 + i]")]),
        Mutant("first order", "this is I - L: rows above must be final before they are used", [("l[i * 16 + j] * column[j]", "l[i * 16 + j] * (j == lane)")]),
        Mutant("neighbour left out", "the row just above was left out", [("j < i;", "j < i - 1;")]),
        Mutant("half the columns", "only eight lanes worked: there are 16 columns", [("if (lane >= 16) return;", "if (lane >= 16) return;\n  if (lane >= 8) { for (int i = 0; i < 16; ++i) x[i * 16 + lane] = i == lane; return; }")]),
        Mutant("blocks", "the two 8 x 8 blocks were inverted on their own", [("int j = 0; j < i;", "int j = i / 8 * 8; j < i;")]),
        Mutant("diagonal used", "the diagonal of l was used: only what lies below it is L", [("x[i * 16 + lane] = column[i]", "column[i] /= 1 + l[i * 16 + i];\n    x[i * 16 + lane] = column[i]")]),
        Mutant("two terms", "the series was cut after L^2", [("column[i] -= l[i * 16 + j] * column[j];", "{\n      column[i] -= l[i * 16 + j] * (j == lane);\n      for (int p = 0; p < j; ++p) column[i] += l[i * 16 + j] * l[j * 16 + p] * (p == lane);\n    }")]),
        Mutant("in 16 bits", "numbers were rounded to bf16 on the way", [("x[i * 16 + lane] = column[i]", "column[i] = __bfloat162float(__float2bfloat16(column[i]));\n    x[i * 16 + lane] = column[i]")]),
    ],
)  # fmt: skip


def chunk_launch(s, v, k_into, q_into, k_out, t, m, decay) -> Launch:
    args = (InOut(s), v, k_into, q_into, k_out, t, m, decay, Out(16, 16))
    return Launch("try_chunk_step", 1, 32, args)


def chunk(draw: Draw, **given: Tensor) -> tuple:
    """A chunk's operands as v2 has them: decayed keys and queries at most 1, T' and M lower triangular."""
    into, out = draw.uniform(0.05, 1, 16, K), draw.uniform(0.05, 1, 16, K)
    x = dict(
        s=draw.normal(16, K),
        v=draw.normal(16, 16),
        k_into=2 * draw.unit(16, K) * into,
        q_into=2 * draw.unit(16, K) * into,
        k_out=2 * draw.unit(16, K) * out,
        t=(torch.eye(16) - 0.3 * draw.normal(16, 16)).tril() * draw.uniform(0.3, 1, 16),
        m=0.5 * draw.normal(16, 16).tril(),
        decay=draw.uniform(0.05, 1, K),
    )
    x |= given
    return tuple(y if n in ("s", "decay") else y.bfloat16() for n, y in x.items())


EMPTY, EYE, ONES = torch.zeros(16, K), torch.eye(16), torch.ones(K)


def whole(rows: int, columns: int, by: int) -> Tensor:
    """Small whole numbers, in no symmetric order."""
    return (torch.arange(rows * columns) * 5 % by - by // 2).reshape(rows, columns).float()


V_WHOLE, KEYS, S_WHOLE = whole(16, 16, 7), whole(16, K, 5), whole(16, K, 3)

CHUNK_STEP = Exercise(
    "chunk_step",
    outputs=("s", "o"),
    launch=chunk_launch,
    cases=[
        Case("shape", chunk, finite(), "All of s and all of o are written.", "o has 16 x 16 elements, 8 from each lane.", dtype=FP32),
        Case("values pass", lambda draw: chunk(draw, s=EMPTY, v=V_WHOLE, k_out=EMPTY, t=EYE, m=EYE), close(0), "Empty memory, T = M = identity: every token reads its own value.", "o is [tokens, values], the accumulators are [values, tokens].", expect=(EMPTY, V_WHOLE), dtype=FP32),
        Case("write", lambda draw: chunk(draw, s=EMPTY, v=V_WHOLE, k_out=KEYS, t=EYE, m=EYE), close(0), "Empty memory, T the identity: S^T becomes V^T K_out, exact in whole numbers.", "The operand's pairs go down the tokens: k_out[token] and k_out[token + 1] at one channel.", expect=(V_WHOLE.mT @ KEYS, V_WHOLE), dtype=FP32),
        Case("read", lambda draw: chunk(draw, s=S_WHOLE, v=0 * EYE, k_into=EMPTY, q_into=KEYS, k_out=EMPTY, t=EYE, m=0 * EYE, decay=0.5 * ONES), close(0), "Nothing is written: o = Q_into S, from the state before it decays; the state halves.", "Pack the state before you multiply it with the decay.", expect=(0.5 * S_WHOLE, KEYS @ S_WHOLE.mT), dtype=FP32),
        Case("erase", lambda draw: chunk(draw, s=S_WHOLE, v=V_WHOLE, k_into=KEYS, q_into=EMPTY, k_out=EMPTY, t=EYE / 64, m=64 * EYE, decay=ONES), close(4e-3), "R = V - K_into S, then U = T R.", "Which sign has the prediction?", expect=(S_WHOLE, V_WHOLE - KEYS @ S_WHOLE.mT), dtype=FP32),
        Case("fp32 state", lambda draw: chunk(draw, s=S_WHOLE + 256.5, k_out=EMPTY, decay=ONES), close(1e-7, only=("s",)), "Nothing decays and nothing is written: the state keeps every bit.", "Round a copy, never s.", dtype=FP32),
        Case("any chunk", chunk, close(3e-3), "All of it at once.", "Compare o first, then s.", dtype=FP32),
        Case("another chunk", chunk, close(3e-3), "All of it at once.", "Compare o first, then s.", dtype=FP32),
    ],
    mutants=[
        Mutant("sign of the erase", "the prediction was added, not subtracted", [("* 16 + row + 8 * (e / 2)]) - r[n][e];", "* 16 + row + 8 * (e / 2)]) + r[n][e];")]),
        Mutant("no erase", "the prediction was left out: U = T V", [("* 16 + row + 8 * (e / 2)]) - r[n][e];", "* 16 + row + 8 * (e / 2)]);")]),
        Mutant("T left out", "T was left out: what is written is R, not U", [("multiply(u[n], a, T + 8 * n * 16, 16)", "for (int e = 0; e < 4; ++e) u[n][e] = r[n][e]")]),
        Mutant("no decay", "the state did not decay", [("s[n][e] *= decay[8 * n + pair + e % 2]", "s[n][e] *= 1")]),
        Mutant("decay after the write", "the chunk's own writes decayed too: decay first, then add", [("for (int e = 0; e < 4; ++e) s[n][e] *= decay[8 * n + pair + e % 2];", ""), ("mma_m16n8k16(s[n], a, fb);", "mma_m16n8k16(s[n], a, fb);\n    for (int e = 0; e < 4; ++e) s[n][e] *= decay[8 * n + pair + e % 2];")]),
        Mutant("read after the decay", "queries read the decayed state: q_into holds the decay already", [("out[2][4] = {};", "out[2][4] = {}, old[K / 8][4];\n  for (int n = 0; n < K / 8; ++n)\n    for (int e = 0; e < 4; ++e) old[n][e] = s[n][e] * decay[8 * n + pair + e % 2];"), ("for (int n = 0; n < 2; ++n) multiply(out[n], a, q_into", "pack(old[2 * step], old[2 * step + 1], a);\n    for (int n = 0; n < 2; ++n) multiply(out[n], a, q_into")]),
        Mutant("decay by row", "the decay was taken by the lane's row: it belongs to a channel, a column of S^T", [("s[n][e] *= decay[8 * n + pair + e % 2]", "s[n][e] *= decay[8 * n + row]")]),
        Mutant("M left out", "the tokens of the chunk do not see each other: M U is missing", [("multiply(out[n], a, M + 8 * n * 16, 16)", "{}")]),
        Mutant("M of R", "M was applied to R, not to U", [("pack(u[0], u[1], a);\n", ""), ("multiply(out[n], a, M + 8 * n * 16, 16);", "multiply(out[n], a, M + 8 * n * 16, 16);\n  pack(u[0], u[1], a);")]),
        Mutant("keys for queries", "the state was read with the keys, not with the queries", [("multiply(out[n], a, q_into", "multiply(out[n], a, k_into")]),
        Mutant("state rounded", "the state itself was rounded to bf16, not a copy of it", [("  for (int step = 0;", "  for (int n = 0; n < K / 8; ++n)\n    for (int e = 0; e < 4; ++e) s[n][e] = __bfloat162float(__float2bfloat16(s[n][e]));\n  for (int step = 0;")]),
        Mutant("o transposed", "o was written transposed: its rows are tokens", [("o[(8 * n + pair + e % 2) * 16 + row + 8 * (e / 2)]", "o[(row + 8 * (e / 2)) * 16 + 8 * n + pair + e % 2]")]),
        Mutant("v transposed", "v was read transposed: its rows are tokens", [("v[(8 * n + pair + e % 2) * 16 + row + 8 * (e / 2)]", "v[(row + 8 * (e / 2)) * 16 + 8 * n + pair + e % 2]")]),
        Mutant("T transposed", "T was read transposed", [("multiply(u[n], a, T + 8 * n * 16, 16)", "{\n    const bf16 *from = T + pair * 16 + 8 * n + row;\n    const uint32_t fb[2] = {pack_bf16(from[0], from[16]), pack_bf16(from[8 * 16], from[9 * 16])};\n    mma_m16n8k16(u[n], a, fb);\n  }")]),
        Mutant("first channels", "only the first 16 channels of the state were read", [("step < K / 16", "step < 1")]),
    ],
)  # fmt: skip

EXERCISES = [A_FRAGMENT, TILE_PRODUCT, ACCUMULATOR_TO_A, INVERSE16, CHUNK_STEP]
