"""What a warp of the simulator can do: memory, barriers, and the operations it yields.

Imported through `kda_lab.hopper.simulator`, where the rules are told.
"""

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kda_lab.hopper import explain

if TYPE_CHECKING:
    from kda_lab.hopper.simulator import Block

Warp = Generator["Operation", object, None]


class Operation:
    """What a warp yields. `cycles`: how long the warp itself is busy with it."""

    cycles = 10
    what = ""  # name of the span in the trace; none is drawn without it
    stage: int | None = None
    phase: int | None = None
    mbarrier: "MBarrier | None" = None  # the one it waits for
    made: ClassVar[list["Operation"]] = []  # those made since a warp was last resumed

    def __init__(self):
        Operation.made.append(self)

    def ready(self, warp: "WarpState") -> bool:
        """Whether the warp can go on."""
        return True

    def perform(self, sim: "Block", warp: "WarpState") -> object:
        """Does it; the result is what `yield` gives back to the warp."""

    def blocked(self) -> str:
        """What the warp waits for, as a sentence."""
        return ""


class Buffer:
    """Memory as the generic proxy sees it (`data`) and as the async proxy does (`async_data`)."""

    def __init__(self, name: str, space: str, data: np.ndarray, written: bool):
        self.name, self.space, self.data = name, space, data
        self.async_data = data.copy()
        self.accesses: list[Access] = []
        self.written = (1 << data.size) - 1 if written else 0


class Memory:
    """Shared or global memory, or a part of it: index it as an array, then read, write or copy
    it."""

    def __init__(self, buffer: Buffer, where: np.ndarray, text: str, stage: int | None = None):
        self._buffer, self._where, self._text, self.stage = buffer, where, text, stage

    def __getitem__(self, index) -> "Memory":
        where = self._where[index]
        text = ",".join(_index_text(i) for i in (index if isinstance(index, tuple) else (index,)))
        first = index[0] if isinstance(index, tuple) else index
        stage = self.stage if self.stage is not None else first if isinstance(first, int) else None
        return Memory(self._buffer, np.asarray(where), f"{self._text}[{text}]", stage)

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    @property
    def name(self) -> str:
        """Of the memory that this is a part of."""
        return self._buffer.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self._where.shape

    @property
    def nbytes(self) -> int:
        """Bytes of this part."""
        return self._where.size * self._buffer.data.itemsize

    def __str__(self) -> str:
        return self._text

    def read(self) -> "Operation":
        """Loads into registers (generic proxy); gives a NumPy array."""
        return _Read(self)

    def write(self, values: np.ndarray) -> "Operation":
        """Stores from registers (generic proxy)."""
        return _Write(self, values)

    @property
    def _mask(self) -> int:
        bits = np.zeros(self._buffer.data.size, bool)
        bits[self._where.ravel()] = True
        return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")

    def _get(self, proxy: str) -> np.ndarray:
        buffer = self._buffer
        return (buffer.data if proxy == "generic" else buffer.async_data).ravel()[self._where]

    def _put(self, values: np.ndarray, proxy: str, where: np.ndarray | None = None) -> None:
        where = self._where if where is None else where
        self._buffer.data.ravel()[where] = values
        if proxy == "async":
            self._buffer.async_data.ravel()[where] = values


def _index_text(i: object) -> str:
    if isinstance(i, slice):
        return f"{'' if i.start is None else i.start}:{'' if i.stop is None else i.stop}"
    return str(i)


@dataclass
class Access:
    """One read or write: who, where, and by which event others can be ordered after it."""

    event: int
    who: str
    mask: int
    writes: bool
    proxy: str
    memory: Memory
    time: float
    waits: dict  # the warp's last wait on each barrier, at that time
    copy: "Copy | None" = None


@dataclass
class Copy:
    """A bulk copy under way."""

    text: str
    issuer: str
    issued: float
    barrier: "MBarrier | None"
    phase: int = 0
    landed: float | None = None


