"""Cases and wrong versions of `ex10_first_kernels`: indices, shuffles, a barrier, the whole recurrence."""

import math

import torch

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
    unmodified,
)

FP32 = torch.float32


def f(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=FP32)


# ---- exp_gates ------------------------------------------------------------------------------------


def log_gates(n: int, blocks: int, threads: int):
    """n log decays of moderate size for a grid of `blocks` x `threads`."""
    return lambda draw: (draw.uniform(-3, 0, n), blocks, threads)


ITS_INDEX = "const int first = blockIdx.x * blockDim.x + threadIdx.x;"
STRIDE = "const int stride = gridDim.x * blockDim.x;"

EXP_GATES = Exercise(
    "exp_gates",
    outputs=("d",),
    launch=lambda g, blocks, threads: Launch("exp_gates", blocks, threads, (g, Out(len(g)), len(g))),
    cases=[
        Case("hand-worked", lambda draw: (f(0, -1, -2), 1, 3), close(1e-6), "exp(0), exp(-1), exp(-2).", "Is d written at all, and with exp(g)?",
             expect=f(0, -1, -2).exp(), dtype=FP32),
        Case("several blocks", log_gates(12, 3, 4), close(1e-6), "Thread 1 of block 2 is the tenth of the grid.",
             "blockIdx.x counts blocks, blockDim.x is how many threads each has.", dtype=FP32),
        Case("more threads than elements", log_gates(5, 2, 4), close(1e-6), "The last three threads have no element.",
             "Which condition keeps i inside [0, n)?", dtype=FP32),
        Case("fewer threads than elements", log_gates(29, 2, 4), close(1e-6), "Eight threads fill 29 elements: each goes on.",
             "After element i a thread's next one is a whole grid further.", dtype=FP32),
        Case("one thread", log_gates(7, 1, 1), close(1e-6), "Any grid will do, even this one.", "Is there a number in your code that should be gridDim or blockDim?", dtype=FP32),
        Case("inputs unmodified", log_gates(29, 2, 4), unmodified(), "g may be wanted again.", "Write to d alone.", dtype=FP32),
    ],
    mutants=[
        Mutant("thread alone", "the block's number was left out of the index: every block does the same elements",
               [(ITS_INDEX, "const int first = threadIdx.x;")]),
        Mutant("grid for block", "blockIdx.x was multiplied by gridDim.x: it must be the threads of a block",
               [("first = blockIdx.x * blockDim.x", "first = blockIdx.x * gridDim.x")]),
        Mutant("no guard", "there is no guard: threads beyond n go on", [("i < n; i += stride", "i < n + stride; i += stride")],
               also=[[("for (int i = first; i < n; i += stride) d[i]", "const int i = first; d[i]")]]),
        Mutant("guard off by one", "the guard lets i = n pass", [("i < n", "i <= n")]),
        Mutant("no loop", "each thread does one element and stops", [("for (int i = first; i < n; i += stride)", "const int i = first; if (i < n)")]),
        Mutant("stride of a block", "the stride is one block, not the whole grid: elements are done twice", [("gridDim.x * blockDim.x", "blockDim.x")]),
        Mutant("stride of the blocks", "the stride is the number of blocks: threads are missing in it", [("gridDim.x * blockDim.x", "gridDim.x")]),
        Mutant("last element dropped", "the last element was left out", [("i < n", "i < n - 1")]),
        Mutant("whole strides alone", "only full turns of the grid were done: the tail is missing", [("i < n", "i < n / stride * stride")]),
        Mutant("no exponential", "d is g itself: the exponential is missing", [("expf(g[i])", "g[i]")]),
        Mutant("base two", "exp2f was taken: the gates are natural logarithms", [("expf(", "exp2f(")]),
        Mutant("first element skipped", "counting began at 1", [("+ threadIdx.x;", "+ threadIdx.x + 1;")]),
    ],
)  # fmt: skip

# ---- row_offset -----------------------------------------------------------------------------------


def some_rows(T: int, H: int, K: int, B: int, n: int = 20):
    """n random rows of [B,T,H,K], first and last among them."""

    def make(draw: Draw) -> tuple:
        ends = [(0, 0, 0), (B - 1, T - 1, H - 1)]
        inner = [(draw.integer(0, B - 1), draw.integer(0, T - 1), draw.integer(0, H - 1)) for _ in range(n - 2)]
        b, t, h = (torch.tensor(x, dtype=torch.int32) for x in zip(*ends, *inner, strict=True))
        return b, t, h, T, H, K

    return make


