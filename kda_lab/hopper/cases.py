"""Detective cases: short programs for the simulator, each with one flaw and the edit that mends it.

Read a case's program before running it. `kinds` is what the simulator may report first, whatever
the schedule (`wrong answer` when every barrier is right and only the numbers are not).
"""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kda_lab.hopper import simulator
from kda_lab.hopper.simulator import (
    Block,
    fence_proxy_async,
    store_wait,
    tma_load,
    tma_store,
    wgmma,
    work,
)

TILES, WIDTH = 9, 8
X = np.arange(1, TILES * WIDTH + 1, dtype=np.float32).reshape(TILES, WIDTH)
K = np.sin(X)  # [N,K] keys and values of a small memory
V = np.cos(X)  # [N,V]
S0 = np.arange(WIDTH * WIDTH, dtype=np.float32).reshape(WIDTH, WIDTH) / 16  # [K,V]


@dataclass(frozen=True)
class DetectiveCase:
    """A program with one flaw. symptom: what its author saw. mend: (wrong text, right text)."""

    name: str
    symptom: str
    program: Callable[[Block], None]
    expect: dict[str, np.ndarray]
    kinds: tuple[str, ...]
    mend: tuple[str, str]

    def source(self) -> str:
        """The program's text."""
        return textwrap.dedent(inspect.getsource(self.program))

    def mended(self) -> Callable[[Block], None]:
        """The program with the flaw mended."""
        text, (wrong, right) = self.source(), self.mend
        if text.count(wrong) != 1:
            raise ValueError(f"mend of case {self.name!r} must match its program exactly once")
        names = dict(globals())
        exec(text.replace(wrong, right), names)
        return names[self.program.__name__]