@dataclass
class _Wait:
    """A wait that was passed: in which phase, whether at once, whether in that phase already."""

    barrier: "MBarrier"
    parity: int
    open_phase: int
    at_once: bool
    again: bool
    time: float

    def __str__(self) -> str:
        how = "passed at once" if self.at_once else "passed"
        text = (
            f"wait({self.parity}) on {self.barrier} at cycle {self.time:.0f} {how}: the barrier "
            "was "
            f"in phase {self.open_phase}, so parity {self.parity} counted as complete"
        )
        return text + " (the phase that this warp had waited for before)" * self.again


@dataclass(eq=False)
class WarpState:
    name: str
    run: Warp
    knows: int = 0  # bit e: event e is ordered before what this warp does next
    fenced: int = 0  # bit e: and event e is visible to the async proxy
    blocked_on: Operation | None = None
    since: float = 0.0
    done: bool = False
    last_wait: _Wait | None = None
    waits: dict = field(default_factory=dict)  # MBarrier -> its last _Wait
    stage: int | None = None
    stores: list["Async"] = field(default_factory=list)


class MBarrier:
    """A barrier in shared memory: a phase completes when all arrivals came and no promised byte is
    missing.

    Phases count 0, 1, 2, ...; wait(parity) passes once the newest phase of that parity is complete.
    A fresh barrier is in phase 0, and the phase before it (parity 1) counts as complete.
    """

    def __init__(self, name: str, arrivals: int, index: int | None):
        if arrivals < 1:
            raise ValueError(f"arrivals must be at least 1, not {arrivals} (barrier {name})")
        self.name, self.arrivals, self.index = name, arrivals, index
        self.phase, self.pending, self.tx, self.promised = 0, arrivals, 0, 0
        self.knows = self.fenced = 0  # what completed phases have ordered
        self.coming = self.coming_fenced = 0  # what arrivals of the open phase bring
        self.history: list[int] = []  # bytes promised, for each completed phase
        self.in_flight: list[Copy] = []
        self.arrivers: Counter = Counter()

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"

    def wait(self, parity: int) -> Operation:
        """Waits until the phase with this parity (0 or 1) is complete: mbarrier.try_wait.parity in
        a loop."""
        return _WaitPhase(self, parity)

    def arrive(self, count: int = 1) -> Operation:
        """Counts as `count` arrivals, and publishes what this warp did before."""
        return _Arrive(self, count, 0)

    def expect_tx(self, nbytes: int) -> Operation:
        """Promises that `nbytes` more will land in the open phase; is no arrival."""
        return _Arrive(self, 0, nbytes)

    def arrive_expect_tx(self, nbytes: int) -> Operation:
        """Promises `nbytes`, and arrives once: mbarrier.arrive.expect_tx."""
        return _Arrive(self, 1, nbytes)

    def state(self) -> str:
        text = f"phase {self.phase} (parity {self.phase % 2}) is open, "
        text += f"{self.arrivals - self.pending} of {self.arrivals} arrivals came"
        if self.tx:
            text += f", {self.tx} promised bytes are missing" if self.tx > 0 else ""
            text += f", {-self.tx} bytes landed that nobody promised" if self.tx < 0 else ""
        return text


class NamedBarrier:
    """bar.sync and bar.arrive for `warps` warps."""

    def __init__(self, name: str, warps: int):
        if warps < 1:
            raise ValueError(f"warps must be at least 1, not {warps} (barrier {name})")
        self.name, self.warps = name, warps
        self.came: list[str] = []
        self.knows = self.fenced = self.coming = self.coming_fenced = 0
        self.round = 0

    def __str__(self) -> str:
        return self.name

    def sync(self) -> Operation:
        """Arrives, and waits for the others."""
        return _Sync(self, wait=True)

    def arrive(self) -> Operation:
        """Arrives, and goes on."""
        return _Sync(self, wait=False)


# ---- operations ----


class _Read(Operation):
    cycles = 30

    def __init__(self, memory: Memory):
        super().__init__()
        self.memory = memory

    def perform(self, sim, warp):
        sim.access(warp.name, self.memory, False, "generic", warp)
        return self.memory._get("generic").copy()


