"""What went wrong in a simulated block, in words: what, why, and what to try.

The simulator decides that something is wrong; here it is told to the reader. `old` and `new` are
accesses, `old` the earlier one; `warp` is the warp that did `new` or issued it.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

KINDS = {
    "deadlock": "every warp waits and nothing is under way that could wake one",
    "read before landed": "a tile was read although nothing says that its copy has landed",
    "overwritten in use": "memory was overwritten although someone may still be using it",
    "unsynchronised": "one warp read what another wrote, with nothing between them",
    "missing proxy fence": "TMA or wgmma read what a warp wrote without fence.proxy.async",
    "wrong transaction count": "a barrier was promised other bytes than what landed",
    "too many arrivals": "a barrier got more arrivals in one phase than it was made for",
    "exit before store": "the block ended while a bulk store still read its shared memory",
    "forgotten yield": "an operation was written down but never yielded, so it never happened",
    "no end": "the program went on for longer than any pipeline should",
    "wrong answer": "the numbers that came out are not the ones asked for",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. place: with what; one report a kind and place is enough."""

    kind: str
    what: str
    why: str
    hint: str
    place: str = ""


@dataclass(frozen=True)
class Problem:
    """A finding, and when it was made: `time` in cycles, `warp` the one that ran."""

    kind: str
    what: str
    why: str
    hint: str
    time: float
    warp: str

    def __str__(self) -> str:
        head = f"{self.kind.upper()} (cycle {self.time:.0f})"
        return f"{head}\n  {self.what}\n  Why: {self.why}\n  Try: {self.hint}"


def place(access) -> str:
    return access.memory.name


def unwritten(new, warp) -> Finding:
    """A read of shared memory where nothing was ever put."""
    wait = f"Its last {warp.last_wait}." if warp.last_wait else "It waited for nothing."
    return Finding(
        "read before landed",
        f"{new.who} read {new.memory}, where nothing has been written or copied yet. {wait}",
        "Shared memory holds whatever the last block left there; a read must follow the barrier "
        "that says the copy has landed.",
        "Wait on the barrier that the copy signals, with the parity of the phase it completes: "
        "0 the first time round, then 1, then 0.",
        place(new),
    )


def conflict(old, new, warp) -> Finding | None:
    """Two accesses to the same memory, at least one a write, that nothing orders."""
    if new.writes:
        return overwrite(old, new, warp)
    if old.copy is not None:
        return early_read(old, new, warp)
    return Finding(
        "unsynchronised",
        f"{new.who} read {new.memory}, which {old.who} wrote at cycle {old.time:.0f}.",
        "Nothing orders the write before the read: another schedule reads old data.",
        f"Let {old.who} arrive on a barrier after writing and let {warp.name} wait on it before.",
        place(new),
    )


def early_read(old, new, warp) -> Finding | None:
    """A read of what a bulk copy writes, without having waited for it."""
    copy, b = old.copy, old.copy.barrier
    wait = warp.waits.get(b)
    if wait and wait.open_phase > copy.phase:
        return None  # the phase completed too early, and that was reported
    if copy.landed is None:
        when = "it is still in flight"
    else:
        when = f"it landed at cycle {copy.landed:.0f} in this schedule, by luck"
    what = (
        f"{new.who} read {new.memory} before {copy.text} (issued by {copy.issuer} at cycle "
        f"{copy.issued:.0f}) was known to have landed: {when}."
    )
    if b is None:
        why = "A bulk store is complete when its issuer has waited for it."
        hint = "store_wait() by the issuer, then a barrier, then the read."
        return Finding("read before landed", what, why, hint, place(new))
    if not wait:
        why = f"{warp.name} never waited on {b}, the barrier that the copy signals."
        return Finding("read before landed", what, why, f"Wait on {b} before reading.", place(new))
    if b.history and b.history[-1] == 0:
        why = f"{b} completed phase {b.phase - 1} with no bytes promised, so it waited for none."
        hint = "Arrive with arrive_expect_tx(nbytes), before the copy is issued."
        return Finding("wrong transaction count", what, why, hint, str(b))
    why = f"The last {wait}. The copy completes phase {copy.phase}, parity {copy.phase % 2}."
    hint = "Wait with the parity of the phase that the copy completes: i // stages % 2 for tile i."
    return Finding("read before landed", what, why, hint, place(new))