def one_row(b: int, t: int, h: int, T: int, H: int, K: int):
    return lambda draw: (*(torch.tensor([x], dtype=torch.int32) for x in (b, t, h)), T, H, K)


def ask_rows(b, t, h, T, H, K) -> Launch:
    return Launch("rows", 1, 32, (b, t, h, T, H, K, Out(len(b), dtype=torch.int64), len(b)))


FOLD = "((int64_t(b) * T + t) * H + h) * K"

ROW_OFFSET = Exercise(
    "row_offset",
    outputs=("offset",),
    launch=ask_rows,
    cases=[
        Case("hand-worked", one_row(1, 0, 2, 5, 3, 4), close(0), "((1 * 5 + 0) * 3 + 2) * 4 = 68.", "How many rows lie before (1, 0, 2)?",
             expect=torch.tensor([68])),
        Case("one head", some_rows(7, 1, 4, 1), close(0), "With one head, token t begins at t K.", "Put h = 0, H = 1, b = 0 into your formula."),
        Case("heads", some_rows(6, 3, 4, 1), close(0), "Heads of one token are neighbours; tokens are H K apart.", "Which comes first in [B,T,H,K], T or H?"),
        Case("batches", some_rows(5, 3, 2, 4), close(0), "Batch entries are T H K apart.", "Put t = 0 and h = 0: is b T H K left?"),
        Case("beyond 2^31", some_rows(65536, 96, 128, 6), close(0), "65,536 tokens of 96 heads of 128: the third batch entry lies beyond an int.",
             "The product must be 64 bits wide before it is large: cast the first factor."),
        Case("rows beyond 2^31", some_rows(1 << 20, 1 << 10, 1, 6), close(0), "With K = 1, as in beta [B,T,H], the number of the row itself outgrows an int.",
             "Is b already 64 bits wide when it meets T?"),
    ],
    mutants=[
        Mutant("32 bits", "the offset was computed in 32 bits and wrapped", [("int64_t(b)", "b")],
               also=[[(FOLD, "int64_t(((b * T + t) * H + h) * K)")], [(FOLD, "b * T * H * K + t * H * K + h * K")]]),
        Mutant("cast too late", "the cast came after the row's number, which had wrapped by then", [(FOLD, "int64_t((b * T + t) * H + h) * K")]),
        Mutant("unsigned 32 bits", "unsigned 32 bits wrap too, and silently", [(FOLD, "((unsigned(b) * T + t) * H + h) * K")]),
        Mutant("through float", "a float keeps 24 bits: large offsets were rounded", [(FOLD, "int64_t(((float(b) * T + t) * H + h) * K)")]),
        Mutant("heads before tokens", "the offset is that of [B,H,T,K]: heads and tokens are exchanged", [(FOLD, "((int64_t(b) * H + h) * T + t) * K")]),
        Mutant("row number", "this is the number of the row, not of its first element: times K", [(FOLD, "(int64_t(b) * T + t) * H + h")]),
        Mutant("no batch", "the batch entry was left out", [(FOLD, "(int64_t(t) * H + h) * K")]),
        Mutant("no head", "the head was left out", [("+ h)", ")")]),
        Mutant("sizes exchanged", "T and H stand in each other's place", [(FOLD, "((int64_t(b) * H + t) * T + h) * K")]),
        Mutant("tokens of one head", "tokens were taken to be K apart: H heads lie between", [(FOLD, "(int64_t(b) * T * H + t + h) * K")]),
        Mutant("K added", "K was added instead of multiplied", [("+ h) * K", "+ h) + K")]),
        Mutant("head outside", "the head was added after the product with K: heads are K apart", [(FOLD, "(int64_t(b) * T + t) * H * K + h")]),
        Mutant("counting from one", "rows were counted from 1", [("+ h)", "+ h + 1)")]),
    ],
)  # fmt: skip

# ---- warp_sum -------------------------------------------------------------------------------------


def lanes(warps: int = 1):
    return lambda draw: (draw.normal(32 * warps), 32 * warps)


LOOP = "for (int bit = 16; bit > 0; bit /= 2) value += __shfl_xor_sync(0xffffffff, value, bit);"