def wrong_phase(block: Block) -> None:
    x = block.global_memory("x", X)
    out = block.global_memory("out", np.zeros_like(X))
    ring = block.shared_memory("ring", (3, WIDTH))
    full = block.mbarriers("full", 3, arrivals=1)
    empty = block.mbarriers("empty", 3, arrivals=1)

    def producer():
        for i in range(TILES):
            yield empty[i % 3].wait(1 - i // 3 % 2)
            yield full[i % 3].arrive_expect_tx(ring[i % 3].nbytes)
            yield tma_load(x[i], ring[i % 3], full[i % 3])

    def consumer():
        for i in range(TILES):
            yield full[i % 3].wait(i % 2)
            tile = yield ring[i % 3].read()
            yield empty[i % 3].arrive()
            yield out[i].write(tile**2)

    block.warp("producer", producer())
    block.warp("consumer", consumer())


def missing_fence(block: Block) -> None:
    x = block.global_memory("x", X)
    out = block.global_memory("out", np.zeros_like(X))
    tile = block.shared_memory("tile", WIDTH)
    staged = block.named_barrier("staged", warps=2)
    stored = block.named_barrier("stored", warps=2)

    def math():
        for i in range(TILES):
            values = yield x[i].read()
            yield tile.write(values**2)
            yield staged.sync()
            yield stored.sync()

    def store():
        for i in range(TILES):
            yield staged.sync()
            yield tma_store(tile, out[i])
            yield store_wait()
            yield stored.sync()

    block.warp("math", math())
    block.warp("store", store())


def transposed_state(block: Block) -> None:
    k = block.global_memory("k", K)  # [N,K]
    state = block.global_memory("state", S0)  # [K,V]
    out = block.global_memory("out", np.zeros_like(V))  # [N,V]
    s = block.shared_memory("s", (WIDTH, WIDTH))
    loaded = block.mbarrier("loaded", arrivals=1)

    def load():
        yield loaded.arrive_expect_tx(s.nbytes)
        yield tma_load(state, s, loaded)

    def read():
        yield loaded.wait(0)
        S = yield s.read()
        for i in range(TILES):
            key = yield k[i].read()
            yield out[i].write(S @ key)

    block.warp("load", load())
    block.warp("read", read())


def stale_output(block: Block) -> None:
    x = block.global_memory("x", X)
    out = block.global_memory("out", np.zeros_like(X))
    tile = block.shared_memory("tile", WIDTH)
    tile_free = block.named_barrier("tile free", warps=2)
    tile_ready = block.named_barrier("tile ready", warps=2)
    half = WIDTH // 2

    def low():
        for i in range(TILES):
            values = yield x[i, :half].read()
            yield tile[:half].write(values**2)
            yield fence_proxy_async()
            yield tile_ready.arrive()
            yield tma_store(tile, out[i])
            yield store_wait()
            yield tile_free.sync()

    def high():
        for i in range(TILES):
            values = yield x[i, half:].read()
            yield tile[half:].write(values**2)
            yield fence_proxy_async()
            yield tile_ready.arrive()
            yield tile_free.sync()

    block.warp("low", low())
    block.warp("high", high())


def overwritten_stage(block: Block) -> None:
    x = block.global_memory("x", X)
    out = block.global_memory("out", np.zeros_like(X))
    ring = block.shared_memory("ring", (2, WIDTH))
    full = block.mbarriers("full", 2, arrivals=1)
    empty = block.mbarriers("empty", 2, arrivals=1)

    def producer():
        for i in range(TILES):
            yield empty[i % 2].wait(1 - i // 2 % 2)
            yield full[i % 2].arrive_expect_tx(ring[i % 2].nbytes)
            yield tma_load(x[i], ring[i % 2], full[i % 2])

    def consumer():
        for i in range(TILES):
            yield full[i % 2].wait(i // 2 % 2)
            square = yield wgmma(lambda tile: tile**2, ring[i % 2])
            yield empty[i % 2].arrive()
            values = yield square.wait()
            yield out[i].write(values)

    block.warp("producer", producer())
    block.warp("consumer", consumer())


def wrong_bytes(block: Block) -> None:
    k, v = block.global_memory("k", K), block.global_memory("v", V)
    state = block.global_memory("state", np.zeros((WIDTH, WIDTH), np.float32))  # [K,V]
    ks, vs = block.shared_memory("ks", (2, WIDTH)), block.shared_memory("vs", (2, WIDTH))
    full = block.mbarriers("full", 2, arrivals=1)
    empty = block.mbarriers("empty", 2, arrivals=1)

    def producer():
        for i in range(TILES):
            yield empty[i % 2].wait(1 - i // 2 % 2)
            yield full[i % 2].arrive_expect_tx(ks[i % 2].nbytes)
            yield tma_load(k[i], ks[i % 2], full[i % 2])
            yield tma_load(v[i], vs[i % 2], full[i % 2])

    def consumer():
        S = np.zeros((WIDTH, WIDTH), np.float32)
        for i in range(TILES):
            yield full[i % 2].wait(i // 2 % 2)
            key = yield ks[i % 2].read()
            value = yield vs[i % 2].read()
            yield empty[i % 2].arrive()
            S = S + np.outer(key, value)
            yield work("outer product", 120)
        yield state.write(S)

    block.warp("producer", producer())
    block.warp("consumer", consumer())


CASES = {
    case.name: case
    for case in (
        DetectiveCase(
            "wrong phase",
            "Works with one stage. With three, some tiles are garbage.",
            wrong_phase,
            {"out": X**2},
            ("read before landed", "deadlock"),
            ("full[i % 3].wait(i % 2)", "full[i % 3].wait(i // 3 % 2)"),
        ),
        DetectiveCase(
            "missing fence",
            "Every barrier is right, yet now and then a row holds the tile before.",
            missing_fence,
            {"out": X**2},
            ("missing proxy fence",),
            (
                "yield tile.write(values**2)\n",
                "yield tile.write(values**2)\n            yield fence_proxy_async()\n",
            ),
        ),
        DetectiveCase(
            "transposed state",
            "No race, no deadlock, every test with a zero state passes. The numbers are wrong.",
            transposed_state,
            {"out": K @ S0},
            ("wrong answer",),
            ("S @ key", "S.T @ key"),
        ),
        DetectiveCase(
            "stale output",
            "The left half of each row is right. The right half is sometimes a row late.",
            stale_output,
            {"out": X**2},
            ("unsynchronised", "read before landed"),
            (
                "yield tile_ready.arrive()\n            yield tma_store",
                "yield tile_ready.sync()\n            yield tma_store",
            ),
        ),
        DetectiveCase(
            "overwritten stage",
            "Right on a quiet GPU, wrong when loads are fast.",
            overwritten_stage,
            {"out": X**2},
            ("overwritten in use",),
            (
                "yield empty[i % 2].arrive()\n            values = yield square.wait()\n",
                "values = yield square.wait()\n            yield empty[i % 2].arrive()\n",
            ),
        ),
        DetectiveCase(
            "wrong bytes",
            "The state is wrong in a few columns, a different few on every run.",
            wrong_bytes,
            {"state": K.T @ V},
            ("wrong transaction count", "read before landed"),
            ("(ks[i % 2].nbytes)", "(ks[i % 2].nbytes + vs[i % 2].nbytes)"),
        ),
    )
}


def investigate(name: str, seed: int = 0) -> simulator.Run:
    """Runs one schedule of a case with its expected answer; print the result to read it."""
    if name not in CASES:
        raise ValueError(f"name must be one of {', '.join(CASES)}, not {name!r}")
    case = CASES[name]
    return simulator.simulate(case.program, seed, case.expect, case.name)
