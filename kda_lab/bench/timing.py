"""Timing done one way everywhere: warm, with a cold L2, medians and their spread; and the ceilings."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Work = Callable[[], Any]
FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU here
WARM_UP = 3


@dataclass
class Times:
    """Milliseconds of single runs of one piece of work."""

    ms: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def spread(self) -> float:
        """(90th - 10th percentile) / median."""
        ordered = sorted(self.ms)
        last = len(ordered) - 1
        return (ordered[round(0.9 * last)] - ordered[round(0.1 * last)]) / self.median


class GpuTimer:
    """Times work by events on the current stream, writing the L2 full of something else before each run."""

    def __init__(self) -> None:
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def run(self, work: Work, repeats: int) -> list[float]:
        """Milliseconds of `repeats` runs."""
        pairs = []
        for _ in range(repeats):
            self.flush.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return [start.elapsed_time(stop) for start, stop in pairs]

    def repeats(self, work: Work, milliseconds: float, least: int = 3, most: int = 200) -> int:
        """How many runs take about `milliseconds`; warms up on the way."""
        work()
        torch.cuda.synchronize()
        once = self.run(work, 1)[0]
        if once < 100:
            once = statistics.median(self.run(work, 3))
        return int(min(max(milliseconds / max(once, 1e-3), least), most))


def capture(work: Work) -> Work:
    """A CUDA graph of `work`, as a function that replays it. Raises what capturing raises."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = work()  # outputs live in the graph's pool as long as the graph

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def interleaved(
    timer: GpuTimer, works: dict[str, Work], milliseconds: float, rounds: int = 4
) -> dict[str, Times]:
    """Times several pieces of work against each other: in turns, every second round backwards.

    About `milliseconds` of runs each, in `rounds` rounds, so that a drifting clock hurts all alike.
    """
    number = {name: timer.repeats(work, milliseconds) for name, work in works.items()}
    times = {name: Times() for name in works}
    for turn in range(rounds):
        for name in list(works) if turn % 2 == 0 else list(reversed(works)):
            share = (number[name] + rounds - 1 - turn) // rounds
            times[name].ms += timer.run(works[name], share)
    return times


def host_us(work: Work, gpu_ms: float, rounds: int = 7) -> float:
    """Microseconds of host time that a call takes before it returns, its kernels still running.

    The median of rounds that begin with an idle GPU, of few enough calls not to fill its queue and, by
    gpu_ms (a call's time on the GPU), not to keep it busy for long.
    """
    calls = int(min(max(20 / gpu_ms, 1), 50))
    rates = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        rates.append((time.perf_counter() - start) / calls * 1e6)
    torch.cuda.synchronize()
    return statistics.median(rates)


def gpu_ceilings() -> dict[str, float]:
    """Measured copy bandwidth (bytes read plus written a second) and bf16 matrix rate (FLOP a second)."""
    timer = GpuTimer()

    def copy_ms(size: int) -> float:
        source = torch.empty(size, dtype=torch.uint8, device="cuda").random_(0, 255)
        target = torch.empty_like(source)
        return statistics.median(timer.run(lambda: target.copy_(source), 20))

    def product_ms(n: int) -> float:
        a, b = (torch.randn(n, n, device="cuda").bfloat16() for _ in range(2))
        out = torch.empty_like(a)
        timer.run(lambda: torch.matmul(a, b, out=out), WARM_UP)
        return statistics.median(timer.run(lambda: torch.matmul(a, b, out=out), 20))

    size, n = 2 << 30, 8192
    return {
        "copy_bytes_per_s": 2 * size / copy_ms(size) * 1e3,
        "matmul_flops_per_s": 2 * n**3 / product_ms(n) * 1e3,
    }


def cpu_times(work: Work, repeats: int = 5, warm: int = 1) -> Times:
    """Wall-clock milliseconds of `repeats` runs after `warm` unrecorded ones."""
    for _ in range(warm):
        work()
    times = Times()
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.ms.append((time.perf_counter() - start) * 1e3)
    return times


def cpu_matmul_rate(size: int = 2048, repeats: int = 7) -> float:
    """FLOP a second of an fp32 product of two size x size matrices on this machine's cores."""
    a, b = (torch.randn(size, size) for _ in range(2))
    out = torch.empty_like(a)
    times = cpu_times(lambda: torch.matmul(a, b, out=out), repeats, warm=2)
    return 2 * size**3 / times.median * 1e3
