"""Right pipelines pass under every schedule; each flaw is found and told as what it is."""

import numpy as np
import pytest

from kda_lab.hopper.cases import CASES, investigate
from kda_lab.hopper.explain import KINDS
from kda_lab.hopper.simulator import (
    fence_proxy_async,
    simulate,
    store_wait,
    sweep,
    tma_load,
    tma_store,
    wgmma,
    work,
)

X = np.arange(80, dtype=np.float32).reshape(10, 8)
WANT = {"out": X**2}


def producer(x, ring, full, empty, first=1, nbytes=None, step=1):
    for i in range(len(x)):
        stage, turn = i % len(ring), i // len(ring) * step
        yield empty[stage].wait((first + turn) % 2)
        yield full[stage].arrive_expect_tx(ring[stage].nbytes if nbytes is None else nbytes)
        yield tma_load(x[i], ring[stage], full[stage])


def consumer(out, ring, full, empty, first=0, arrive=True, early=False, part=slice(None)):
    for i in range(len(out)):
        stage, turn = i % len(ring), i // len(ring)
        yield full[stage].wait((first + turn) % 2)
        if early:
            yield empty[stage].arrive()
        tile = yield ring[stage, part].read()
        if arrive:
            yield empty[stage].arrive()
        yield work("square", 150)
        yield out[i, part].write(tile**2)


def pipeline(stages=2, arrivals=1, produce=None, consume=None, consumers=1):
    """A program: one producer, `consumers` warps that each square a part of every tile."""

    def program(block):
        x, out = block.global_memory("x", X), block.global_memory("out", np.zeros_like(X))
        ring = block.shared_memory("ring", (stages, 8))
        full = block.mbarriers("full", stages, 1)
        empty = block.mbarriers("empty", stages, arrivals)
        block.warp("producer", producer(x, ring, full, empty, **(produce or {})))
        width = 8 // consumers
        for c in range(consumers):
            part = slice(c * width, (c + 1) * width)
            run = consumer(out, ring, full, empty, part=part, **(consume or {}))
            block.warp(f"consumer {c}", run)

    return program


def staged_store(fence=True, wait=True, last_wait=True, sync=True):
    """Two warps write halves of a tile, the first stores it by TMA, double-buffered."""

    def program(block):
        x, out = block.global_memory("x", X), block.global_memory("out", np.zeros_like(X))
        tiles = block.shared_memory("tiles", (2, 8))
        ready, free = block.named_barrier("ready", 2), block.named_barrier("free", 2)

        def warp(part, stores):
            for i in range(len(x)):
                if stores and wait:
                    yield store_wait(1)
                yield free.sync()
                values = yield x[i, part].read()
                yield tiles[i % 2, part].write(values**2)
                if fence:
                    yield fence_proxy_async()
                if sync:
                    yield ready.sync()
                if stores:
                    yield tma_store(tiles[i % 2], out[i])
            if stores and last_wait:
                yield store_wait()

        block.warp("low", warp(slice(0, 4), True))
        block.warp("high", warp(slice(4, 8), False))

    return program


