"""One thread block on Hopper, warp by warp: mbarriers, TMA, wgmma, named barriers and the async
proxy.

A warp is a generator that yields operations; a program is a function that lays out a block's
memory, barriers and warps. `simulate(program, seed)` runs one schedule: data really moves, so a
wrong program gives wrong numbers, and whatever was right only by luck is found and explained all
the same (each access is checked against everything that synchronisation has ordered before it, not
against what happened to come first).

    def producer(x, ring, full, empty):
        for i in range(len(x)):
            stage, turn = i % len(ring), i // len(ring)
            yield empty[stage].wait(1 - turn % 2)
            yield full[stage].arrive_expect_tx(ring[stage].nbytes)
            yield tma_load(x[i], ring[stage], full[stage])

    def program(block):
        x = block.global_memory("x", np.arange(32.0).reshape(8, 4))
        ring = block.shared_memory("ring", (2, 4))
        full = block.mbarriers("full", 2, arrivals=1)
        ...
        block.warp("producer", producer(x, ring, full, empty))

Rules modelled, from the PTX ISA: mbarrier phases, pending and transaction counts, test by parity;
bulk copies that land in pieces; generic writes reach the async proxy (TMA, wgmma) only through
fence.proxy.async; a bulk store still reads its source until the store has been waited for. Times
are in cycles, plausible, and jittered by the seed.
"""

import heapq
import random
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from kda_lab.hopper import explain
from kda_lab.hopper.explain import KINDS, Finding, Problem
from kda_lab.hopper.operations import (
    Access,
    Async,
    Buffer,
    Copy,
    MBarrier,
    Memory,
    NamedBarrier,
    Operation,
    Warp,
    WarpState,
    fence_proxy_async,
    store_wait,
    tma_load,
    tma_store,
    wgmma,
    work,
)
from kda_lab.hopper.trace import Event, Trace

__all__ = [
    "KINDS",
    "Block",
    "Run",
    "Sweep",
    "fence_proxy_async",
    "simulate",
    "store_wait",
    "sweep",
    "tma_load",
    "tma_store",
    "wgmma",
    "work",
]