WARP_SUM = Exercise(
    "warp_sum",
    outputs=("sum",),
    launch=lambda x, threads: Launch("warp_sums", len(x) // threads, threads, (x, Out(len(x)))),
    cases=[
        Case("hand-worked", lambda draw: (torch.arange(1, 33, dtype=FP32), 32), close(1e-6), "1 + 2 + ... + 32 = 528, in every lane.",
             "Print value in each turn for lane 0 and lane 1 (printf works).", expect=torch.full((32,), 528.0), dtype=FP32),
        Case("one lane", lambda draw: (torch.eye(32)[draw.integer(0, 31)].contiguous(), 32), close(1e-6), "One lane holds 1: all must hear of it.",
             "Follow the 1: after which exchange does it reach which lanes?", dtype=FP32),
        Case("any numbers", lanes(), close(1e-5), "Sums of normal numbers, positive and negative.", "Is each lane's number in each sum exactly once?", dtype=FP32),
        Case("three warps", lanes(3), close(1e-5), "Warps do not meet in a shuffle: three sums.", "lane numbers run from 0 to 31 within each warp.", dtype=FP32),
    ],
    mutants=[
        Mutant("lane 0 alone", "only lane 0 holds the whole sum: after shuffles down the others have parts",
               [("__shfl_xor_sync", "__shfl_down_sync")]),
        Mutant("lane 31 alone", "only lane 31 holds the whole sum: after shuffles up the others have parts", [("__shfl_xor_sync", "__shfl_up_sync")]),
        Mutant("half a warp", "only 16 lanes were added: the exchange with bit 16 is missing", [("bit = 16", "bit = 8")]),
        Mutant("neighbours missing", "the last exchange, with bit 1, is missing", [("bit > 0", "bit > 1")]),
        Mutant("twice", "one turn too many: a lane that names itself adds itself", [("bit = 16", "bit = 32")]),
        Mutant("always the same bit", "the same lanes were exchanged in every turn", [("value, bit)", "value, 1)")]),
        Mutant("not added", "the other lane's number replaced this one's: it must be added", [("value += __shfl", "value = __shfl")]),
        Mutant("half the lanes named", "the mask names 16 lanes, and 32 come", [("0xffffffff", "0xffff")]),
        Mutant("one lane's number", "every lane got lane 0's number, not the sum", [(LOOP, "value = __shfl_sync(0xffffffff, value, 0);")]),
        Mutant("half takes part", "lanes that skip a shuffle leave the others waiting", [("value += __shfl", "if (threadIdx.x % 32 < 16) value += __shfl")]),
        Mutant("largest", "this is the largest number, not the sum", [("value += __shfl_xor_sync(0xffffffff, value, bit)", "value = max(value, __shfl_xor_sync(0xffffffff, value, bit))")]),
        Mutant("no exchange", "each lane kept its own number", [(LOOP, "")]),
        Mutant("multiples of three", "bits were counted down by one: 16, 15, 14, ... are not five different bits", [("bit /= 2", "bit -= 3")]),
    ],
)  # fmt: skip

# ---- token_step -----------------------------------------------------------------------------------


def token(K: int, V: int, threads: int):
    """Arguments of token_step, fp32, strong gates, and the block's size."""
    return lambda draw: (
        draw.normal(K, V), draw.unit(K), draw.unit(K), draw.normal(V), draw.gates(K), draw.uniform(0.2, 0.9).item(), 0.5, threads,
    )  # fmt: skip


def launch_token(S, q, k, v, g, beta, scale, threads) -> Launch:
    K, V = S.shape
    return Launch("token_step", 1, threads, (InOut(S), q, k, v, g, beta, scale, Out(V), K, V))


ONE_TOKEN = (f(4).view(1, 1), f(1), f(1), f(6), f(math.log(0.5)), 0.5, 0.5)
DECAY = "    S[c * V + x] *= d_s[c];\n"
GUARD = "  if (x >= V) return;\n"
BARRIER = "  __syncthreads();\n"

TOKEN_STEP = Exercise(
    "token_step",
    outputs=("S", "o"),
    launch=launch_token,
    cases=[
        Case("finite", token(4, 4, 4), finite(), "Shared memory starts as NaN here: what nobody loaded stays NaN.",
             "Does some thread load each of the K channels of q, k and g?", dtype=FP32),
        Case("hand-worked", lambda draw: (*ONE_TOKEN, 1), close(1e-6), "4 decays to 2, is told 6, and learns half of the 4 missing: 4 again, and o is half of it.",
             "Follow one number through your lines on paper.", expect=(f(4).view(1, 1), f(2)), dtype=FP32),
        Case("one thread per column", token(8, 8, 8), close(2e-6), "Decay, erase, write, read, in this order, with strong gates.",
             "Compare line by line with kda_step of exercise 04.", dtype=FP32),
        Case("K != V", token(5, 8, 8), close(2e-6), "S is [K,V]: element (c, x) lies at c * V + x.", "Which of K and V is the length of a row?", dtype=FP32),
        Case("more threads than columns", token(8, 5, 32), close(2e-6), "Threads 5 to 31 have no column.", "What must such a thread still do, and what not?", dtype=FP32),
        Case("more channels than threads", token(70, 6, 32), close(2e-6), "32 threads load 70 channels.", "Load with a loop of stride blockDim.x.", dtype=FP32),
        Case("inputs unmodified", token(8, 5, 32), unmodified(), "Only S and o change.", "q, k, v and g are const.", dtype=FP32),
    ],
    mutants=[
        Mutant("no barrier", "the barrier is missing: a thread reads what another has not written yet", [(BARRIER, "")],
               also=[[(BARRIER, "  __syncwarp();\n")]]),
        Mutant("return before the barrier", "a thread without a column returned before the barrier", [(GUARD, ""), ("  for (int c = x; c < K", GUARD + "  for (int c = x; c < K")]),
        Mutant("no guard", "threads beyond V work on columns that do not exist", [(GUARD, "")]),
        Mutant("one channel each", "each thread loads one channel: with K above the block some are never loaded", [("for (int c = x; c < K; c += blockDim.x) {", "if (int c = x; c < K) {")]),
        Mutant("rows of K", "the rows of S were taken as K long: they are V long",
               [(DECAY + "    read += k_s[c] * S[c * V + x];\n", "    S[c * K + x] *= d_s[c];\n    read += k_s[c] * S[c * K + x];\n"),
                ("    S[c * V + x] += k_s[c] * u;\n    sum += q_s[c] * S[c * V + x];\n", "    S[c * K + x] += k_s[c] * u;\n    sum += q_s[c] * S[c * K + x];\n")]),
        Mutant("transposed", "thread x worked on row x: it owns column x",
               [(DECAY + "    read += k_s[c] * S[c * V + x];\n", "    S[x * K + c] *= d_s[c];\n    read += k_s[c] * S[x * K + c];\n"),
                ("    S[c * V + x] += k_s[c] * u;\n    sum += q_s[c] * S[c * V + x];\n", "    S[x * K + c] += k_s[c] * u;\n    sum += q_s[c] * S[x * K + c];\n")]),
        Mutant("undecayed prediction", "the prediction was read before the decay",
               [(DECAY + "    read += k_s[c] * S[c * V + x];\n", "    read += k_s[c] * S[c * V + x];\n" + DECAY)]),
        Mutant("decay after the write", "the memory decayed after the write",
               [(DECAY, ""), ("    S[c * V + x] += k_s[c] * u;\n", "    S[c * V + x] = d_s[c] * (S[c * V + x] + k_s[c] * u);\n")]),
        Mutant("log gate", "g was used as the decay itself: it is a logarithm", [("expf(g[c])", "g[c]")]),
        Mutant("no erase", "nothing is erased: u must be beta (v - S^T k)", [("(v[x] - read)", "v[x]")]),
        Mutant("no beta", "beta is not used", [("beta * (v[x] - read)", "v[x] - read")]),
        Mutant("beta on the write only", "beta weighs the value but not what is erased", [("beta * (v[x] - read)", "beta * v[x] - read")]),
        Mutant("no scale", "scale is not used", [("scale * sum", "sum")]),
        Mutant("read before the write", "o was read before the write",
               [("    S[c * V + x] += k_s[c] * u;\n    sum += q_s[c] * S[c * V + x];\n", "    sum += q_s[c] * S[c * V + x];\n    S[c * V + x] += k_s[c] * u;\n")]),
        Mutant("first channel only for q", "o was read with k instead of q", [("sum += q_s[c]", "sum += k_s[c]")]),
    ],
)  # fmt: skip

# ---- kda_naive ------------------------------------------------------------------------------------


def sequence(B=2, T=7, H=2, HV=4, K=5, V=3, threads=32, state=True):
    """Arguments of kda_naive, fp32: strong gates, unit queries and keys, and the block's size."""

    def make(draw: Draw) -> tuple:
        S0 = draw.normal(B, HV, K, V) if state else torch.zeros(B, HV, K, V)
        return (
            draw.unit(B, T, H, K), draw.unit(B, T, H, K), draw.normal(B, T, HV, V), draw.gates(B, T, HV, K),
            draw.uniform(0.2, 0.9, B, T, HV), S0, 0.5, threads,
        )  # fmt: skip

    return make


def launch_sequence(q, k, v, g, beta, S0, scale, threads) -> Launch:
    (B, T, H, K), (HV, V) = q.shape, v.shape[2:]
    args = (q, k, v, g, beta, S0, scale, Out(B, T, HV, V), Out(B, HV, K, V), T, H, HV, K, V)
    return Launch("kda_naive", B * HV, threads, args, shared=4 * (K * threads + 3 * K))


TWO_TOKENS = (
    torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1, 1), f(4, 6).view(1, 2, 1, 1), f(math.log(0.5)).expand(1, 2, 1, 1).contiguous(),
    f(1, 0.5).view(1, 2, 1), torch.zeros(1, 1, 1, 1), 0.5, 1,
)  # fmt: skip
FIRST_BARRIER = "    __syncthreads();  // the last token's vectors have been read\n"
SECOND_BARRIER = "    __syncthreads();  // this token's vectors are there\n"
HEAD = "hv / (HV / H);"
S_DECAY = "        S[c * columns + x] *= d_s[c];\n"
S_READ = "        read += k_s[c] * S[c * columns + x];\n"
S_WRITE = "        S[c * columns + x] += k_s[c] * u;\n"
S_OUT = "        sum += q_s[c] * S[c * columns + x];\n"
LAST = "final_state[state + c * V + x] = S"
START = "initial_state[state + c * V + x]"

