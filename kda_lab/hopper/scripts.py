"""Warps as lists of instructions: what the exercises of notebook 13 hand in, and how it is run.

An instruction is a tuple: a word and its arguments, as in ("wait", "empty", 0, 1). The same words
name methods and functions of the simulator.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kda_lab.hopper.explain import Problem
from kda_lab.hopper.simulator import (
    Block,
    fence_proxy_async,
    simulate,
    store_wait,
    tma_load,
    tma_store,
    work,
)

WIDTH = 8  # numbers in a tile
WORDS = {  # word: the kinds of its arguments
    "wait": (str, int, int),
    "arrive": (str, int),
    "arrive_expect_tx": (str, int, int),
    "tma_load": (int, int),
    "read": (int,),
    "work": (),
    "write": (int,),
    "stage_out": (int,),
    "fence_proxy_async": (),
    "sync": (str,),
    "tma_store": (int,),
    "store_wait": (),
}
Script = Sequence[tuple]


def form_problem(script: object, words: Iterable[str]) -> str | None:
    """What is wrong with the form of a script that may use these words, or None."""
    if not isinstance(script, list | tuple):
        return f"a program must be a list of instructions, not {type(script).__name__}"
    usage = "; ".join(words)
    for i, x in enumerate(script):
        if not isinstance(x, list | tuple) or not x or x[0] not in words:
            return f"instruction {i} is {x!r}; it must be a tuple that starts with one of {usage}"
        kinds = WORDS[x[0]]
        right = len(x) == 1 + len(kinds) and all(
            isinstance(a, k) and not isinstance(a, bool) for a, k in zip(x[1:], kinds, strict=True)
        )
        if not right:
            names = ", ".join(k.__name__ for k in kinds)
            return f"instruction {i} is {x!r}; after {x[0]!r} must come ({names})"
    return None


def tiles_of(count: int) -> np.ndarray:
    """[count, WIDTH]: the tiles that every pipeline of the exercises squares."""
    return np.arange(1, count * WIDTH + 1, dtype=np.float32).reshape(count, WIDTH)


def pipeline(producer: Script, consumer: Script, tiles: int, stages: int) -> Callable:
    """A program: a producer loads tiles into a ring, a consumer squares them into `out`."""

    def program(block: Block) -> None:
        x = block.global_memory("x", tiles_of(tiles))
        out = block.global_memory("out", np.zeros((tiles, WIDTH), np.float32))
        ring = block.shared_memory("ring", (stages, WIDTH))
        full = block.mbarriers("full", stages, arrivals=1)
        empty = block.mbarriers("empty", stages, arrivals=1)
        names = {"x": x, "out": out, "ring": ring, "full": full, "empty": empty}
        block.warp("producer", play(producer, names))
        block.warp("consumer", play(consumer, names))

    return program


def staging(math: Script, store: Script, tiles: int) -> Callable:
    """A program: a math warp puts squares into one shared tile, a store warp sends it off by TMA."""

    def program(block: Block) -> None:
        x = block.global_memory("x", tiles_of(tiles))
        out = block.global_memory("out", np.zeros((tiles, WIDTH), np.float32))
        tile = block.shared_memory("tile", WIDTH)
        names: dict[str, object] = {"x": x, "out": out, "tile": tile}
        for name in ("ready", "free"):
            names[name] = block.named_barrier(name, warps=2)
        block.warp("math", play(math, names))
        block.warp("store", play(store, names))

    return program


def play(script: Script, names: dict):
    """The warp that a script describes."""
    tile = None
    for word, *args in script:
        if word in ("wait", "arrive", "arrive_expect_tx"):
            name, stage, *more = args
            yield getattr(names[name][stage], word)(*more)
        elif word == "tma_load":
            i, stage = args
            yield tma_load(names["x"][i], names["ring"][stage], names["full"][stage])
        elif word == "read":
            tile = yield names["ring"][args[0]].read()
        elif word == "work":
            yield work("square", 150)
            tile = None if tile is None else tile**2
        elif word == "write":
            yield names["out"][args[0]].write(np.nan if tile is None else tile)
        elif word == "stage_out":
            values = yield names["x"][args[0]].read()
            yield names["tile"].write(values**2)
        elif word == "fence_proxy_async":
            yield fence_proxy_async()
        elif word == "sync":
            yield names[args[0]].sync()
        elif word == "tma_store":
            yield tma_store(names["tile"], names["out"][args[0]])
        elif word == "store_wait":
            yield store_wait()


def first_problem(program: Callable, tiles: int, seeds: Iterable[int]) -> Problem | str | None:
    """The first thing that goes wrong under these schedules; a text when an index does not exist."""
    want = {"out": tiles_of(tiles) ** 2}
    for seed in seeds:
        try:
            run = simulate(program, seed, want)
        except (IndexError, ValueError) as error:
            return str(error)
        if not run.ok:
            return run.problems[0]
    return None