class Block:
    """One thread block under simulation. Programs get one; `simulate` makes it."""

    max_steps = 100_000

    def __init__(self, seed: int = 0):
        self.rng = random.Random(seed)
        self.seed = seed
        self.now = 0.0
        self.buffers: dict[str, Buffer] = {}
        self.barriers: list[MBarrier] = []
        self.named: list[NamedBarrier] = []
        self.warps: list[WarpState] = []
        self.problems: list[Problem] = []
        self.spans: list[Event] = []
        self._seen: set = set()
        self._queue: list = []
        self._sequence = 0
        self._events = 0

    # -- what a program calls --

    def global_memory(self, name: str, array: np.ndarray) -> Memory:
        """Global memory that starts as a copy of `array`."""
        return self._buffer(name, "global", np.array(array), True)

    def shared_memory(self, name: str, shape: int | tuple[int, ...], dtype=np.float32) -> Memory:
        """Shared memory, poisoned: reading what nobody wrote gives NaN (integers: the largest)."""
        dtype = np.dtype(dtype)
        poison = np.nan if dtype.kind == "f" else np.iinfo(dtype).max
        return self._buffer(name, "shared", np.full(shape, poison, dtype), False)

    def _buffer(self, name: str, space: str, data: np.ndarray, written: bool) -> Memory:
        if name in self.buffers:
            raise ValueError(f"name {name!r} is taken already")
        buffer = self.buffers[name] = Buffer(name, space, np.ascontiguousarray(data), written)
        return Memory(buffer, np.arange(data.size).reshape(data.shape), name)

    def mbarrier(self, name: str, arrivals: int) -> MBarrier:
        """One mbarrier that completes a phase at `arrivals` arrivals."""
        self.barriers.append(MBarrier(name, arrivals, None))
        return self.barriers[-1]

    def mbarriers(self, name: str, count: int, arrivals: int) -> list[MBarrier]:
        """An array of mbarriers, one a stage."""
        made = [MBarrier(name, arrivals, i) for i in range(count)]
        self.barriers += made
        return made

    def named_barrier(self, name: str, warps: int) -> NamedBarrier:
        """A hardware barrier (bar.sync) for `warps` warps."""
        self.named.append(NamedBarrier(name, warps))
        return self.named[-1]

    def warp(self, name: str, run: Warp) -> None:
        """Adds a warp: a name for its lane, and the generator that it runs."""
        if not isinstance(run, Generator):
            raise TypeError(
                "run must be a generator (a function with `yield`, called), not "
                f"{type(run).__name__} (warp {name!r})"
            )
        if any(w.name == name for w in self.warps):
            raise ValueError(f"name {name!r} is taken by another warp")
        self.warps.append(WarpState(name, run))

    # -- synchronisation and its checks --

    def report(self, finding: Finding | None, warp: WarpState | None = None) -> None:
        """Keeps what was found, the first of its kind at each place."""
        if finding and (finding.kind, finding.place) not in self._seen:
            self._seen.add((finding.kind, finding.place))
            said = finding.kind, finding.what, finding.why, finding.hint
            self.problems.append(Problem(*said, self.now, warp.name if warp else ""))

    def _event(self) -> int:
        self._events += 1
        return self._events

    def access(
        self, who, memory: Memory, writes: bool, proxy: str, warp: WarpState, copy=None
    ) -> int:
        """Records an access, checks it against all that came before, and gives its event."""
        buffer, mask, event = memory._buffer, memory._mask, self._event()
        new = Access(event, who, mask, writes, proxy, memory, self.now, dict(warp.waits), copy)
        if not writes and mask & ~buffer.written:
            self.report(explain.unwritten(new, warp), warp)
        for old in buffer.accesses:
            if not old.mask & mask or not (writes or old.writes):
                continue
            crosses = old.writes and (old.proxy, proxy) == ("generic", "async")
            if not warp.knows >> old.event & 1:
                self.report(explain.conflict(old, new, warp), warp)
            elif crosses and not warp.fenced >> old.event & 1:
                self.report(explain.unfenced(old, new, warp), warp)
        if writes:
            for old in buffer.accesses:
                old.mask &= ~mask
            buffer.accesses = [a for a in buffer.accesses if a.mask]
            buffer.written |= mask
        buffer.accesses.append(new)
        if proxy == "generic":
            warp.knows |= 1 << event
        return event

    def publish(self, warp: WarpState) -> None:
        """fence.proxy.async: what the warp knows of becomes visible to the async proxy."""
        for buffer in self.buffers.values():
            for a in buffer.accesses:
                if a.writes and a.proxy == "generic" and warp.knows >> a.event & 1:
                    where = a.memory._where
                    buffer.async_data.ravel()[where] = buffer.data.ravel()[where]
        warp.fenced |= warp.knows

    def settle(self, b: MBarrier) -> None:
        """Completes the open phase if nothing is missing."""
        if b.pending == 0 and b.tx < 0:
            self.report(explain.too_many_bytes(b))
        if b.pending or b.tx:
            return
        late = [c for c in b.in_flight if c.phase == b.phase]
        if late:
            self.report(explain.completed_early(b, late[0]))
        b.history.append(b.promised)
        b.phase, b.pending, b.promised = b.phase + 1, b.arrivals, 0
        b.knows |= b.coming
        b.fenced |= b.coming_fenced
        b.coming = b.coming_fenced = 0

    # -- the async proxy --

    def _at(self, time: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._queue, (time, self.rng.random(), self._sequence, action))

    def _latency(self, nbytes: int) -> float:
        return self.rng.uniform(350, 900) + nbytes / 32 + (self.rng.random() < 0.1) * 1500

    def start_load(self, warp: WarpState, source: Memory, to: Memory, b: MBarrier) -> None:
        """Issues a bulk load: its pieces land in any order, each counting down the barrier."""
        copy = Copy(f"copy {source} -> {to}", warp.name, self.now, b, b.phase)
        b.in_flight.append(copy)
        self.access("TMA", source, False, "async", warp, copy)
        event = self.access("TMA", to, True, "async", warp, copy)
        knows, fenced = warp.knows | 1 << event, warp.fenced
        pieces = np.array_split(np.arange(to._where.size), min(4, to._where.size))
        start, left = self.now, len(pieces)
        values = source._get("async")

        def land(piece: np.ndarray) -> None:
            nonlocal left
            left -= 1
            to._put(values.ravel()[piece], "async", to._where.ravel()[piece])
            b.tx -= len(piece) * to._buffer.data.itemsize
            if left == 0:
                copy.landed = self.now
                b.in_flight.remove(copy)
                b.coming |= knows
                b.coming_fenced |= fenced
                self._span("TMA", "load", to.stage, copy.phase % 2, start, str(source))
            self.settle(b)

        done = self.now + self._latency(to.nbytes)
        for piece in pieces:
            lands = self.rng.uniform(self.now + 0.6 * (done - self.now), done)
            self._at(lands, partial(land, piece))

    def start_store(self, warp: WarpState, source: Memory, to: Memory) -> None:
        """Issues a bulk store: the source is read some time later, the destination written after
        that."""
        copy = Copy(f"bulk store {source} -> {to}", warp.name, self.now, None)
        events = 1 << self.access("TMA", source, False, "async", warp, copy)
        events |= 1 << self.access("TMA", to, True, "async", warp, copy)
        store = Async(copy.text, events)
        warp.stores.append(store)
        start = self.now

        def finish() -> None:
            to._put(source._get("async"), "async")
            store.done = True
            copy.landed = self.now
            self._span("TMA", "store", source.stage, None, start, str(to))

        self._at(self.now + self._latency(source.nbytes), finish)

    def start_wgmma(
        self, warp: WarpState, function: Callable, operands: tuple[Memory, ...]
    ) -> Async:
        """Issues a product; it reads its operands while it runs."""
        copy = Copy(f"wgmma on {', '.join(map(str, operands))}", warp.name, self.now, None)
        events = 0
        for operand in operands:
            events |= 1 << self.access("wgmma", operand, False, "async", warp, copy)
        product = Async(copy.text, events)
        start, lane = self.now, f"{warp.name} wgmma"

        def finish() -> None:
            product.result = function(*(operand._get("async").copy() for operand in operands))
            product.done = True
            self._span(lane, "wgmma", operands[0].stage if operands else None, None, start)

        self._at(self.now + self.rng.uniform(80, 200), finish)
        return product

    # -- running --

    def _span(self, role, what, stage, phase, begin, label="") -> None:
        self.spans.append(Event(role, what, stage, phase, round(begin), round(self.now), 0, label))

    def _resume(self, warp: WarpState, value: object) -> None:
        Operation.made = []
        try:
            op = warp.run.send(value)
        except StopIteration:
            op = None
        self._forgotten(warp, op)
        if op is None:
            warp.done = True
            if warp.stores:
                self.report(explain.exit_before_store(warp, warp.stores[0]), warp)
            return
        if not isinstance(op, Operation):
            raise TypeError(
                f"warp {warp.name!r} yielded {op!r}: yield an operation, such as full[0].wait(0) "
                "or work('add', 50)"
            )
        warp.since = self.now
        if op.ready(warp):
            self._perform(warp, op)
        else:
            warp.blocked_on = op

    def _perform(self, warp: WarpState, op: Operation) -> None:
        value = op.perform(self, warp)
        warp.blocked_on = None
        cost = op.cycles * self.rng.uniform(0.7, 1.4) + (self.rng.random() < 0.03) * 800
        begin = warp.since

        def go_on() -> None:
            if op.what:
                stage = op.stage if op.stage is not None else warp.stage
                label = str(getattr(op, "barrier", ""))
                self._span(warp.name, op.what, stage, op.phase, begin, label)
            self._resume(warp, value)

        self._at(self.now + cost, go_on)

    def _forgotten(self, warp: WarpState, op: Operation | None) -> None:
        for lost in Operation.made:
            if lost is not op:
                parts = (v for v in vars(lost).values() if isinstance(v, (MBarrier, Memory)))
                name = " ".join([type(lost).__name__.strip("_"), *map(str, parts)])
                self.report(explain.forgotten_yield(warp, name), warp)

    def run(self) -> None:
        """Runs all warps to their end, or to the point where none can go on."""
        if not self.warps:
            raise ValueError("program must add at least one warp to the block")
        for warp in self.warps:
            self._at(self.rng.uniform(0, 40), partial(self._resume, warp, None))
        for _ in range(self.max_steps):
            if not self._queue:
                break
            self.now, _, _, action = heapq.heappop(self._queue)
            action()
            for warp in self.warps:
                if warp.blocked_on is not None and warp.blocked_on.ready(warp):
                    self._perform(warp, warp.blocked_on)
        else:
            self.report(explain.no_end(self.max_steps))
            return
        stuck = [w for w in self.warps if not w.done]
        if stuck:
            self._deadlock(stuck)

    def _deadlock(self, stuck: list[WarpState]) -> None:
        for b in {w.blocked_on.mbarrier: 0 for w in stuck if w.blocked_on}:
            if b is not None and b.pending == 0 and b.tx > 0:
                self.report(explain.too_few_bytes(b))
        self.report(explain.deadlock(stuck, self.warps, self.barriers), stuck[0])