class _Write(Operation):
    cycles = 30

    def __init__(self, memory: Memory, values: np.ndarray):
        super().__init__()
        values = np.asarray(values)
        if values.shape != memory.shape and values.ndim:
            raise ValueError(
                f"values must have {memory}'s shape {memory.shape}, not {values.shape}"
            )
        self.memory, self.values = memory, values

    def perform(self, sim, warp):
        sim.access(warp.name, self.memory, True, "generic", warp)
        self.memory._put(self.values, "generic")


class _WaitPhase(Operation):
    cycles = 15
    what = "wait"

    def __init__(self, barrier: MBarrier, parity: int):
        super().__init__()
        if parity not in (0, 1):
            raise ValueError(f"parity must be 0 or 1, not {parity!r} (waiting for {barrier})")
        self.barrier, self.parity = barrier, int(parity)
        self.stage, self.phase, self.mbarrier = barrier.index, int(parity), barrier

    def ready(self, warp):
        return self.barrier.phase % 2 != self.parity

    def perform(self, sim, warp):
        b = self.barrier
        warp.knows |= b.knows
        warp.fenced |= b.fenced
        at_once = warp.blocked_on is None
        again = b in warp.waits and warp.waits[b].open_phase == b.phase
        warp.last_wait = _Wait(b, self.parity, b.phase, at_once, again, sim.now)
        warp.waits[b] = warp.last_wait
        warp.stage = b.index if b.index is not None else warp.stage

    def blocked(self):
        return (
            f"waits for {self.barrier} to complete a phase of parity {self.parity}; "
            f"{self.barrier.state()}"
        )


class _Arrive(Operation):
    def __init__(self, barrier: MBarrier, count: int, nbytes: int):
        super().__init__()
        if nbytes < 0 or count < 0:
            raise ValueError(f"count and nbytes must not be negative, got {count} and {nbytes}")
        self.barrier, self.count, self.nbytes = barrier, count, int(nbytes)

    def perform(self, sim, warp):
        b = self.barrier
        b.tx += self.nbytes
        b.promised += self.nbytes
        if self.count > b.pending:
            sim.report(explain.too_many_arrivals(b, warp), warp)
            self.count = b.pending
        if self.count:
            b.arrivers[warp.name] += 1
            b.coming |= warp.knows
            b.coming_fenced |= warp.fenced
        b.pending -= self.count
        sim.settle(b)


class _Sync(Operation):
    cycles = 20

    def __init__(self, barrier: NamedBarrier, wait: bool):
        super().__init__()
        self.barrier, self.waits = barrier, wait
        self.round: int | None = None
        self.what = "wait" if wait else ""

    def ready(self, warp):
        b = self.barrier
        if self.round is None:  # the arrival itself happens once
            self.round = b.round
            b.came.append(warp.name)
            b.coming |= warp.knows
            b.coming_fenced |= warp.fenced
            if len(b.came) == b.warps:
                b.knows, b.fenced = b.coming, b.coming_fenced
                b.came, b.round = [], b.round + 1
        return not self.waits or b.round > self.round

    def perform(self, sim, warp):
        if self.waits:
            warp.knows |= self.barrier.knows
            warp.fenced |= self.barrier.fenced

    def blocked(self):
        b = self.barrier
        missing = b.warps - len(b.came)
        return f"waits at {b}: {', '.join(b.came)} came, {missing} of {b.warps} warps are missing"


class _Fence(Operation):
    cycles = 20

    def perform(self, sim, warp):
        sim.publish(warp)


class _Work(Operation):
    def __init__(self, what: str, cycles: int, stage: int | None):
        super().__init__()
        self.what, self.cycles, self.stage = what, cycles, stage