KDA_NAIVE = Exercise(
    "kda_naive",
    outputs=("o", "final_state"),
    launch=launch_sequence,
    cases=[
        Case("finite", sequence(1, 3, 1, 1, 4, 4, 4), finite(), "o and final_state start as NaN: every element must be written.", "Which rows, columns or tokens does nobody write?", dtype=FP32),
        Case("hand-worked", lambda draw: TWO_TOKENS, close(1e-6), "The first token stores 4. The second halves it to 2, is told 6, and learns half of the 4 missing.",
             "Follow S through two tokens: 4, then 4 again; each o is half of it.", expect=(f(2, 2).view(1, 2, 1, 1), f(4).view(1, 1, 1, 1)), dtype=FP32),
        Case("one token", sequence(1, 1, 1, 1, 8, 8, 8), close(1e-5), "One token is your token_step.", "Does token_step pass? Then compare the two line by line.", dtype=FP32),
        Case("one head, eight warps' worth", sequence(1, 6, 1, 1, 40, 64, 64), close(1e-5), "Two warps share q, k and exp(g) of each token.",
             "Before and after loading: who may still be reading, who may not read yet?", dtype=FP32),
        Case("K != V, idle threads", sequence(1, 5, 1, 1, 6, 3, 32), close(1e-5), "29 threads have no column, but load and meet the barriers.",
             "No return and no barrier inside if (x < V).", dtype=FP32),
        Case("batches and heads", sequence(3, 5, 2, 2, 4, 3, 8), close(1e-5), "Every (b, hv) has its own rows and its own state.",
             "Write each row's begin as in row_offset: with H for q and k, with HV for the others.", dtype=FP32),
        Case("grouped value heads", sequence(2, 4, 2, 6, 4, 3, 8), close(1e-5), "Value heads 0 1 2 share key head 0, and 3 4 5 share key head 1.",
             "HV / H value heads share one key head: which division gives its number?", dtype=FP32),
        Case("inputs unmodified", sequence(), unmodified(), "Only o and final_state change.", "initial_state is const: work on S in shared memory.", dtype=FP32),
    ],
    mutants=[
        Mutant("nobody waits for the readers", "the barrier before the load is missing: the next token's vectors overwrite this one's while others read", [(FIRST_BARRIER, "")]),
        Mutant("nobody waits for the load", "the barrier after the load is missing: vectors are read before they are there", [(SECOND_BARRIER, "")]),
        Mutant("barrier for columns only", "a barrier stands where only threads with a column come by",
               [(SECOND_BARRIER, "    if (x < V) __syncthreads();\n")], also=[[(FIRST_BARRIER, "    if (x >= V) return;\n" + FIRST_BARRIER)]]),
        Mutant("heads interleaved", "value heads were paired with key heads 0 1 0 1: it must be 0 0 1 1", [(HEAD, "hv % H;")]),
        Mutant("key heads everywhere", "rows of v, g, beta and o were counted with H heads: they have HV", [("* HV + hv;", "* H + hv;")]),
        Mutant("initial state ignored", "the recurrence started from zeros, not from initial_state", [(f"x < V ? {START} : 0.0f", "0.0f")]),
        Mutant("first state for all", "every block started from the first state", [(START, "initial_state[c * V + x]")]),
        Mutant("final state transposed", "the final state was stored as [V,K]: it must be [K,V]", [(LAST, "final_state[state + x * K + c] = S")]),
        Mutant("rows of K", "rows of the state were taken as K long: they are V long", [(START, "initial_state[state + c * K + x]"), (LAST, "final_state[state + c * K + x] = S")]),
        Mutant("last token dropped", "the last token was left out", [("t < T", "t < T - 1")]),
        Mutant("gates by key head", "g was read with the key heads' rows: it has value heads", [("g[row * K + c]", "g[row_qk * K + c]")]),
        Mutant("batch left out", "every batch entry used the tokens of the first", [("row = (int64_t(b) * T + t)", "row = (int64_t(t))"), ("row_qk = (int64_t(b) * T + t)", "row_qk = (int64_t(t))")]),
        Mutant("undecayed prediction", "the prediction was read before the decay", [(S_DECAY + S_READ, S_READ + S_DECAY)]),
        Mutant("decay after the write", "the memory decayed after the write",
               [(S_DECAY, ""), (S_WRITE, "        S[c * columns + x] = d_s[c] * (S[c * columns + x] + k_s[c] * u);\n")]),
        Mutant("no erase", "nothing is erased: u must be beta (v - S^T k)", [("(v[row * V + x] - read)", "v[row * V + x]")]),
        Mutant("read before the write", "o was read before the write", [(S_WRITE + S_OUT, S_OUT + S_WRITE)]),
        Mutant("no scale", "scale is not used", [("scale * sum", "sum")]),
        Mutant("log gate", "g was used as the decay itself: it is a logarithm", [("expf(g[row * K + c])", "g[row * K + c]")]),
        Mutant("one gate per head", "channel 0's gate was used for all channels", [("g[row * K + c]", "g[row * K]")]),
    ],
)  # fmt: skip