@dataclass(frozen=True)
class Run:
    """One schedule of a program: `problems`, the `trace`, and memory by name (`run["out"]`)."""

    seed: int
    cycles: float
    problems: tuple[Problem, ...]
    trace: Trace
    memory: dict[str, np.ndarray]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __getitem__(self, name: str) -> np.ndarray:
        """What a memory held at the end."""
        if name not in self.memory:
            raise KeyError(f"no memory named {name!r}; there are {', '.join(self.memory)}")
        return self.memory[name]

    def __str__(self) -> str:
        if self.ok:
            return f"seed {self.seed}: no problem in {self.cycles:.0f} cycles"
        first, *others = self.problems
        then = [f"then {p.kind} (cycle {p.time:.0f}): {p.what}" for p in others]
        return "\n".join([f"seed {self.seed}: {first}", *then])

    __repr__ = __str__


def simulate(
    program: Callable[[Block], None],
    seed: int = 0,
    expect: dict[str, np.ndarray] | None = None,
    title: str = "",
) -> Run:
    """Runs one schedule of a program, chosen by `seed`; the same seed gives the same run.

    expect: what some memories must hold at the end; a difference is the problem 'wrong answer'.
    """
    block = Block(seed)
    program(block)
    block.run()
    for name, want in (expect or {}).items():
        if name not in block.buffers:
            raise ValueError(f"expect names {name!r}, but the program has {[*block.buffers]}")
        block.report(explain.wrong_answer(name, block.buffers[name].data, np.asarray(want)))
    roles = [w.name for w in block.warps]
    for span in block.spans:
        if span.role not in roles:
            roles.append(span.role)
    roles.sort(key=lambda r: r != "TMA")
    spans = tuple(sorted(block.spans, key=lambda s: (s.begin, roles.index(s.role))))
    title = title or getattr(program, "__name__", "program")
    trace = Trace(title, f"simulator, seed {seed}", "cycles", tuple(roles), spans)
    memory = {name: buffer.data for name, buffer in block.buffers.items()}
    return Run(seed, block.now, tuple(block.problems), trace, memory)


@dataclass(frozen=True)
class Sweep:
    """Many schedules of one program: how many were clean, and for each kind of problem the seeds
    that show it."""

    runs: int
    clean: int
    seeds: dict[str, list[int]]
    first: Run | None

    @property
    def ok(self) -> bool:
        return self.clean == self.runs

    def __str__(self) -> str:
        lines = [f"{self.clean} of {self.runs} schedules are clean"]
        for kind, seeds in self.seeds.items():
            lines.append(f"  {kind}: {len(seeds)} (first: seed {seeds[0]})")
        return "\n".join(lines)

    __repr__ = __str__


def sweep(
    program: Callable[[Block], None],
    seeds: Iterable[int] = range(200),
    expect: dict[str, np.ndarray] | None = None,
) -> Sweep:
    """Runs a program under many schedules and counts what goes wrong."""
    count, clean, first = 0, 0, None
    kinds: dict[str, list[int]] = {}
    for seed in seeds:
        run = simulate(program, seed, expect)
        count += 1
        clean += run.ok
        for kind in dict.fromkeys(p.kind for p in run.problems):
            kinds.setdefault(kind, []).append(seed)
        first = first or (None if run.ok else run)
    return Sweep(count, clean, kinds, first)
