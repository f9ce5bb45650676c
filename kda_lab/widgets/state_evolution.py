"""State evolution: one stream of tokens, and what four rules keep of it in S.

The four rules, on the same k, v `[T,K]`, `[T,V]`, with S `[K,V]`:

    linear   S <- S + k v^T
    delta    S <- S + beta k (v - S^T k)^T
    gated    the same after S <- alpha S          one alpha a token (Gated DeltaNet)
    kda      the same after S <- Diag(alpha) S    one alpha a channel
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import traitlets as t
from matplotlib.figure import Figure

from kda_lab import example, palette
from kda_lab.widgets.base import CourseWidget, check_choice, check_range, module

MODES = {
    "linear": ("Linear attention", "S + k vᵀ"),
    "delta": ("Delta rule", "S + β k (v − Sᵀk)ᵀ"),
    "gated": ("Gated delta rule", "α S first, then delta"),
    "kda": ("KDA", "Diag(α) S first, then delta"),
}
BETA_MAX = 2.0


@dataclass(frozen=True)
class Story:
    """A stream of tokens and what a good memory should answer after each.

    k `[T,K]`, v `[T,V]`, g `[T,K]` log decay per channel, g_scalar `[T]` log decay where one number
    must do for all channels. `texts` describes the tokens, `pairs` names the stored pairs, `keys`
    `[P,K]` are their keys, and `wanted` `[T,P]` is the token that wrote the value to be recalled:
    -1 before the pair was written, -2 once it is to be forgotten.
    """

    k: np.ndarray
    v: np.ndarray
    g: np.ndarray
    g_scalar: np.ndarray
    texts: tuple[str, ...]
    pairs: tuple[str, ...]
    keys: np.ndarray
    wanted: np.ndarray
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def T(self) -> int:
        return self.k.shape[0]

    @property
    def K(self) -> int:
        return self.k.shape[1]

    @property
    def V(self) -> int:
        return self.v.shape[1]


def example_story() -> Story:
    """The waiter and the four orders of `kda_lab.example`."""
    x = example.inputs("channel")
    k, v, g = (x[name][0, :, 0].numpy() for name in "kvg")
    wanted = np.full((len(example.TOKENS), 4), -1)
    for now, token in enumerate(example.TOKENS):
        if now:
            wanted[now] = wanted[now - 1]
        if token.pays:
            gone = list(example.TABLES[token.pays])
            wanted[now, gone] = np.where(wanted[now, gone] >= 0, -2, wanted[now, gone])
        if token.guest:
            wanted[now, example.GUESTS.index(token.guest)] = now
    return Story(
        k, v, g, g.min(1), tuple(token.text for token in example.TOKENS), example.GUESTS,
        example.K_GUESTS.numpy(), wanted, tuple(f"k{c}" for c in range(4)), example.DRINKS,
    )  # fmt: skip


def random_story(T: int = 32, K: int = 128, V: int = 128, pairs: int = 12, seed: int = 0) -> Story:
    """Random unit keys and values at a kernel's size, each pair written about T/pairs times.

    The channels forget at speeds from half-life 1000 tokens (channel 0) to 2 (the last).
    """
    check_range("pairs", pairs, 1, 24)
    rng = np.random.default_rng(seed)
    keys, values = rng.normal(size=(pairs, K)), rng.normal(size=(T, V))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    who = np.arange(T) % pairs
    wanted = np.array([[max(np.flatnonzero(who[: n + 1] == p), default=-1) for p in range(pairs)]
                       for n in range(T)])  # fmt: skip
    g = np.tile(-np.log(2) / np.geomspace(1000, 2, K), (T, 1))
    texts = tuple(f"pair {p + 1} written" for p in who)
    names = tuple(str(p + 1) for p in range(pairs))
    return Story(keys[who], values, g, g.mean(1), texts, names, keys, wanted)


def evolve(story: Story, mode: str, beta: float = 1.0, dead: int = -1) -> np.ndarray:
    """States after each token, `[T,K,V]` fp64.

    dead: a channel whose alpha is 0 at every token. A rule with a single alpha can only follow by
    forgetting everything; a rule without a gate ignores it.
    """
    check_choice("mode", mode, tuple(MODES))
    check_range("beta", beta, 0, BETA_MAX)
    check_range("dead", dead, -1, story.K - 1)
    S, states = np.zeros((story.K, story.V)), np.empty((story.T, story.K, story.V))
    for now in range(story.T):
        k, v = story.k[now], story.v[now]
        if mode == "gated":
            S = S * (0.0 if dead >= 0 else np.exp(story.g_scalar[now]))
        if mode == "kda":
            alpha = np.exp(story.g[now])
            if dead >= 0:
                alpha[dead] = 0.0
            S = alpha[:, None] * S
        u = v if mode == "linear" else beta * (v - S.T @ k)
        states[now] = S = S + np.outer(k, u)
    return states


def recall(story: Story, S: np.ndarray, now: int) -> tuple[np.ndarray, np.ndarray]:
    """How much of each wanted value the state `[K,V]` returns, and how much else comes with it.

    Both `[P]`. With r = S^T k and wanted value v: hit = <r,v>/<v,v> (1 is exact) and
    leak = |r - hit v| / |v|. A pair to be forgotten has no hit; all that it still returns is leak.
    A pair not yet written has neither.
    """
    hit, leak = np.zeros(len(story.pairs)), np.zeros(len(story.pairs))
    for p, source in enumerate(story.wanted[now]):
        r = S.T @ story.keys[p]
        if source >= 0:
            v = story.v[source]
            hit[p] = r @ v / (v @ v)
            leak[p] = np.linalg.norm(r - hit[p] * v) / np.linalg.norm(v)
        elif source == -2:
            leak[p] = np.linalg.norm(r)
    return hit, leak


class StateEvolution(CourseWidget):
    """S under each of the `modes` side by side, token by token.

    modes: names out of linear, delta, gated, kda, shown in that order.
    story: the tokens; the running example unless given.
    token, beta, dead: where the controls stand at first (token counts from 1; 0 is the last).
    """

    _esm = module("state_evolution")
    story_info = t.Dict().tag(sync=True)
    story_data = t.Bytes().tag(sync=True)
    modes = t.List(t.Unicode()).tag(sync=True)
    token = t.Int().tag(sync=True)
    beta = t.Float().tag(sync=True)
    dead = t.Int().tag(sync=True)

    def __init__(
        self,
        modes: tuple[str, ...] = tuple(MODES),
        story: Story | None = None,
        token: int = 0,
        beta: float = 1.0,
        dead: int = -1,
    ):
        for mode in modes:
            check_choice("modes", mode, tuple(MODES))
        self.story = example_story() if story is None else story
        check_range("token", token, 0, self.story.T)
        check_range("beta", beta, 0, BETA_MAX)
        check_range("dead", dead, -1, self.story.K - 1)
        s = self.story
        numbers = (s.k, s.v, s.g, s.g_scalar, s.keys)
        super().__init__(
            reading="Each square is the memory S: a row is a key channel, a column a value "
            "channel, purple above zero and amber below, and the bars on its right say how much "
            "each row holds. Below, a pair that is recalled exactly fills its bar to the line at "
            "1; the red bar is what comes back besides.",
            modes=[m for m in MODES if m in modes],
            token=token or s.T,
            beta=beta,
            dead=dead,
            story_data=np.concatenate([np.ravel(x) for x in numbers]).astype("<f8").tobytes(),
            story_info={
                "T": s.T, "K": s.K, "V": s.V, "P": len(s.pairs), "texts": s.texts,
                "pairs": s.pairs, "wanted": s.wanted.ravel().tolist(), "rows": s.rows,
                "columns": s.columns, "titles": MODES, "beta_max": BETA_MAX,
            },
        )  # fmt: skip

    def states(self) -> dict[str, np.ndarray]:
        """The states `[T,K,V]` of each mode at the present controls."""
        return {m: evolve(self.story, m, self.beta, self.dead) for m in self.modes}

    def figure(self) -> Figure:
        s, states, now = self.story, self.states(), self.token - 1
        high = max(np.abs(x).max() for x in states.values()) / (1 if s.rows else 3)
        fig, axes = plt.subplots(
            2, len(self.modes), figsize=(2.5 * len(self.modes) + 0.5, 4.6), squeeze=False,
            height_ratios=[3, 2],
        )  # fmt: skip
        for (mode, S), top, bottom in zip(states.items(), *axes, strict=True):
            top.imshow(S[now], cmap=palette.diverging(), vmin=-high, vmax=high)
            top.set_title(f"{MODES[mode][0]}\n{MODES[mode][1]}", fontsize=9)
            if s.rows:
                top.set_xticks(range(s.V), s.columns, fontsize=8)
                top.set_yticks(range(s.K), s.rows, fontsize=8)
                for (c, d), x in np.ndenumerate(S[now]):
                    ink = "white" if abs(x) > 0.6 * high else palette.SURFACE["light"]["ink"]
                    top.text(d, c, f"{x:.2f}".rstrip("0").rstrip("."), ha="center", va="center",
                             fontsize=8, color=ink)  # fmt: skip
            else:
                top.set(xlabel="value channel", ylabel="key channel")
            _draw_recall(bottom, s, S[now], now)
        fig.suptitle(f"After token {self.token}: {s.texts[now]}   (β = {self.beta:g})", fontsize=10)
        return fig

    def alt(self) -> str:
        s, now = self.story, self.token - 1
        parts = []
        for mode, S in self.states().items():
            hit, leak = recall(s, S[now], now)
            there = [p for p, source in enumerate(s.wanted[now]) if source != -1]
            each = [f"{s.pairs[p]} {hit[p]:.2f}" for p in there]
            each = [x + f" with {leak[p]:.2f} besides" * int(leak[p] > 0.005)
                    for x, p in zip(each, there, strict=True)]  # fmt: skip
            if len(there) > 4:
                each = [f"{hit[there].mean():.2f} of a pair on average"]
            parts.append(f"{MODES[mode][0]} recalls {', '.join(each)}")
        what = f"The state S as a heat map after token {self.token}, {s.texts[now]}."
        return f"{what} {'; '.join(parts)}."


def _draw_recall(ax, story: Story, S: np.ndarray, now: int) -> None:
    hit, leak = recall(story, S, now)
    y = np.arange(len(story.pairs))
    ax.barh(y - 0.18, hit, 0.36, color=palette.PAIRS["light"] if len(y) <= 4 else palette.VALUES)
    ax.barh(y + 0.2, leak, 0.24, color=palette.ERROR)
    ax.axvline(1, color=palette.REFERENCE, lw=1)
    ax.set_yticks(y, story.pairs, fontsize=8)
    ax.set(ylim=(len(y) - 0.5, -0.5), xlim=(min(0, hit.min()), max(1.5, hit.max(), leak.max())))
    ax.set_xlabel("recalled (1 is exact); red: besides", fontsize=8)
