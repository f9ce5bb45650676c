"""Cases and wrong versions of `ex04_recurrence`: the recurrence, and how to know it is right."""

import torch
from torch import Tensor

from kda_lab.grading.runner import Local, Value
from kda_lab.grading.source import model, mutant_function
from kda_lab.grading.spec import (
    Case,
    Draw,
    Exercise,
    Mutant,
    Problem,
    Trial,
    close,
    distance,
    finite,
    form_problem,
    shape,
    unmodified,
)

# ---- kda_step -------------------------------------------------------------------------------------


def step(K: int = 5, V: int = 3, gate: bool = True):
    def make(draw: Draw) -> tuple:
        g = draw.gates(K) if gate else torch.zeros(K, dtype=draw.dtype)
        S, beta = draw.normal(K, V), draw.uniform(0.2, 0.9)
        return S, draw.unit(K), draw.unit(K), draw.normal(V), g, beta, 0.7

    return make


def t(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def step_by_hand(_: Draw) -> tuple:
    # channel 0 halves (8 -> 4), the key asks for it, half of the surprise 2 - 4 is written: 4 - 1 = 3
    S, k = torch.stack([t(8, 0), t(0, 16)]), t(1, 0)
    return S, t(1, 1), k, t(2, 0), t(0.5, 0.25).log(), torch.tensor(0.5).double(), 0.5


KDA_STEP = Exercise(
    "kda_step",
    outputs=("o", "S"),
    cases=[
        Case("shape", step(), shape(), "o lives on the value axis; S keeps its shape [K,V].",
             "Write the shape behind every line, and compare with print(x.shape)."),
        Case("finite", step(), finite(), "Every operation here keeps numbers finite.",
             "Look for a division, a log, or a tensor from torch.empty that was never filled."),
        Case("hand-worked", step_by_hand, close(1e-12),
             "8 halves to 4, the key predicts 4, v is 2: half of -2 is written, 3 remains; 16 decays to 4.",
             "Follow the two channels on paper: decay, predict, correct, read.",
             expect=(t(1.5, 2.0), torch.stack([t(3, 0), t(0, 4)]))),
        Case("algebra, no decay", step(4, 4, gate=False), close(1e-10),
             "With g = 0 nothing is forgotten, and only the delta rule and the read are left.",
             "u = beta (v - S^T k); S + k u^T; scale S^T q, in this order."),
        Case("algebra, strong gates", step(4, 4), close(1e-10),
             "The decay comes first, one factor exp(g) for each key channel, that is, for each row.",
             "Which S does the prediction use, the one before or after the decay?"),
        Case("K != V", step(7, 2), close(1e-10), "The gate and the keys live on axis K, u and v on axis V.",
             "Mark every axis of every product with K or V."),
        Case("inputs unmodified", step(), unmodified(), "The caller may still need the memory before the token.",
             "Replace S *= ... and S += ... by S = ... * S and S = S + ... ."),
        Case("precision", step(8, 8), close(2e-6), "Nothing here loses more than the last digits of fp32.",
             "Keep the dtype of the arguments: no .half(), no .bfloat16().", dtype=torch.float32),
    ],
    mutants=[
        Mutant("no gate", "the memory never decays: g is not used", [("g.exp()[:, None] * S", "S")]),
        Mutant("log gate", "g was used as the decay itself: it is a logarithm", [("g.exp()", "g")]),
        Mutant("scalar gate", "one decay was used for all key channels", [("g.exp()[:, None]", "g.mean().exp()")]),
        Mutant("gate on the value axis", "the decay was applied along V: it belongs to the rows of S",
               [("g.exp()[:, None]", "g.exp()[None, :]")]),
        Mutant("no delta rule", "v was written without subtracting what the memory already predicts",
               [("(v - S.T @ k)", "v")]),
        Mutant("decay after erase", "the decay was applied after the erase: it comes first",
               [("S = g.exp()[:, None] * S  # forget: each key channel at its own rate\n", "a = g.exp()[:, None]\n"),
                ("S = S + k[:, None] * u[None, :]", "S = a * (S - beta * k[:, None] * (S.T @ k)[None]) + beta * k[:, None] * v[None]")]),
        Mutant("undecayed prediction", "the prediction came from the memory before its decay",
               [("S = g.exp()[:, None] * S", "old, S = S, g.exp()[:, None] * S"), ("v - S.T @ k", "v - old.T @ k")]),
        Mutant("beta on the write only", "beta scales v but not the erased part", [("beta * (v - S.T @ k)", "beta * v - S.T @ k")]),
        Mutant("beta on the erase only", "beta scales the erased part but not v", [("beta * (v - S.T @ k)", "v - beta * (S.T @ k)")]),
        Mutant("no beta", "beta is not used", [("beta * (v", "(v")]),
        Mutant("read before write", "o was read before the token was written",
               [("u = beta", "read = S\n    u = beta"), ("scale * (S.T @ q)", "scale * (read.T @ q)")]),
        Mutant("state transposed", "the memory came back as [V,K]: it must be [K,V]", [("(S.T @ q), S ", "(S.T @ q), S.T ")]),
        Mutant("no scale", "scale is not used", [("scale * (S.T @ q)", "(S.T @ q)")]),
        Mutant("sign of the surprise", "the surprise has the wrong sign: it is v minus the prediction",
               [("(v - S.T @ k)", "(S.T @ k - v)")]),
        Mutant("in place", "the caller's memory was changed in place",
               [("S = g.exp()[:, None] * S", "S *= g.exp()[:, None]")]),
    ],
)  # fmt: skip

# ---- kda_recurrent --------------------------------------------------------------------------------


def sequence(B=2, T=7, H=2, HV=4, K=5, V=3, gate=True, scale=0.6, state=True):
    def make(draw: Draw) -> tuple:
        q, k, v = draw.unit(B, T, H, K), draw.unit(B, T, H, K), draw.normal(B, T, HV, V)
        g, S0 = draw.gates(B, T, HV, K), draw.normal(B, HV, K, V)
        g, S0 = (g if gate else 0 * g), (S0 if state else 0 * S0)
        return q, k, v, g, draw.uniform(0.2, 0.9, B, T, HV), scale, S0

    return make


def two_tokens(_: Draw) -> tuple:
    # both tokens use the same key: the second one halves 4 to 2, expects 2, is told 6, and learns half: 4
    one = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    g, beta = t(1.0, 0.5).log().view(1, 2, 1, 1), t(1.0, 0.5).view(1, 2, 1)
    return one, one.clone(), t(4, 6).view(1, 2, 1, 1), g, beta, 0.5, 0 * one[:, :1]


def one_by_one(start):
    """The recurrence run for one batch entry after the other; `start(S0, before)` begins an entry."""

    def leaked(q, k, v, g, beta, scale, initial_state):
        state, outputs, states = None, [], []
        for b in range(q.shape[0]):
            state = start(initial_state, b, state)
            run = (x[b : b + 1] for x in (q, k, v, g, beta))
            o, state = model("ex04.kda_recurrent")(*run, scale, state)
            outputs.append(o)
            states.append(state)
        return torch.cat(outputs), torch.cat(states)

    return leaked


def where_the_last_ended(S0: Tensor, b: int, before: Tensor | None) -> Tensor:
    return S0[:1] if before is None else before


def on_top_of_the_last(S0: Tensor, b: int, before: Tensor | None) -> Tensor:
    return S0[b : b + 1] if before is None else S0[b : b + 1] + before


def from_the_first_entry(S0: Tensor, b: int, before: Tensor | None) -> Tensor:
    return S0[:1]


SEEN = 'seen = torch.einsum("bhkv,bhk->bhv", S, k[:, t])\n'
DECAY = "S = g[:, t].exp()[..., None] * S  # [B,HV,K,V]\n"
U = "u = beta[:, t, :, None] * (v[:, t] - seen)\n"
WRITE = "S = S + k[:, t][..., None] * u[..., None, :]\n"

SIXTEEN = [
    Mutant("no gate", "the memory never decays: g is not used", [("g[:, t].exp()[..., None] * S", "S")]),
    Mutant("scalar gate", "one decay was used for all key channels of a head",
           [("g[:, t].exp()[..., None]", "g[:, t].mean(-1).exp()[..., None, None]")],
           also=[[("g[:, t].exp()[..., None]", "g[:, t].exp().mean(-1)[..., None, None]")],
                 [("g[:, t].exp()[..., None]", "g[:, t, :, 0].exp()[..., None, None]")]]),
    Mutant("gate on the value axis", "the decay was applied along V: it belongs to the rows of S",
           [("g[:, t].exp()[..., None]", "g[:, t].exp()[..., None, :]")]),
    Mutant("no delta rule", "v was written without subtracting what the memory already predicts",
           [("(v[:, t] - seen)", "v[:, t]")]),
    Mutant("decay after erase", "the decay was applied after the erase: it comes first",
           [(DECAY, "a = g[:, t].exp()[..., None]\n"), (U, "b = beta[:, t, :, None]\n"),
            (WRITE, "S = a * (S - k[:, t][..., None] * (b * seen)[..., None, :])\n"
                    "        S = S + k[:, t][..., None] * (b * v[:, t])[..., None, :]\n")],
           also=[[(DECAY, ""), ("for t in range(T):\n        ", "for t in range(T):\n"),
                  (WRITE, WRITE.replace("S = S + ", "S = g[:, t].exp()[..., None] * (S + ").replace("\n", ")\n"))]]),
    Mutant("undecayed prediction", "the prediction came from the memory before its decay",
           [(DECAY, "old, S = S, g[:, t].exp()[..., None] * S\n"), (SEEN, SEEN.replace("S,", "old,"))]),
    Mutant("beta on the write only", "beta scales v but not the erased part",
           [("beta[:, t, :, None] * (v[:, t] - seen)", "beta[:, t, :, None] * v[:, t] - seen")]),
    Mutant("beta on the erase only", "beta scales the erased part but not v",
           [("beta[:, t, :, None] * (v[:, t] - seen)", "v[:, t] - beta[:, t, :, None] * seen")]),
    Mutant("no beta", "beta is not used", [("beta[:, t, :, None] * (v[:, t] - seen)", "v[:, t] - seen")]),
    Mutant("read before write", "o was read before the token was written",
           [(SEEN, SEEN + "        read = S\n"), ("S, q[:, t])", "read, q[:, t])")],
           also=[[(DECAY, "read = S\n        " + DECAY), ("S, q[:, t])", "read, q[:, t])")]]),
    Mutant("state transposed", "the final state came back as [V,K]: it must be [K,V]",
           [("return o, S\n", "return o, S.transpose(-1, -2)\n")],
           also=[[("return o, S\n", "return o, S.transpose(-1, -2).reshape_as(S)\n")]]),
    Mutant("no scale", "scale is not used", [("scale * torch", "torch")],
           also=[[("scale * torch", "K**-0.5 * torch"), ("T, H = q.shape[1:3]", "T, H, K = q.shape[1:]")]]),
    Mutant("initial state ignored", "the recurrence started from zeros, not from initial_state",
           [("S, o = initial_state,", "S, o = torch.zeros_like(initial_state),")]),
    Mutant("state leaked across the batch", "one batch entry went on with the memory of the entry before it",
           function=one_by_one(where_the_last_ended),
           also=[one_by_one(on_top_of_the_last), one_by_one(from_the_first_entry)]),
    Mutant("tail dropped", "the last tokens were left out",
           [("empty_like", "zeros_like"), ("range(T)", "range(T // 4 * 4)")],
           also=[[("empty_like", "zeros_like"), ("range(T)", f"range({length})")]
                 for length in ("T // 2 * 2", "T // 8 * 8", "T // 16 * 16", "T - 1")]),
    Mutant("another head's final state", "o is right but the final states are in the wrong order of heads",
           [("return o, S\n", "return o, S.roll(1, dims=1)\n")],
           also=[[("return o, S\n", f"return o, S{wrong}\n")]
                 for wrong in (".roll(-1, dims=1)", ".flip(1)", "[:, :1].expand_as(S)", "[:, -1:].expand_as(S)")]),
]  # fmt: skip

KDA_RECURRENT = Exercise(
    "kda_recurrent",
    outputs=("o", "final_state"),
    cases=[
        Case("shape", sequence(), shape(), "o is [B,T,HV,V] like v, the final state [B,HV,K,V] like the initial one.",
             "Write the shape behind every line, and compare with print(x.shape)."),
        Case("finite", sequence(), finite(), "Every operation here keeps numbers finite.",
             "Is every o[:, t] filled? torch.empty is full of NaN while you are graded."),
        Case("hand-worked", two_tokens, close(1e-12),
             "The first token stores 4. The second halves it to 2, is told 6, and learns half of the 4 missing.",
             "Print the memory after each token: 4, then 4 again; each o is half of it.",
             expect=(t(2, 2).view(1, 2, 1, 1), t(4).view(1, 1, 1, 1))),
        Case("algebra, one head", sequence(1, 6, 1, 1, 4, 4, state=False), close(1e-10, only=("o",)),
             "Decay, predict, correct, write, read: with strong gates every other order gives other numbers.",
             "Call your kda_step in a loop on the same numbers and compare token by token."),
        Case("ragged T, K != V", sequence(1, 13, 1, 1, 6, 2, state=False), close(1e-10, only=("o",)),
             "13 tokens fill no chunk evenly, and K != V shows every mixed-up axis.",
             "Mark every axis of every product with K or V; does the loop reach the last token?"),
        Case("batches and heads", sequence(3, 5, 2, 2, 4, 3, state=False), close(1e-10, only=("o",)),
             "Batch entries and heads have memories of their own and never meet.",
             "Feed one batch entry alone and compare with its part of the full answer."),
        Case("grouped value heads", sequence(2, 5, 2, 6, 4, 3, state=False), close(1e-10, only=("o",)),
             "Value head h uses query and key head h // (HV / H): 0 0 0 1 1 1 here.",
             "repeat_interleave gives 0 0 0 1 1 1, repeat gives 0 1 0 1 0 1."),
        Case("initial state", sequence(), close(1e-10, only=("o",)), "Decoding goes on from a memory that is not empty.",
             "Start from initial_state, and decay it too before the first token."),
        Case("final state", sequence(3, 6, 2, 4, 5, 3), close(1e-10),
             "A prompt in two pieces is right only if the final state is, head by head.",
             "Compare final_state[b, h] with the memory of your loop for that b and h."),
        Case("inputs unmodified", sequence(), unmodified(), "The caller may use initial_state again.",
             "S = initial_state gives the same tensor a second name: no S *= ... and no S += ... on it."),
        Case("precision", sequence(2, 19, 2, 4, 8, 6), close(1e-5), "fp32 in, fp32 algebra: five digits are left.",
             "Keep the dtype of the arguments: no .half(), no .bfloat16().", dtype=torch.float32),
    ],
    mutants=[
        *SIXTEEN,
        Mutant("log gate", "g was used as the decay itself: it is a logarithm", [("g[:, t].exp()", "g[:, t]")]),
        Mutant("heads interleaved", "value heads were paired with key heads 0 1 0 1: it must be 0 0 1 1",
               [("q = q.repeat_interleave(HV // H, dim=2)", "q = q.repeat(1, 1, HV // H, 1)"),
                ("k = k.repeat_interleave(HV // H, dim=2)", "k = k.repeat(1, 1, HV // H, 1)")]),
        Mutant("first token unread", "the loop starts at the second token",
               [("empty_like", "zeros_like"), ("range(T)", "range(1, T)")]),
        Mutant("in place", "initial_state was changed in place", [(DECAY, "S *= g[:, t].exp()[..., None]\n")]),
    ],
)  # fmt: skip

# ---- token_cost -----------------------------------------------------------------------------------


def sizes(K: int, V: int, size: int):
    return lambda draw: (K, V, size)


def random_sizes(draw: Draw) -> tuple:
    return draw.integer(3, 64), 64 + draw.integer(1, 64), 2 * draw.integer(1, 4)


EXACT = close(0.0)
TOKEN_COST = Exercise(
    "token_cost",
    outputs=("operations", "bytes"),
    cases=[
        Case("shape", sizes(2, 3, 4), shape(), "Two whole numbers: operations, then bytes.",
             "return flops, numbers * bytes_per_number"),
        Case("finite", sizes(2, 3, 4), finite(), "Counts are finite.", "Multiply, do not divide."),
        Case("one number", sizes(1, 1, 1), EXACT, "With K = V = 1: decay 1, predict 2, write 2, read 2; 2 + 3 + 2 + 1 numbers move.",
             "Count on paper for a memory of one number.", expect=(7, 8)),
        Case("operations", random_sizes, close(0.0, only=("operations",)), "Seven operations for each number of S.",
             "Four lines touch S; three of them do two operations on each number."),
        Case("bytes", random_sizes, EXACT, "S moves twice; q, k, g are [K], v and o are [V], beta is one number.",
             "List every array of kda_step with its length, and who reads or writes it."),
        Case("the real size", sizes(128, 128, 4), EXACT, "114,688 operations for each token and head: the course's yardstick.",
             "7 * 128 * 128.", expect=(114688, 133636)),
    ],
    mutants=[
        Mutant("no decay", "the decay was not counted", [("(1 + 2 + 2 + 2)", "(2 + 2 + 2)")]),
        Mutant("fused", "a multiplication and an addition were counted as one", [("(1 + 2 + 2 + 2)", "(1 + 1 + 1 + 1)")]),
        Mutant("no read", "one product with S is missing: predict, write or read", [("(1 + 2 + 2 + 2)", "(1 + 2 + 2)")]),
        Mutant("decay twice", "the decay was counted as two operations a number: it is one multiplication",
               [("(1 + 2 + 2 + 2)", "(2 + 2 + 2 + 2)")]),
        Mutant("K squared", "the memory was taken as K by K: it is K by V",
               [("2) * K * V", "2) * K * K"), ("2 * K * V +", "2 * K * K +")]),
        Mutant("one way", "S was counted once: it is read and written", [("2 * K * V +", "K * V +")]),
        Mutant("only the memory", "q, k, g, v, o and beta were not counted", [(" + 3 * K + 2 * V + 1", "")]),
        Mutant("no gate bytes", "g was forgotten: three vectors have length K", [("3 * K", "2 * K")]),
        Mutant("axes of the vectors", "lengths K and V of the vectors were exchanged", [("3 * K + 2 * V", "3 * V + 2 * K")]),
        Mutant("no output bytes", "writing o was not counted", [("2 * V", "V")]),
        Mutant("numbers, not bytes", "numbers were returned, not bytes", [("numbers * bytes_per_number", "numbers")]),
        Mutant("bits", "bits were returned, not bytes", [("numbers * bytes_per_number", "numbers * bytes_per_number * 8")]),
    ],
)  # fmt: skip

# ---- telling_inputs -------------------------------------------------------------------------------

NAMES = ("q", "k", "v", "g", "beta", "scale", "initial_state")


def input_problem(got: dict) -> Problem | None:
    """What keeps these arguments from being a call of kda_recurrent at all."""
    tensors = {name: got[name] for name in NAMES if name != "scale"}
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            return Problem(f"{name} is {type(x).__name__} but must be a tensor")
    q, v = got["q"], got["v"]
    if q.dim() != 4 or v.dim() != 4:
        return Problem(f"q has {q.dim()} axes and v {v.dim()}: both must have 4")
    (B, T, H, K), (HV, V) = q.shape, v.shape[2:]
    if not (1 <= T <= 32 and all(1 <= n <= 8 for n in (B, H, K, HV, V))) or HV % H:
        return Problem(f"B, T, H, HV, K, V are {B}, {T}, {H}, {HV}, {K}, {V}", "T at most 32, the others at most 8, HV a multiple of H")
    want = {"q": (B, T, H, K), "k": (B, T, H, K), "v": (B, T, HV, V), "g": (B, T, HV, K), "beta": (B, T, HV),
            "initial_state": (B, HV, K, V)}  # fmt: skip
    for name, size in want.items():
        if problem := form_problem(name, tensors[name], torch.empty(size, dtype=tensors[name].dtype)):
            return problem
        if tensors[name].dtype not in (torch.float32, torch.float64) or tensors[name].dtype != q.dtype:
            return Problem(f"{name} is {tensors[name].dtype}", "all tensors must be fp64, or all fp32")
        if not bool(tensors[name].isfinite().all()):
            return Problem(f"{name} is not finite")
    if not isinstance(got["scale"], float | int) or not 0 < got["scale"] < 100:
        return Problem(f"scale is {got['scale']!r} but must be a number between 0 and 100")
    if bool((got["g"] > 0).any()):
        return Problem("g has positive entries", "a log decay is at most 0")
    if any(float(x.abs().max()) > 100 for x in tensors.values()):
        return Problem("an entry is larger than 100")
    return None


def escaped(got: dict) -> list[str]:
    """Wrong versions that these (well-formed) arguments do not expose."""
    args = tuple(x.double() if isinstance(x, Tensor) else x for x in (got[name] for name in NAMES))
    right = model("ex04.kda_recurrent")(*args)
    hidden = []
    for mutant in SIXTEEN:
        reply = Local(mutant_function("ex04.kda_recurrent", mutant)).call("", args)
        if isinstance(reply, Value) and all(
            a.shape == b.shape and distance(a, b) < 0.01 for a, b in zip(reply.value, right, strict=True)
        ):
            hidden.append(mutant.name)
    return hidden


def wellformed(trial: Trial) -> Problem | None:
    return input_problem(trial.got)


def exposes(*names: str):
    def judge(trial: Trial) -> Problem | None:
        if problem := input_problem(trial.got):
            return problem
        hidden = escaped(trial.got)
        missed = [n for n in hidden if not names or n in names]
        if missed:
            caught = len(SIXTEEN) - len(hidden)
            return Problem(f"not exposed: {', '.join(missed)}", f"{caught} of {len(SIXTEEN)} wrong versions are caught")
        return None

    return judge


def facts(args: tuple, value) -> list:
    """By what wrong designs are told apart: which wrong versions get away."""
    names = [m.name for m in SIXTEEN]
    if not isinstance(value, tuple | list) or len(value) != len(NAMES):
        return [None] * (len(names) + 1)
    got = dict(zip(NAMES, value, strict=True))
    problem = input_problem(got)
    hidden = [] if problem else escaped(got)
    return [problem, *(name in hidden for name in names)]


TELLING_INPUTS = Exercise(
    "telling_inputs",
    outputs=NAMES,
    cases=[
        Case("shape", lambda draw: (), wellformed, "They must be a legal call of kda_recurrent.",
             "Compare every shape with the docstring of kda_recurrent."),
        Case("the delta rule", lambda draw: (),
             exposes("no delta rule", "beta on the write only", "beta on the erase only", "no beta", "read before write"),
             "Where the memory predicts nothing or beta is 1, half of the rule cannot be seen.",
             "Repeat keys or start from a full memory, with beta between 0 and 1."),
        Case("the gates", lambda draw: (),
             exposes("no gate", "scalar gate", "gate on the value axis", "decay after erase", "undecayed prediction"),
             "A gate of one number commutes with the erase; gentle gates hide the order below a percent.",
             "Let g differ from channel to channel, some near 0, some near -3."),
        Case("shapes and scale", lambda draw: (), exposes("state transposed", "no scale", "tail dropped"),
             "Sizes that happen to be equal, and numbers that happen to be 1, hide mistakes.",
             "Make K != V, T no multiple of 4, scale not 1: 0.5, say."),
        Case("all sixteen", lambda draw: (), exposes(),
             "What is alone cannot be mixed up: one batch entry, one head, an empty memory.",
             "At least two batch entries, two heads, and a random initial_state."),
    ],
    mutants=[
        Mutant("all ones", "everything is one: almost nothing can go wrong visibly",
               [("return q, k, v, g, beta, scale, initial_state",
                 "one = torch.ones(1, 4, 1, 1).double()\n    return one, one, one, 0 * one, one[..., 0], 1.0, 0 * one[:, :1]")]),
        Mutant("no gate, beta one", "random keys and values, but g = 0 and beta = 1", [("-3.0 * torch", "0.0 * torch"), ("0.2 + 0.6 * torch.rand(", "1.0 + 0.0 * torch.rand(")]),
        Mutant("scalar gates", "all channels of a head have the same gate", [("scale, initial_state =", "g = g.mean(-1, keepdim=True).expand_as(g)\n    scale, initial_state =")]),
        Mutant("gentle gates", "the gates are too gentle to show an order", [("-3.0 * torch", "-0.003 * torch")]),
        Mutant("K equals V", "K = V: a transposed state has the right shape, and is symmetric too",
               [("2, 7, 2, 4, 4, 3", "2, 7, 2, 4, 1, 1")]),
        Mutant("scale one", "scale is 1", [("= 0.5, randn", "= 1.0, randn")]),
        Mutant("empty memory", "the initial state is zero", [("= 0.5, randn(B, HV, K, V)", "= 0.5, 0 * randn(B, HV, K, V)")]),
        Mutant("one batch entry", "there is one batch entry: nothing to leak into", [("= 2, 7, 2", "= 1, 7, 2")]),
        Mutant("T of eight", "T is a multiple of 4: no tail to drop", [("2, 7, 2", "2, 8, 2")]),
        Mutant("one head", "there is one head: no order of heads to mix up", [("2, 7, 2, 4,", "2, 7, 1, 1,")]),
        Mutant("beta one", "beta is 1 everywhere", [("0.2 + 0.6 * torch.rand(", "1.0 + 0.0 * torch.rand(")]),
    ],
    fingerprint=facts,
)  # fmt: skip

EXERCISES = [KDA_STEP, KDA_RECURRENT, TOKEN_COST, TELLING_INPUTS]