# ---- register_columns -----------------------------------------------------------------------------


def tokens(T: int, K: int, V: int, warps: int = 1):
    """Arguments of register_columns, fp32, the memory as [V,K], and the warps of a block."""
    return lambda draw: (
        draw.normal(V, K), draw.unit(T, K), draw.unit(T, K), draw.normal(T, V), draw.gates(T, K), draw.uniform(0.2, 0.9, T), 0.5, warps,
    )  # fmt: skip


def launch_columns(S, q, k, v, g, beta, scale, warps) -> Launch:
    (T, K), V = q.shape, v.shape[1]
    args = (InOut(S), q, k, v, g, beta, scale, Out(T, V), T, K, V)
    return Launch("register_columns", -(-V // warps), 32 * warps, args)


LANES_DECAY = "      s[i] *= c < K ? expf(g[t * K + c]) : 0.0f;\n"
LANES_READ = "      read += k_r[i] * s[i];\n"
LANES_WRITE = "      s[i] += k_r[i] * u;\n"
LANES_OUT = "      sum += c < K ? q[t * K + c] * s[i] : 0.0f;\n"

REGISTER_COLUMNS = Exercise(
    "register_columns",
    outputs=("S", "o"),
    launch=launch_columns,
    cases=[
        Case("finite", tokens(2, 32, 3), finite(), "o starts as NaN: one lane of each warp must write it.", "Does the loop run over all tokens, and one lane store each sum?", dtype=FP32),
        Case("hand-worked", lambda draw: (f(4).view(1, 1), f(1).view(1, 1), f(1).view(1, 1), f(6).view(1, 1), f(math.log(0.5)).view(1, 1), f(0.5), 0.5, 1),
             close(1e-6), "4 decays to 2, is told 6, and learns half of the 4 missing: 4 again, and o is half of it.", "31 lanes have no channel here and must add 0.",
             expect=(f(4).view(1, 1), f(2).view(1, 1)), dtype=FP32),
        Case("one channel per lane", tokens(1, 32, 4), close(1e-5), "32 lanes, 32 channels: S^T k is one sum over the lanes.", "Does every lane hold the whole sum before u is computed?", dtype=FP32),
        Case("four channels per lane", tokens(1, 128, 3), close(1e-5), "Lane l holds channels l, l + 32, l + 64, l + 96.", "First a lane's own sum, then the sum over lanes.", dtype=FP32),
        Case("ragged K", tokens(2, 45, 3), close(1e-5), "45 channels: lanes 13 to 31 hold one channel, the others two.", "Guard every access with c < K.", dtype=FP32),
        Case("several tokens", tokens(6, 40, 5), close(1e-5), "The registers carry the memory from token to token.", "What must not start anew in every turn of the loop?", dtype=FP32),
        Case("several warps a block", tokens(3, 40, 7, 2), close(1e-5), "Two warps a block: warp 1 of block 2 owns column 5, and the last one none.", "Columns are counted over the whole grid.", dtype=FP32),
        Case("inputs unmodified", tokens(3, 40, 7, 2), unmodified(), "Only S and o change.", "Keep products of k and g in registers.", dtype=FP32),
    ],
    mutants=[
        Mutant("no sum for the prediction", "S^T k was not summed over the lanes: each lane predicted from its own channels", [("sum_of_lanes(read)", "read")]),
        Mutant("no sum for the output", "S^T q was not summed over the lanes", [("    sum = sum_of_lanes(sum);\n", "")]),
        Mutant("sum in lane 0 alone", "only lane 0 got S^T k: every lane needs it for its channels",
               [("sum_of_lanes(read)", "(lane == 0 ? sum_of_lanes(read) : (sum_of_lanes(read), 0.0f))")]),
        Mutant("one channel each", "each lane worked on one channel: K beyond 32 was left out",
               [("    s[i] = c < K ? S[x * K + c] : 0.0f;\n", "    s[i] = c < K && i < 1 ? S[x * K + c] : 0.0f;\n"), ("k_r[i] = c < K", "k_r[i] = c < K && i < 1"),
                ("if (c < K) S[x * K + c] = s[i];", "if (c < K && i < 1) S[x * K + c] = s[i];")]),
        Mutant("state as [K,V]", "the memory was read as [K,V]: here it is [V,K]", [("S[x * K + c] : 0.0f", "S[c * V + x] : 0.0f"), ("if (c < K) S[x * K + c]", "if (c < K) S[c * V + x]")]),
        Mutant("no guard on channels", "channels beyond K were read", [("k_r[i] = c < K ? k[t * K + c] : 0.0f;", "k_r[i] = k[t * K + c];")],
               also=[[("s[i] *= c < K ? expf(g[t * K + c]) : 0.0f;", "s[i] *= expf(g[t * K + c]);")], [("s[i] = c < K ? S[x * K + c] : 0.0f;", "s[i] = S[x * K + c];")]]),
        Mutant("no guard on columns", "warps beyond V work on columns that do not exist", [("  if (x >= V) return;\n", "")]),
        Mutant("not stored", "the memory never went back from the registers", [("if (c < K) S[x * K + c] = s[i];", "")]),
        Mutant("memory forgotten", "the memory started anew at every token",
               [("      k_r[i] = c < K", "      if (t > 0) s[i] = c < K ? S[x * K + c] : 0.0f;\n      k_r[i] = c < K")]),
        Mutant("undecayed prediction", "the prediction was read before the decay", [(LANES_DECAY + LANES_READ, LANES_READ + LANES_DECAY)]),
        Mutant("read before the write", "o was read before the write", [(LANES_WRITE + LANES_OUT, LANES_OUT + LANES_WRITE)]),
        Mutant("log gate", "g was used as the decay itself: it is a logarithm", [("expf(g[t * K + c])", "g[t * K + c]")]),
        Mutant("no beta", "beta is not used", [("beta[t] * (v", "(v")]),
        Mutant("no scale", "scale is not used", [("scale * sum", "sum")]),
        Mutant("first token for all", "every token used the first one's key", [("k[t * K + c] : 0.0f", "k[c] : 0.0f")]),
        Mutant("last token dropped", "the last token was left out", [("t < T", "t < T - 1")]),
    ],
)  # fmt: skip

EXERCISES = [EXP_GATES, ROW_OFFSET, WARP_SUM, TOKEN_STEP, KDA_NAIVE, REGISTER_COLUMNS]
