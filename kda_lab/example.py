"""The running example: a waiter remembers four orders, from notebook 01 to the last kernel.

A guest is a key, the drink a value. Ada and Ben sit at table one, in channels 0 and 1 of the keys,
and are easily mixed up: their keys overlap by 0.6. Cleo and Dev sit at table two, in channels 2 and
3, and nobody confuses them. Every number can be checked by hand.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

GUESTS = ("Ada", "Ben", "Cleo", "Dev")  # colours: kda_lab.palette.PAIRS, in this order
DRINKS = ("tea", "coffee", "cola", "water")
TABLES = {"one": (0, 1), "two": (2, 3)}  # table -> its key channels
K_GUESTS = torch.tensor(  # one unit key a row, [4,4]
    [[1.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
    dtype=torch.float64,
)
V_DRINKS = torch.eye(4, dtype=torch.float64)  # tea is channel 0 of v, and so on
FORGET = 1 / 8  # what is left of a memory once the waiter lets it go


class Token(NamedTuple):
    """One time step: an order, or a table that pays; then somebody asks what a guest drinks."""

    text: str
    guest: str | None
    drink: str | None
    pays: str | None
    asked: str


def _order(guest: str, drink: str, asked: str) -> Token:
    return Token(f"{guest}: {drink}", guest, drink, None, asked)


TOKENS = (
    _order("Ada", "tea", asked="Ada"),
    _order("Ben", "coffee", asked="Ada"),
    _order("Cleo", "cola", asked="Cleo"),
    _order("Dev", "water", asked="Cleo"),
    _order("Ada", "water", asked="Ada"),  # she changes her mind
    _order("Ben", "coffee", asked="Ada"),  # he says it again
    Token("table one pays", None, None, "one", asked="Dev"),
    _order("Ben", "cola", asked="Cleo"),  # a new round at table one
)
GATES = ("none", "scalar", "channel")


def inputs(
    gate: str = "channel",
    beta: float = 1.0,
    dtype: torch.dtype = torch.float64,
    K: int = 4,
    V: int = 4,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """The eight tokens as arguments of `kda_lab.chunk_kda`: q k v g beta and scale 1.

    gate: "none" never forgets; "scalar" has one decay for all channels, so that letting table one
    go lets table two go too; "channel" lets only the channels of table one go (KDA).
    beta: strength of every write, in (0, 2).
    K, V: 4 or more; further channels are zero and change nothing: for kernels of fixed size.
    Shapes: q, k, g `[1,8,1,K]`, v `[1,8,1,V]`, beta `[1,8,1]`. The paying token has k = v = 0.
    """
    if gate not in GATES:
        raise ValueError(f"gate: {gate!r} is not one of {', '.join(GATES)}")
    if min(K, V) < 4:
        raise ValueError(f"K and V must be 4 or more, were {K} and {V}")
    T = len(TOKENS)
    q, k, g = (torch.zeros(1, T, 1, K, dtype=torch.float64) for _ in range(3))
    v = torch.zeros(1, T, 1, V, dtype=torch.float64)
    for t, token in enumerate(TOKENS):
        q[0, t, 0, :4] = K_GUESTS[GUESTS.index(token.asked)]
        if token.guest is not None and token.drink is not None:
            k[0, t, 0, :4] = K_GUESTS[GUESTS.index(token.guest)]
            v[0, t, 0, :4] = V_DRINKS[DRINKS.index(token.drink)]
        if token.pays is not None and gate == "scalar":
            g[0, t, 0, :] = math.log(FORGET)
        if token.pays is not None and gate == "channel":
            g[0, t, 0, list(TABLES[token.pays])] = math.log(FORGET)
    b = torch.full((1, T, 1), float(beta), dtype=torch.float64)
    tensors = {name: x.to(device, dtype) for name, x in zip("qkvg", (q, k, v, g), strict=True)}
    return tensors | {"beta": b.to(device, dtype), "scale": 1.0}


def recall(S: Tensor) -> Tensor:
    """What the state answers to each guest: row i is S^T k_i. S `[..., K, V]` -> `[..., 4, V]`."""
    keys = torch.zeros(4, S.shape[-2], dtype=S.dtype, device=S.device)
    keys[:, :4] = K_GUESTS
    return keys @ S


def orders(t: int) -> dict[str, str]:
    """What each guest wants after token t (0 is the first): the answer that a good memory gives."""
    wanted: dict[str, str] = {}
    for token in TOKENS[: t + 1]:
        if token.pays is not None:
            for channel in TABLES[token.pays]:
                wanted.pop(GUESTS[channel], None)
        if token.guest is not None and token.drink is not None:
            wanted[token.guest] = token.drink
    return wanted