def overwrite(old, new, warp) -> Finding:
    """A write, or a copy, to memory that may still be in use."""
    guard = old.waits.get(new.copy.barrier) if new.copy else None
    if guard and guard.again and not old.writes:  # its wait told the reader nothing new
        return Finding(
            "read before landed",
            f"{old.who} read {old.memory} at cycle {old.time:.0f}, before {new.copy.text} was even "
            "issued: it read the tile before once more.",
            f"Its last {guard}.",
            "Flip the parity each time round the ring: i // stages % 2 for tile i.",
            place(old),
        )
    how = new.copy.text if new.copy else f"{new.who}'s write to {new.memory}"
    if old.copy is not None and not old.writes:
        used = f"{old.copy.text} (issued at cycle {old.copy.issued:.0f}) may still be reading"
        hint = "Before reusing the memory, wait for the store (store_wait) or the product."
    elif old.copy is not None:
        used = f"{old.copy.text} (issued at cycle {old.copy.issued:.0f}) also writes"
        hint = "Wait for the first copy before starting another into the same place."
    else:
        did = "wrote" if old.writes else "read"
        used = f"{old.who} {did} at cycle {old.time:.0f}"
        hint = (
            f"Let {old.who} arrive on an empty barrier when it is done with the stage, and let "
            f"{warp.name} wait for that phase: parity 1 the first time round (nothing to wait "
            "for), then 0, then 1."
        )
    wait = f"The last {warp.last_wait}." if warp.last_wait else f"{warp.name} waited for nothing."
    return Finding(
        "overwritten in use",
        f"{how}, issued by {warp.name}, overwrites {old.memory}, which {used}.",
        f"Nothing orders that use before the overwriting. {wait}",
        hint,
        place(new),
    )


def unfenced(old, new, warp) -> Finding:
    """A generic write, ordered before an async access, that the async proxy may not see."""
    return Finding(
        "missing proxy fence",
        f"{new.copy.text}, issued by {warp.name}, touches {new.memory}, which {old.who} wrote at "
        f"cycle {old.time:.0f} through the generic proxy.",
        "TMA and wgmma look at shared memory through the async proxy; a barrier alone does not "
        "make ordinary writes visible there, so it may see the old data.",
        f"Let {old.who} do fence_proxy_async() after writing and before the barrier.",
        place(new),
    )


PROMISE = "Promise the bytes of every copy that signals this barrier: nbytes of each tile, summed."
AGREE = "The phase completes only when promised and landed bytes agree."


def too_many_bytes(b) -> Finding:
    what = f"{b}: {-b.tx} more bytes landed in phase {b.phase} than the {b.promised} promised."
    return Finding("wrong transaction count", what, AGREE, PROMISE, str(b))


def too_few_bytes(b) -> Finding:
    what = (
        f"{b}: {b.promised} bytes were promised in phase {b.phase}, {b.promised - b.tx} landed, "
        "and no copy is in flight."
    )
    return Finding("wrong transaction count", what, AGREE, PROMISE, str(b))


def completed_early(b, copy) -> Finding:
    return Finding(
        "wrong transaction count",
        f"{b} completed phase {b.phase} with {b.promised} bytes promised, while {copy.text} "
        f"(issued by {copy.issuer} at cycle {copy.issued:.0f}) had not landed.",
        "A barrier counts promised bytes, not copies: it opens as soon as the promise is kept.",
        PROMISE,
        str(b),
    )


def too_many_arrivals(b, warp) -> Finding:
    return Finding(
        "too many arrivals",
        f"{warp.name} arrived on {b}, where {b.pending} of {b.arrivals} arrivals were to come.",
        "An arrival too many counts for a phase it does not belong to, or breaks the barrier.",
        f"Make {b} with as many arrivals as there are, or let each consumer arrive once a tile.",
        str(b),
    )


def forgotten_yield(warp, operation: str) -> Finding:
    return Finding(
        "forgotten yield",
        f"{warp.name} made an operation ({operation}) and did not yield it.",
        "An operation is a description; it happens when the warp yields it.",
        "Put `yield` in front of it.",
        operation,
    )