class _TmaLoad(Operation):
    cycles = 12

    def __init__(self, source: Memory, destination: Memory, barrier: MBarrier):
        super().__init__()
        if source.shape != destination.shape:
            raise ValueError(
                f"destination {destination} must have source {source}'s shape {source.shape}, "
                f"not {destination.shape}"
            )
        if (source._buffer.space, destination._buffer.space) != ("global", "shared"):
            raise ValueError(
                f"tma_load goes from global to shared memory, not {source} -> {destination}"
            )
        if not isinstance(barrier, MBarrier):
            raise TypeError(f"barrier must be an mbarrier to signal, not {type(barrier).__name__}")
        self.source, self.destination, self.barrier = source, destination, barrier

    def perform(self, sim, warp):
        sim.start_load(warp, self.source, self.destination, self.barrier)


class _TmaStore(Operation):
    cycles = 12

    def __init__(self, source: Memory, destination: Memory):
        super().__init__()
        if source.shape != destination.shape:
            raise ValueError(
                f"destination {destination} must have source {source}'s shape {source.shape}, "
                f"not {destination.shape}"
            )
        if (source._buffer.space, destination._buffer.space) != ("shared", "global"):
            raise ValueError(
                f"tma_store goes from shared to global memory, not {source} -> {destination}"
            )
        self.source, self.destination = source, destination

    def perform(self, sim, warp):
        sim.start_store(warp, self.source, self.destination)


class Async:
    """Something the async proxy does for a warp: done at some time, with a result."""

    def __init__(self, text: str, events: int):
        self.text, self.events = text, events
        self.done, self.result = False, None

    def wait(self) -> Operation:
        """Waits until it is done and gives its result (wgmma.wait_group)."""
        return _WaitAsync([self], f"waits for {self.text}")


class _WaitAsync(Operation):
    cycles = 15
    what = "wait"

    def __init__(self, pending: list[Async], text: str):
        super().__init__()
        self.pending, self.text = pending, text

    def ready(self, warp):
        return all(a.done for a in self.pending)

    def perform(self, sim, warp):
        for a in self.pending:
            warp.knows |= a.events
        return self.pending[-1].result if self.pending else None

    def blocked(self):
        return self.text


class _StoreWait(_WaitAsync):
    def __init__(self, pending: int):
        super().__init__([], "waits for its bulk stores")
        self.leave = pending
        self.chosen = False

    def ready(self, warp):
        if not self.chosen:
            self.chosen = True
            self.pending = warp.stores[: max(0, len(warp.stores) - self.leave)]
        return super().ready(warp)

    def perform(self, sim, warp):
        warp.stores = [s for s in warp.stores if s not in self.pending]
        super().perform(sim, warp)


class _Wgmma(Operation):
    cycles = 10

    def __init__(self, function: Callable, operands: tuple[Memory, ...]):
        super().__init__()
        self.function, self.operands = function, operands

    def perform(self, sim, warp):
        return sim.start_wgmma(warp, self.function, self.operands)


def tma_load(source: Memory, destination: Memory, barrier: MBarrier) -> Operation:
    """Starts a bulk copy from global to shared memory; its bytes count down `barrier` as they
    land."""
    return _TmaLoad(source, destination, barrier)


def tma_store(source: Memory, destination: Memory) -> Operation:
    """Starts a bulk copy from shared to global memory (commit_group included); see `store_wait`."""
    return _TmaStore(source, destination)


def store_wait(pending: int = 0) -> Operation:
    """Waits until at most `pending` of this warp's newest bulk stores are under way:
    cp.async.bulk.wait_group."""
    return _StoreWait(pending)


def fence_proxy_async() -> Operation:
    """Makes generic writes that this warp did, or was told of, visible to TMA and wgmma."""
    return _Fence()


def wgmma(function: Callable, *operands: Memory) -> Operation:
    """Starts a product that reads shared memory through the async proxy.

    `yield` gives a handle; `yield handle.wait()` gives `function(*arrays)`. Until then the operands
    are in use.
    """
    return _Wgmma(function, operands)


def work(what: str, cycles: int = 100, stage: int | None = None) -> Operation:
    """Keeps the warp busy; `what` names it in the trace."""
    return _Work(what, cycles, stage)
