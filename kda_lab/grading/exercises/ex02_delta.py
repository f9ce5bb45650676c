"""Cases and wrong versions of `ex02_delta`: erase, correct, and three ways to see it."""

import torch
from torch import Tensor

from kda_lab.grading.spec import Case, Draw, Exercise, Mutant, close, finite, shape, unmodified


def t(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


# ---- erase ----------------------------------------------------------------------------------------


def memory_and_key(K: int = 5, V: int = 3, beta: float = 0.7):
    return lambda draw: (draw.normal(K, V), draw.unit(K), beta)


ERASE = Exercise(
    "erase",
    outputs=("S",),
    cases=[
        Case("shape", memory_and_key(), shape(), "The memory keeps its shape [K,V].", "(K,1)·(1,V) -> (K,V)."),
        Case("finite", memory_and_key(), finite(), "Products and sums of finite numbers.", "No division is needed."),
        Case("hand-worked", lambda _: (torch.stack([t(1, 0), t(0, 2)]), t(0.6, 0.8), 0.5), close(1e-12),
             "The memory says (0.6, 1.6) about k; half of it is taken out under k.", "Write the answer down first, then the outer product.",
             expect=torch.stack([t(0.82, -0.48), t(-0.24, 1.36)])),
        Case("beta = 1", memory_and_key(4, 4, 1.0), close(1e-10), "With beta = 1 nothing is left under k: asking again gives 0.", "Print S_new.T @ k."),
        Case("K != V", memory_and_key(7, 2), close(1e-10), "The key lives on the rows.", "Mark both axes of your product."),
        Case("inputs unmodified", memory_and_key(), unmodified(), "The caller may still need the memory.", "S - ..., not S -= ... ."),
    ],
    mutants=[
        Mutant("no beta", "beta is not used", [("beta * k[:, None]", "k[:, None]")]),
        Mutant("beta squared", "beta was used twice", [("beta * k", "beta**2 * k")]),
        Mutant("adds", "the answer was added again instead of taken out", [("S - beta", "S + beta")]),
        Mutant("everything", "the whole memory faded, not only what belongs to k", [("S - beta * k[:, None] * old[None, :]", "(1 - beta) * S")]),
        Mutant("rows by key", "rows were faded by the size of the key: that forgets other keys too", [("S - beta * k[:, None] * old[None, :]", "S * (1 - beta * k * k)[:, None]")]),
        Mutant("answer only", "only the outer product came back", [("return S - beta", "return -beta")]),
        Mutant("key missing", "the answer was taken out of every row alike", [("beta * k[:, None] * old", "beta * torch.ones_like(k)[:, None] * old")]),
        Mutant("not asked", "the memory was not asked: the sum of its rows was used", [("old = S.T @ k", "old = S.sum(0)")]),
        Mutant("absolute key", "the sign of the key was lost", [("beta * k[:, None]", "beta * k.abs()[:, None]")]),
        Mutant("in place", "the caller's memory was changed in place", [("return S - beta * k[:, None] * old[None, :]", "S -= beta * k[:, None] * old[None, :]\n    return S")]),
    ],
)  # fmt: skip

# ---- delta_step and gradient_step -----------------------------------------------------------------


def pair(K: int = 5, V: int = 3, beta: float = 0.7, unit: bool = True):
    return lambda draw: (draw.normal(K, V), draw.unit(K) if unit else draw.normal(K), draw.normal(V), beta)


def step_cases(on_paper: str) -> list[Case]:
    return [
        Case("shape", pair(), shape(), "The memory keeps its shape [K,V].", "(K,1)·(1,V) -> (K,V)."),
        Case("finite", pair(), finite(), "Products and sums of finite numbers.", "No division is needed."),
        Case("hand-worked", lambda _: (torch.stack([t(1, 0), t(0, 2)]), t(0.6, 0.8), t(1.6, 0.6), 0.5), close(1e-12),
             "The memory says (0.6, 1.6), is told (1.6, 0.6): half of (1, -1) is written under k.", on_paper,
             expect=torch.stack([t(1.3, -0.3), t(0.4, 1.6)])),
        Case("beta = 1", pair(4, 4, 1.0), close(1e-10), "With beta = 1 and a key of length 1, asking again gives v exactly.", "Print S_new.T @ k beside v."),
        Case("any key", pair(6, 3, 0.4, unit=False), close(1e-10), "The formula holds for keys of any length.", "Nothing is divided by the key's length."),
        Case("K != V", pair(7, 2), close(1e-10), "The key lives on the rows, v on the columns.", "Mark both axes of your product."),
        Case("inputs unmodified", pair(), unmodified(), "The caller may still need the memory.", "Make a new tensor; no S += ... ."),
    ]  # fmt: skip


DELTA_STEP = Exercise(
    "delta_step",
    outputs=("S",),
    cases=step_cases("Surprise first, then the outer product."),
    mutants=[
        Mutant("no erase", "v was written without taking the old answer out", [("(v - S.T @ k)", "v")]),
        Mutant("no write", "the old answer was taken out, but v not written", [("(v - S.T @ k)", "(-(S.T @ k))")]),
        Mutant("sign", "the surprise has the wrong sign: it is v minus the old answer", [("(v - S.T @ k)", "(S.T @ k - v)")]),
        Mutant("no beta", "beta is not used", [("beta * (v", "(v")]),
        Mutant("beta on the write only", "beta scales v but not the erased part", [("beta * (v - S.T @ k)", "beta * v - S.T @ k")]),
        Mutant("beta on the erase only", "beta scales the erased part but not v", [("beta * (v - S.T @ k)", "v - beta * (S.T @ k)")]),
        Mutant("replaced", "the memory was replaced by the correction", [("return S + k", "return k")]),
        Mutant("everything fades", "the whole memory faded, not only what belongs to k", [("return S + k[:, None] * u[None, :]", "return (1 - beta) * S + beta * k[:, None] * v[None, :]")]),
        Mutant("key normalised", "the surprise was divided by the key's length squared", [("beta * (v", "beta / (k @ k) * (v"), ]),
        Mutant("in place", "the caller's memory was changed in place", [("return S + k[:, None] * u[None, :]", "S += k[:, None] * u[None, :]\n    return S")]),
    ],
)  # fmt: skip

GRADIENT_STEP = Exercise(
    "gradient_step",
    outputs=("S",),
    cases=step_cases("Print the gradient beside the outer product of k and S^T k - v."),
    mutants=[
        Mutant("uphill", "the step went up the gradient", [("S - beta", "S + beta")]),
        Mutant("factor two", "the loss lacks its 1/2: the step is twice too long", [("0.5 * (S", "(S")]),
        Mutant("mean", "the loss is a mean over channels, not a sum", [(".square().sum()", ".square().mean()")]),
        Mutant("no step size", "beta is not used", [("S - beta * gradient", "S - gradient")]),
        Mutant("gradient only", "the gradient itself came back", [("(S - beta * gradient)", "gradient")]),
        Mutant("target ignored", "v is not in the loss: the memory only unlearns", [("(S.T @ k - v)", "(S.T @ k)")]),
        Mutant("no square", "the loss is not squared", [(".square().sum()", ".sum()")]),
        Mutant("normalised gradient", "the gradient was brought to length 1", [("S - beta * gradient", "S - beta * gradient / gradient.norm()")]),
        Mutant("cubed", "the loss has the wrong power", [(".square().sum()", ".abs().pow(3).sum()")]),
        Mutant("in place", "the caller's memory was changed in place", [("S = S.detach().clone().requires_grad_()", "S0 = S\n    S = S.detach().clone().requires_grad_()"), ("return (S - beta * gradient).detach()", "return S0.sub_(beta * gradient)")]),
    ],
)  # fmt: skip

# ---- householder ----------------------------------------------------------------------------------


def key(K: int = 5, beta: float = 0.7):
    return lambda draw: (draw.unit(K), beta)


HOUSEHOLDER = Exercise(
    "householder",
    outputs=("A",),
    cases=[
        Case("shape", key(), shape(), "It multiplies S from the left: [K,K].", "(K,1)·(1,K) -> (K,K)."),
        Case("finite", key(), finite(), "Products and sums of finite numbers.", "No division is needed."),
        Case("hand-worked", lambda _: (t(0.6, 0.8), 0.5), close(1e-12), "1 - 0.5 * 0.36 = 0.82, -0.5 * 0.48 = -0.24, 1 - 0.5 * 0.64 = 0.68.",
             "Write the outer product of k with itself first.", expect=torch.stack([t(0.82, -0.24), t(-0.24, 0.68)])),
        Case("algebra", key(6, 0.3), close(1e-12), "A S must equal erase(S, k, beta).", "Try it on a random S."),
        Case("reflection", key(4, 2.0), close(1e-12), "With beta = 2 the direction k changes its sign and A A = I.", "Print A @ k beside k."),
        Case("inputs unmodified", key(), unmodified(), "k is used again.", "No in-place operation on k."),
    ],
    mutants=[
        Mutant("plus", "the outer product was added", [("eye - beta", "eye + beta")]),
        Mutant("no beta", "beta is not used", [("beta * k[:, None]", "k[:, None]")]),
        Mutant("always two", "2 was used instead of beta: that is a reflection", [("beta * k", "2 * k")]),
        Mutant("beta doubled", "beta was doubled", [("beta * k", "2 * beta * k")]),
        Mutant("no identity", "the identity is missing", [("eye - beta", "-beta")]),
        Mutant("projection only", "this keeps the direction k and drops the rest", [("eye - beta * k[:, None] * k[None, :]", "beta * k[:, None] * k[None, :]")]),
        Mutant("diagonal only", "only the diagonal of the outer product was used", [("k[:, None] * k[None, :]", "(k * k).diag()")]),
        Mutant("scaled identity", "the identity was scaled too", [("eye - beta", "(1 - beta) * eye - beta")]),
        Mutant("absolute key", "the sign of the key was lost", [("k[:, None] * k[None, :]", "k.abs()[:, None] * k.abs()[None, :]")]),
        Mutant("dot product", "k.k was used, a number, in place of the outer product", [("k[:, None] * k[None, :]", "(k @ k)")]),
        Mutant("beta squared", "beta was used twice", [("beta * k", "beta**2 * k")]),
    ],
)  # fmt: skip

# ---- delta_rule -----------------------------------------------------------------------------------


def sequence(T: int = 6, K: int = 4, V: int = 3, state: bool = True):
    def make(draw: Draw) -> tuple:
        S = draw.normal(K, V)
        return draw.unit(T, K), draw.unit(T, K), draw.normal(T, V), draw.uniform(0.2, 0.9, T), 0.6, S if state else 0 * S

    return make


def by_hand(_: Draw) -> tuple:
    return t(1, 2)[:, None], t(1, 1)[:, None], t(4, 8)[:, None], t(1, 0.5), 0.5, t(2)[:, None]


DELTA_RULE = Exercise(
    "delta_rule",
    outputs=("o", "S"),
    cases=[
        Case("shape", sequence(), shape(), "One answer for each token, one memory at the end.", "o has the shape of v."),
        Case("finite", sequence(), finite(), "Products and sums of finite numbers.", "Is every row of o filled?"),
        Case("hand-worked", by_hand, close(1e-12), "2 becomes 4, then 4 + (8 - 4)/2 = 6; the answers are 4/2 and 2 * 6/2.",
             "Follow the memory token by token on paper.", expect=(t(2, 6)[:, None], t(6)[:, None])),
        Case("algebra", sequence(9, 5, 5, state=False), close(1e-10), "Predict, correct, read, in this order.", "Call delta_step in a loop and compare token by token."),
        Case("initial memory", sequence(6, 4, 3), close(1e-10), "The sequence goes on from S.", "Start from S, not from zeros."),
        Case("K != V", sequence(7, 6, 2), close(1e-10), "Keys and queries on the rows, values on the columns.", "Mark every axis with T, K or V."),
        Case("inputs unmodified", sequence(), unmodified(), "The caller may use S again.", "S = S + ..., not S += ... ."),
        Case("precision", sequence(24, 8, 8), close(1e-5), "fp32 in, fp32 algebra.", "Keep the dtype of the arguments.", dtype=torch.float32),
    ],
    mutants=[
        Mutant("no erase", "this is linear attention: the old answer was not taken out", [("(v[t] - S.T @ k[t])", "v[t]")]),
        Mutant("read before write", "each token read before its correction", [("        u = beta", "        o[t] = scale * (S.T @ q[t])\n        u = beta"), ("u[None, :]\n        o[t] = scale * (S.T @ q[t])\n", "u[None, :]\n")]),
        Mutant("no beta", "beta is not used", [("beta[t] * ", "")]),
        Mutant("first beta", "the first beta was used for every token", [("beta[t]", "beta[0]")]),
        Mutant("no scale", "scale is not used", [("scale * (S.T", "(S.T")]),
        Mutant("starts from zeros", "it started from zeros, not from S", [("o = torch.empty_like(v)", "o, S = torch.empty_like(v), torch.zeros_like(S)")]),
        Mutant("asks with k", "the key was used as the question", [("@ q[t])", "@ k[t])")]),
        Mutant("predicts with q", "the query was used for the prediction", [("v[t] - S.T @ k[t]", "v[t] - S.T @ q[t]")]),
        Mutant("beta on the write only", "beta scales v but not the erased part", [("beta[t] * (v[t] - S.T @ k[t])", "beta[t] * v[t] - S.T @ k[t]")]),
        Mutant("tail dropped", "the last tokens were left out", [("range(len(q))", "range(len(q) // 4 * 4)"), ("empty_like", "zeros_like")]),
        Mutant("in place", "the caller's memory was changed in place", [("S = S + k[t][:, None] * u[None, :]", "S += k[t][:, None] * u[None, :]")]),
    ],
)  # fmt: skip

EXERCISES = [ERASE, DELTA_STEP, GRADIENT_STEP, HOUSEHOLDER, DELTA_RULE]