def exit_before_store(warp, store) -> Finding:
    return Finding(
        "exit before store",
        f"{warp.name} ended without waiting for {store.text}.",
        "When a block ends its shared memory goes to the next one; a store that still reads it "
        "stores someone else's data.",
        "yield store_wait() before the end.",
        warp.name,
    )


def no_end(steps: int) -> Finding:
    return Finding(
        "no end",
        f"After {steps} steps the program still goes on.",
        "A pipeline over a fixed number of tiles ends.",
        "Look at the loops' bounds.",
    )


def deadlock(stuck, warps, barriers) -> Finding:
    """Who waits for which phase of which barrier, and who should have arrived."""
    lines, hints = [], []
    for warp in stuck:
        line = f"{warp.name} (since cycle {warp.since:.0f}) {warp.blocked_on.blocked()}"
        b = warp.blocked_on.mbarrier
        if b is not None:
            line += f". {_who_should_arrive(b, stuck, barriers)}"
            hints.append(_deadlock_hint(b, warp))
        lines.append(line)
    ended = [w.name for w in warps if w.done]
    why = f"{', '.join(ended)} already ended; nobody else" if ended else "Nobody"
    return Finding(
        "deadlock",
        "; ".join(lines) + ".",
        f"{why} can arrive, and no copy is in flight.",
        _best(hints) if hints else "Count who comes to each barrier, and how often.",
    )


def _who_should_arrive(b, stuck, barriers) -> str:
    if b.pending == 0:
        return "All arrivals came; the bytes do not add up"
    arrivers: Counter = sum((x.arrivers for x in barriers if x.name == b.name), Counter())
    if not arrivers:
        return f"Nobody has ever arrived on {b.name}"
    waiting = {w.name for w in stuck}
    known = [f"{n} ({'itself waiting' if n in waiting else 'ended'})" for n in arrivers]
    return f"So far {' and '.join(known)} arrived on {b.name}"


BOTH_AT_START = 3


def _deadlock_hint(b, warp) -> tuple[int, str]:
    """(rank, text): the lowest rank is the most telling."""
    if b.pending == 0:
        return 0, "Promise exactly the bytes that land."
    seen = warp.waits[b].open_phase if b in warp.waits else 0
    if b.phase > seen:
        return 1, (
            f"{warp.name} asks {b} for parity {b.phase % 2}, but never took phase {seen} (parity "
            f"{seen % 2}), which is complete: the parity of tile i is i // stages % 2."
        )
    if b.pending < b.arrivals:
        return 2, (
            f"{b} was made for {b.arrivals} arrivals a phase and {b.arrivals - b.pending} came: "
            "count who arrives, and how often a tile."
        )
    if b.phase == 0 and not b.arrivers and not warp.waits:
        return BOTH_AT_START, warp.name
    return 4, f"Someone must arrive on {b} each time round, after the last use of the stage."


def _best(hints: list[tuple[int, str]]) -> str:
    rank, text = min(hints)
    if rank != BOTH_AT_START:
        return text
    names = [name for r, name in hints if r == BOTH_AT_START]
    return (
        f"{' and '.join(names)} began by waiting for a phase that someone else must complete. "
        "Who finds its stage free at the start (the producer) waits for parity 1: a fresh "
        "barrier counts as having completed it."
    )


def wrong_answer(name: str, got: np.ndarray, want: np.ndarray) -> Finding | None:
    """Where a memory differs from what it should hold at the end."""
    if got.shape != want.shape:
        what = f"{name} has shape {got.shape}, not {want.shape}."
    else:
        wrong = ~np.isclose(got, want, rtol=1e-5, atol=1e-6)
        if not wrong.any():
            return None
        i = tuple(int(x) for x in np.argwhere(wrong)[0])
        what = (
            f"{name}[{','.join(map(str, i))}] is {got[i]:.6g}, not {want[i]:.6g}; "
            f"{wrong.sum()} of {got.size} elements are wrong."
        )
    return Finding(
        "wrong answer",
        what,
        "Data moves as the schedule says: a wrong number is a wrong copy, order or formula.",
        "Start with the first problem reported; if this is it, look at indices and axes.",
        name,
    )
