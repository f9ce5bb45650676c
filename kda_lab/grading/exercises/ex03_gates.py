"""Cases and wrong versions of `ex03_gates`: decay, half-lives, the gated step, two activations."""

import torch
from torch import Tensor

from kda_lab.grading.spec import Case, Draw, Exercise, Mutant, close, finite, shape, unmodified


def t(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---- decay ----------------------------------------------------------------------------------------


def memory_and_gate(K: int = 5, V: int = 3):
    return lambda draw: (draw.normal(K, V), draw.gates(K))


DECAY = Exercise(
    "decay",
    outputs=("S",),
    cases=[
        Case("shape", memory_and_gate(), shape(), "Forgetting changes the numbers, not the shape [K,V].", "(K,1)·(K,V) -> (K,V), entry by entry."),
        Case("finite", memory_and_gate(), finite(), "exp of a number below 0 lies between 0 and 1.", "Nothing is divided, and no logarithm is taken."),
        Case("hand-worked", lambda _: (torch.stack([t(4, 8), t(4, 8)]), t(0.5, 0.25).log()), close(1e-12),
             "Row 0 keeps a half, row 1 a quarter.", "Print g.exp(), then the rows before and after.",
             expect=torch.stack([t(2, 4), t(1, 2)])),
        Case("algebra", memory_and_gate(4, 4), close(1e-10), "Row i belongs to key channel i and is multiplied by exp(g_i).", "Which axis of S is the key's?"),
        Case("K != V", memory_and_gate(7, 2), close(1e-10), "There is one gate for each row, and none for the columns.", "g.exp() is [K]; give it a second axis."),
        Case("a closed gate", lambda draw: (draw.normal(3, 2), torch.tensor([0.0, -torch.inf, -1.0], dtype=torch.float64)), close(1e-12),
             "A gate of minus infinity empties its channel, and only that one.", "exp(-inf) is 0; do not take it apart any further."),
        Case("inputs unmodified", memory_and_gate(), unmodified(), "The caller may still need the memory before the decay.", "... * S, not S *= ... ."),
    ],
    mutants=[
        Mutant("no decay", "the memory never decays: g is not used", [("g.exp()[:, None] * S", "S + 0 * g.exp()[:, None]")]),
        Mutant("log gate", "g was used as the decay itself: it is a logarithm", [("g.exp()", "g")]),
        Mutant("power of two", "2 was raised to g: the gates are natural logarithms", [("g.exp()", "g.exp2()")]),
        Mutant("mean gate", "one decay was used for all key channels", [("g.exp()[:, None]", "g.mean().exp()")]),
        Mutant("mean alpha", "the decays of all channels were averaged", [("g.exp()[:, None]", "g.exp().mean()")]),
        Mutant("first channel", "the decay of channel 0 was used for all channels", [("g.exp()[:, None]", "g[0].exp()")]),
        Mutant("gate on the value axis", "the decay was applied along V: it belongs to the rows of S", [("[:, None]", "[None, :]")]),
        Mutant("grows", "the sign of g was lost: the memory grows", [("g.exp()", "(-g).exp()")]),
        Mutant("what is lost", "what is forgotten came back, not what is left", [("g.exp()", "(1 - g.exp())")]),
        Mutant("linear", "1 + g was used for exp(g): true only for small gates", [("g.exp()", "(1 + g)")]),
        Mutant("twice", "the decay was applied twice", [("g.exp()", "(2 * g).exp()")]),
        Mutant("in place", "the caller's memory was changed in place", [("return g.exp()[:, None] * S", "S *= g.exp()[:, None]\n    return S")]),
    ],
)  # fmt: skip

# ---- half_life ------------------------------------------------------------------------------------


def some_gates(*size: int):
    return lambda draw: (-draw.uniform(1e-4, 5.0, *size),)


HALF_LIFE = Exercise(
    "half_life",
    outputs=("tokens",),
    cases=[
        Case("shape", some_gates(2, 3), shape(), "One number of tokens for each gate.", "No loop and no sum is needed."),
        Case("finite", some_gates(4), finite(), "g is below 0, so the division is safe.", "Take the logarithm of 1/2, not of g."),
        Case("hand-worked", lambda _: (t(0.5, 0.25, 2**-0.5).log(),), close(1e-12),
             "Keeping a half: 1 token. Keeping a quarter: half a token. Keeping 0.707: two tokens.", "After n tokens exp(n g) is left.",
             expect=t(1, 0.5, 2)),
        Case("algebra", some_gates(6), close(1e-10), "exp(n g) = 1/2 gives n = log(1/2) / g.", "Check: torch.exp(n * g) must be 1/2."),
        Case("any shape", some_gates(2, 3, 4), close(1e-10), "The formula is the same for each entry.", "Work on the whole tensor at once."),
        Case("inputs unmodified", some_gates(4), unmodified(), "The gates are used again.", "No in-place operation on g."),
        Case("precision", some_gates(8), close(1e-6), "One division loses one digit at most.", "Keep the dtype of g.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("sign", "the number of tokens came out negative", [("math.log(0.5)", "math.log(2)")]),
        Mutant("mean life", "this is when 1/e is left, not one half", [("math.log(0.5) / g", "-1 / g")]),
        Mutant("quarter", "this is when a quarter is left", [("math.log(0.5)", "math.log(0.25)")]),
        Mutant("base ten", "a decimal logarithm was used: g is a natural one", [("math.log(0.5)", "math.log10(0.5)")]),
        Mutant("upside down", "the fraction is upside down", [("math.log(0.5) / g", "g / math.log(0.5)")]),
        Mutant("one half", "1/2 was divided, not its logarithm", [("math.log(0.5) / g", "-0.5 / g")]),
        Mutant("alpha", "the logarithm was divided by alpha: g is what it must be divided by", [("/ g", "/ -g.exp()")]),
        Mutant("straight line", "a straight line was followed down to one half: a decay is a curve", [("math.log(0.5) / g", "0.5 / (1 - g.exp())")]),
        Mutant("whole tokens", "the tokens were rounded up", [("math.log(0.5) / g", "(math.log(0.5) / g).ceil()")]),
        Mutant("mean gate", "one half-life was computed for all gates", [("/ g", "/ g.mean() + 0 * g")]),
        Mutant("twice the gate", "the gate was taken twice", [("/ g", "/ (2 * g)")]),
    ],
)  # fmt: skip

# ---- gated_step -----------------------------------------------------------------------------------


def step(K: int = 5, V: int = 3, beta: float = 0.7, channels: bool = True):
    def make(draw: Draw) -> tuple:
        return (
            draw.normal(K, V),
            draw.unit(K),
            draw.normal(V),
            draw.gates(K if channels else 1),
            beta,
        )

    return make


FORGET = "S = g.exp()[:, None] * S\n"
SURPRISE = "beta * (v - S.T @ k)"
WRITE = "S + k[:, None] * u[None, :]"
GATED_STEP = Exercise(
    "gated_step",
    outputs=("S",),
    cases=[
        Case("shape", step(), shape(), "The memory keeps its shape [K,V].", "Write the shape behind every line."),
        Case("finite", step(), finite(), "Every operation here keeps numbers finite.", "Look for a division or a logarithm."),
        Case("hand-worked", lambda _: (t(1, 1)[:, None], t(0.6, 0.8), t(0), t(1, 0.125).log(), 1.0), close(1e-12),
             "1 and 1 decay to 1 and 0.125; they predict 0.7; erasing it leaves 0.58 and -0.435.", "Follow the two channels on paper: decay, predict, correct.",
             expect=t(0.58, -0.435)[:, None]),
        Case("beta = 1", step(4, 4, 1.0), close(1e-10), "With beta = 1 and a key of length 1, asking again gives v exactly.", "Print S_new.T @ k beside v."),
        Case("one gate for all", step(5, 3, 0.6, channels=False), close(1e-10), "A gate of one number decays all rows alike.", "g.exp()[:, None] is [1,1] then, and broadcasts."),
        Case("strong gates", step(6, 6, 0.5), close(1e-10), "The decay comes first; the prediction is made by what is left.", "Which S does the prediction use, the one before or after the decay?"),
        Case("K != V", step(7, 2), close(1e-10), "The gate and the key live on axis K, v on axis V.", "Mark every axis with K or V."),
        Case("inputs unmodified", step(), unmodified(), "The caller may still need the memory before the token.", "S = ... * S, not S *= ... ."),
        Case("precision", step(8, 8), close(2e-6), "Nothing here loses more than the last digits of fp32.", "Keep the dtype of the arguments.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("no gate", "the memory never decays: g is not used", [("g.exp()[:, None] * S", "S + 0 * g.exp()[:, None]")]),
        Mutant("log gate", "g was used as the decay itself: it is a logarithm", [("g.exp()", "g")]),
        Mutant("scalar gate", "one decay was used for all key channels", [("g.exp()[:, None]", "g.mean().exp()")]),
        Mutant("gate on the value axis", "the decay was applied along V: it belongs to the rows of S", [("g.exp()[:, None]", "g.exp()[None, :]")]),
        Mutant("decay after erase", "the decay was applied after the erase: it comes first",
               [(FORGET, "a = g.exp()[:, None]\n"), (SURPRISE, "beta * (S.T @ k)"),
                (WRITE, "a * (S - k[:, None] * u[None, :]) + beta * k[:, None] * v[None, :]")]),
        Mutant("decay after write", "the new value was decayed too: the decay comes before the write",
               [(FORGET, "a = g.exp()[:, None]\n"), (WRITE, "a * (S + k[:, None] * u[None, :])")]),
        Mutant("undecayed prediction", "the prediction came from the memory before its decay",
               [(FORGET, "old, S = S, g.exp()[:, None] * S\n"), ("v - S.T @ k", "v - old.T @ k")]),
        Mutant("no delta rule", "v was written without subtracting what the memory already predicts", [("(v - S.T @ k)", "v")]),
        Mutant("beta on the write only", "beta scales v but not the erased part", [(SURPRISE, "beta * v - S.T @ k")]),
        Mutant("beta on the erase only", "beta scales the erased part but not v", [(SURPRISE, "v - beta * (S.T @ k)")]),
        Mutant("no beta", "beta is not used", [("beta * (v", "(v")]),
        Mutant("sign of the surprise", "the surprise has the wrong sign: it is v minus the prediction", [("(v - S.T @ k)", "(S.T @ k - v)")]),
        Mutant("gate on the key", "the key was decayed instead of the memory", [(FORGET, "k = g.exp() * k\n")]),
        Mutant("in place", "the caller's memory was changed in place", [(FORGET, "S *= g.exp()[:, None]\n")]),
    ],
)  # fmt: skip

# ---- the two activations --------------------------------------------------------------------------


def logits(T: int = 3, HV: int = 2, K: int = 5, *more, size: float = 3.0):
    return lambda draw: (
        size * draw.normal(T, HV, K),
        draw.uniform(-1, 2, HV),
        draw.normal(HV, K),
        *more,
    )


HEADS = "A_log has one number a head, [HV]; the channels of a head share it."
SOFTPLUS_GATE = Exercise(
    "softplus_gate",
    outputs=("g",),
    cases=[
        Case("shape", logits(), shape(), "One gate for each token, head and channel.", "(HV,1)·(T,HV,K) -> (T,HV,K)."),
        Case("finite", logits(), finite(), "exp of A_log and the softplus are finite for all inputs that occur.", "No logarithm of anything below 0."),
        Case("hand-worked", lambda _: (t(0, 3).log1p().view(1, 1, 2), t(2).log(), -t(1, 1).log().view(1, 2)), close(1e-12),
             "softplus(log 1) = log 2 and softplus(log 4) = log 5; the rate is 2.", "log(1 + e^x) by hand, then times -2.",
             expect=-2 * t(2, 5).log().view(1, 1, 2)),
        Case("algebra", logits(4, 3, 6), close(1e-10), "g = -exp(A_log) softplus(raw + dt_bias).", "Which of the two parameters stands inside the softplus?"),
        Case("as many heads as channels", logits(3, 4, 4), close(1e-10), HEADS, "A_log.exp()[:, None]: [HV,1]."),
        Case("large logits", logits(2, 2, 3, size=200.0), close(1e-6), "A strong gate is a large number, not infinity: for large x the softplus is x.",
             "log(1 + exp(x)) overflows in fp32 from x = 89 on; F.softplus does not.", dtype=torch.float32),
        Case("inputs unmodified", logits(), unmodified(), "The parameters are trained: nobody else may change them.", "raw + dt_bias, not raw += dt_bias."),
    ],
    mutants=[
        Mutant("A_log as the rate", "A_log was used as the rate itself: it is a logarithm", [("A_log.exp()", "A_log")]),
        Mutant("slow for fast", "the rate is upside down: exp(-A_log)", [("A_log.exp()", "(-A_log).exp()")]),
        Mutant("no rate", "A_log is not used", [("-rate * F", "-F")]),
        Mutant("positive", "the minus sign is missing: the memory would grow", [("-rate", "rate")]),
        Mutant("no bias", "dt_bias is not used", [("raw + dt_bias", "raw")]),
        Mutant("bias subtracted", "dt_bias was subtracted", [("raw + dt_bias", "raw - dt_bias")]),
        Mutant("bias outside", "dt_bias was added after the softplus", [("F.softplus(raw + dt_bias)", "(F.softplus(raw) + dt_bias)")]),
        Mutant("rate inside", "the rate stands inside the softplus", [("-rate * F.softplus(raw + dt_bias)", "-F.softplus(rate * (raw + dt_bias))")]),
        Mutant("rate along the channels", "A_log was laid along the channels: it has one number a head", [("[:, None]", "[None, :]")]),
        Mutant("sigmoid", "a sigmoid was used for the softplus", [("F.softplus(", "torch.sigmoid(")]),
        Mutant("relu", "a relu was used for the softplus: it is 0 for half of all inputs", [("F.softplus(", "F.relu(")]),
        Mutant("overflows", "the softplus was written as log(1 + exp(x)), which overflows", [("F.softplus(raw + dt_bias)", "(1 + (raw + dt_bias).exp()).log()")]),
        Mutant("alpha", "alpha came back, not its logarithm g", [("-rate * F.softplus(raw + dt_bias)", "(-rate * F.softplus(raw + dt_bias)).exp()")]),
        Mutant("in place", "the caller's logits were changed in place", [("F.softplus(raw + dt_bias)", "F.softplus(raw.add_(dt_bias))")]),
    ],
)  # fmt: skip

INSIDE = "torch.sigmoid(rate * (raw + dt_bias))"
SIGMOID_GATE = Exercise(
    "sigmoid_gate",
    outputs=("g",),
    cases=[
        Case("shape", logits(3, 2, 5, -5.0), shape(), "One gate for each token, head and channel.", "(HV,1)·(T,HV,K) -> (T,HV,K)."),
        Case("finite", logits(3, 2, 5, -5.0), finite(), "A sigmoid is finite for every input.", "No division and no logarithm."),
        Case("hand-worked", lambda _: (t(0, 3).log1p().view(1, 1, 2), t(0), t(0, 0).view(1, 2), -5.0), close(1e-12),
             "sigmoid(log 1) = 1/2 and sigmoid(log 4) = 4/5, times -5.", "e^x / (1 + e^x) by hand.",
             expect=t(-2.5, -4).view(1, 1, 2)),
        Case("algebra", logits(4, 3, 6, -5.0), close(1e-10), "g = lower_bound sigmoid(exp(A_log) (raw + dt_bias)).", "The rate multiplies the sum, inside the sigmoid."),
        Case("another bound", logits(4, 3, 6, -2.0), close(1e-10), "lower_bound is an argument.", "Is there a 5 in your code?"),
        Case("as many heads as channels", logits(3, 4, 4, -5.0), close(1e-10), HEADS, "A_log.exp()[:, None]: [HV,1]."),
        Case("inputs unmodified", logits(3, 2, 5, -5.0), unmodified(), "The parameters are trained: nobody else may change them.", "raw + dt_bias, not raw += dt_bias."),
        Case("precision", logits(3, 2, 5, -5.0), close(1e-6), "fp32 in, fp32 out.", "Keep the dtype of the arguments.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("A_log as the rate", "A_log was used as the rate itself: it is a logarithm", [("A_log.exp()", "A_log")]),
        Mutant("slow for fast", "the rate is upside down: exp(-A_log)", [("A_log.exp()", "(-A_log).exp()")]),
        Mutant("no rate", "A_log is not used", [("sigmoid(rate * (raw", "sigmoid((raw")]),
        Mutant("rate outside", "the rate stands outside the sigmoid: the bound no longer holds", [(INSIDE, "rate * torch.sigmoid(raw + dt_bias)")]),
        Mutant("rate on raw only", "the rate multiplies raw but not dt_bias", [("rate * (raw + dt_bias)", "rate * raw + dt_bias")]),
        Mutant("no bias", "dt_bias is not used", [("rate * (raw + dt_bias)", "rate * raw")]),
        Mutant("bias subtracted", "dt_bias was subtracted", [("rate * (raw + dt_bias)", "rate * (raw - dt_bias)")]),
        Mutant("always five", "-5 was written into the code: the bound is an argument", [("lower_bound * torch", "-5.0 * torch")]),
        Mutant("no bound", "the bound is not used: g stays above -1", [("lower_bound * torch", "-torch")]),
        Mutant("positive", "the sign of the bound was lost: the memory would grow", [("lower_bound * torch", "-lower_bound * torch")]),
        Mutant("upside down", "a large raw value keeps the memory: it must close the gate", [("torch.sigmoid(rate", "torch.sigmoid(-rate")]),
        Mutant("tanh", "a tanh was used for the sigmoid", [("torch.sigmoid(", "torch.tanh(")]),
        Mutant("clamped softplus", "a softplus was clamped at the bound: its gradient is 0 there", [("lower_bound * " + INSIDE, "(-rate * F.softplus(raw + dt_bias)).clamp(min=lower_bound)")]),
        Mutant("rate along the channels", "A_log was laid along the channels: it has one number a head", [("[:, None]", "[None, :]")]),
        Mutant("alpha", "alpha came back, not its logarithm g", [("lower_bound * " + INSIDE, "(lower_bound * " + INSIDE + ").exp()")]),
        Mutant("in place", "the caller's logits were changed in place", [("rate * (raw + dt_bias)", "rate * raw.add_(dt_bias)")]),
    ],
)  # fmt: skip

EXERCISES = [DECAY, HALF_LIFE, GATED_STEP, SOFTPLUS_GATE, SIGMOID_GATE]