def product(wait_before_release=True):
    """Tiles by TMA, squared by wgmma, the product of tile i waited for while i+1 runs."""

    def program(block):
        x, out = block.global_memory("x", X), block.global_memory("out", np.zeros_like(X))
        ring = block.shared_memory("ring", (3, 8))
        full, empty = block.mbarriers("full", 3, 1), block.mbarriers("empty", 3, 1)

        def math():
            for i in range(len(out)):
                yield full[i % 3].wait(i // 3 % 2)
                running = yield wgmma(np.square, ring[i % 3])
                if wait_before_release:
                    values = yield running.wait()
                    yield empty[i % 3].arrive()
                else:
                    yield empty[i % 3].arrive()
                    values = yield running.wait()
                yield out[i].write(values)

        block.warp("producer", producer(x, ring, full, empty))
        block.warp("math", math())

    return program


# ---- what is right passes ----


@pytest.mark.parametrize(
    ("program", "seeds"),
    [
        (pipeline(1), 300),
        (pipeline(2), 1000),
        (pipeline(3), 500),
        (pipeline(4, arrivals=2, consumers=2), 500),
        (staged_store(), 500),
        (product(), 500),
    ],
    ids=["one stage", "two stages", "three stages", "two consumers", "staged store", "wgmma"],
)
def test_a_right_pipeline_is_clean_under_every_schedule(program, seeds):
    result = sweep(program, range(seeds), WANT)
    assert result.ok, f"{result}\n{result.first}"


def test_more_stages_hide_more_latency():
    def cycles(n):
        return np.mean([simulate(pipeline(n), s).cycles for s in range(30)])

    assert cycles(1) > 1.3 * cycles(2) > 1.3 * cycles(4) * 0.9


def test_the_same_seed_gives_the_same_run():
    a, b, c = (simulate(pipeline(2), seed) for seed in (5, 5, 6))
    assert a.trace == b.trace
    assert a.trace.events != c.trace.events
    bad = pipeline(2, consume={"first": 1})
    assert str(simulate(bad, 3)) == str(simulate(bad, 3))


# ---- what is wrong is found ----


def found(program, seeds=100, expect=WANT):
    """The share of schedules in which each kind was found."""
    result = sweep(program, range(seeds), expect)
    return {kind: len(at) / seeds for kind, at in result.seeds.items()}, result


FLAWS = {  # name: (program, kind, least share of schedules)
    "producer starts at parity 0": (pipeline(2, produce={"first": 0}), "deadlock", 1),
    "producer never flips": (pipeline(2, produce={"step": 0}), "overwritten in use", 0.5),
    "consumer starts at parity 1": (pipeline(2, consume={"first": 1}), "read before landed", 1),
    "consumer never arrives": (pipeline(2, consume={"arrive": False}), "deadlock", 1),
    "one arrival too few": (pipeline(2, arrivals=2), "deadlock", 1),
    "two consumers, one counted": (pipeline(2, consumers=2), "overwritten in use", 0.5),
    "released before reading": (
        pipeline(2, consume={"early": True, "arrive": False}),
        "overwritten in use",
        1,
    ),
    "promise too small": (pipeline(2, produce={"nbytes": 16}), "wrong transaction count", 1),
    "promise too large": (pipeline(2, produce={"nbytes": 64}), "wrong transaction count", 1),
    "no promise": (pipeline(2, produce={"nbytes": 0}), "wrong transaction count", 0.9),
    "no proxy fence": (staged_store(fence=False), "missing proxy fence", 1),
    "store not waited for": (staged_store(wait=False), "overwritten in use", 1),
    "exit during a store": (staged_store(last_wait=False), "exit before store", 1),
    "other warp's half not waited for": (staged_store(sync=False), "unsynchronised", 0.9),
    "released while wgmma reads": (product(False), "overwritten in use", 1),
}


@pytest.mark.parametrize("name", FLAWS)
def test_a_flaw_is_found_in_most_schedules(name):
    program, kind, share = FLAWS[name]
    shares, result = found(program)
    assert result.clean == 0, f"{result.clean} schedules look clean"
    assert shares.get(kind, 0) >= share, shares


def report(program):
    """The first problem of the first schedule."""
    return str(simulate(program).problems[0])


def test_a_deadlock_tells_who_waits_for_what_and_who_should_have_come():
    text = report(FLAWS["consumer never arrives"][0])
    assert "producer (since cycle" in text and "waits for empty[0]" in text
    assert "phase of parity 0; phase 0 (parity 0) is open, 0 of 1 arrivals came" in text
    assert "Nobody has ever arrived on empty" in text
    assert "Someone must arrive on empty[0]" in text
    text = report(FLAWS["one arrival too few"][0])
    assert "1 of 2 arrivals came" in text and "made for 2 arrivals" in text
    text = report(FLAWS["producer starts at parity 0"][0])
    assert "waits for parity 1: a fresh barrier counts as having completed it" in text


def test_an_early_read_tells_the_wait_that_passed():
    text = report(FLAWS["consumer starts at parity 1"][0])
    assert "wait(1) on full[0]" in text and "the barrier was in phase 0" in text


def test_a_wrong_promise_tells_the_bytes():
    assert "64 bytes were promised in phase 0, 32 landed" in report(FLAWS["promise too large"][0])
    assert "completed phase 0 with 16 bytes promised" in report(FLAWS["promise too small"][0])


def test_a_deadlock_at_a_named_barrier_tells_who_is_missing():
    def program(block):
        both = block.named_barrier("epilogue", warps=2)

        def comes():
            yield both.sync()

        def stays():
            yield work("something else", 10)

        block.warp("a", comes())
        block.warp("b", stays())

    text = report(program)
    assert "a (since cycle" in text and "1 of 2 warps are missing" in text
    assert "b already ended" in text


def test_a_forgotten_yield_is_told():
    def program(block):
        barrier = block.mbarrier("done", 1)

        def warp():
            yield work("a")
            barrier.arrive()
            yield work("b")

        block.warp("w", warp())

    text = report(program)
    assert "FORGOTTEN YIELD" in text and "done" in text


def test_unfenced_data_really_is_stale():
    run = simulate(staged_store(fence=False), 0)
    assert not np.array_equal(run["out"], X**2)
    assert run.problems[0].kind == "missing proxy fence"


def test_a_fence_on_the_path_by_the_storing_warp_also_counts():
    def program(block):
        tile, out = block.shared_memory("tile", 8), block.global_memory("out", np.zeros(8))
        ready = block.named_barrier("ready", 2)

        def writes():
            yield tile.write(np.ones(8))
            yield ready.sync()

        def stores():
            yield ready.sync()
            yield fence_proxy_async()
            yield tma_store(tile, out)
            yield store_wait()

        block.warp("writes", writes())
        block.warp("stores", stores())

    assert sweep(program, range(50), {"out": np.ones(8)}).ok


def test_a_program_without_end_is_stopped():
    def program(block):
        def forever():
            while True:
                yield work("spin", 1)

        block.max_steps = 500
        block.warp("w", forever())

    assert simulate(program).problems[0].kind == "no end"


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda b: b.warp("w", lambda: None), TypeError, "run"),
        (lambda b: b.mbarrier("m", 0), ValueError, "arrivals"),
        (lambda b: b.mbarrier("m", 1).wait(2), ValueError, "parity"),
        (lambda b: b.named_barrier("n", 0), ValueError, "warps"),
        (lambda b: b.shared_memory("s", 4).write(np.ones(5)), ValueError, "values"),
        (lambda b: (b.shared_memory("s", 4), b.shared_memory("s", 4)), ValueError, "name"),
        (
            lambda b: tma_load(
                b.shared_memory("s", 4), b.shared_memory("t", 4), b.mbarrier("m", 1)
            ),
            ValueError,
            "tma_load",
        ),
        (
            lambda b: tma_load(
                b.global_memory("s", np.ones(4)), b.shared_memory("t", 5), b.mbarrier("m", 1)
            ),
            ValueError,
            "destination",
        ),
        (lambda b: None, ValueError, "program"),
    ],
)
def test_bad_input_is_named(make, error, word):
    with pytest.raises(error, match=rf"\b{word}\b"):
        simulate(make)


def test_yielding_something_else_is_told():
    def program(block):
        def warp():
            yield 5

        block.warp("w", warp())

    with pytest.raises(TypeError, match="warp 'w' yielded 5"):
        simulate(program)


# ---- traces ----


def test_the_trace_shows_every_wait_and_copy():
    run = simulate(pipeline(2), 0, WANT)
    trace = run.trace
    assert trace.roles == ("TMA", "producer", "consumer 0")
    loads = [e for e in trace.events if e.what == "load"]
    assert [e.label for e in sorted(loads, key=lambda e: e.label)] == [f"x[{i}]" for i in range(10)]
    assert {e.stage for e in loads} == {0, 1}
    assert {e.phase for e in loads} == {0, 1}
    waits = [e for e in trace.events if e.role == "consumer 0" and e.what == "wait"]
    assert len(waits) == 10
    assert [e.phase for e in waits] == [i // 2 % 2 for i in range(10)]
    # a tile is computed on after its load ended
    for i, e in enumerate(e for e in trace.events if e.what == "square"):
        assert e.begin >= next(x.end for x in loads if x.label == f"x[{i}]")


# ---- detective cases ----


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_found_whatever_the_schedule_and_its_mend_is_clean(name):
    case = CASES[name]
    for seed in range(60):
        run = investigate(name, seed)
        assert not run.ok
        assert run.problems[0].kind in case.kinds, run
    assert sweep(case.mended(), range(150), case.expect).ok
    assert all(kind in KINDS for kind in case.kinds)


def test_the_cases_have_different_culprits():
    assert len({case.kinds[0] for case in CASES.values()}) == len(CASES)
