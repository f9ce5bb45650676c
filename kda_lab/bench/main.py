"""`kda-lab bench`: times rungs and peers on this GPU (`bench`), the CPU implementations (`bench cpu`), or
the microbenchmarks (`bench micro`).

Everything of one workload and gate runs in this process, in turns; the result file is rewritten after each, so
that a run that is cut short keeps what it measured.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import kda_lab
from kda_lab.bench import ledger, peers, sources
from kda_lab.bench import workloads as wl
from kda_lab.bench.gold import Heads, sample
from kda_lab.bench.machine import Clocks, fingerprint, now
from kda_lab.bench.timing import GpuTimer, Work, capture, gpu_ceilings, host_us, interleaved
from kda_lab.inputs import check_call
from kda_lab.native.call import workspace_bytes
from kda_lab.native.rungs import RUNGS
from kda_lab.ops import choose

GOLD_HEADS = 2
WRONG = 0.05  # a relative L2 to fp64 beyond this is not rounding


def say(line: str) -> None:
    print(line, flush=True)


# ---------------------------------------------------------------- what is timed


def rung_work(name: str, w: wl.Workload, x: wl.Inputs) -> tuple[Work, str]:
    """The call of a rung (or of the public path, `auto`) on a workload, and the backend that serves it.

    Raises ValueError with the reason when it declines.
    """
    a = wl.call_arguments(w, x)
    function = kda_lab.fused_recurrent_kda if w.direction == "decode" else kda_lab.chunk_kda
    call = check_call(**a, recurrent=w.direction == "decode")
    served_by = choose(call, name).name
    return lambda: function(**a, backend=name), served_by


def candidates(w: wl.Workload, wanted: list[str] | None) -> list[str]:
    """The rungs to time on a workload: those named, else every compiled one of its direction, and auto."""
    ours = [n for n, r in RUNGS.items() if r.cuda and (r.direction == w.direction or n == "v1")]
    if w is wl.LONGEST:
        ours.remove("v0")  # seconds a call, and nothing to learn from it
    return [n for n in [*ours, "auto"] if wanted is None or n in wanted]


def try_capture(work: Work) -> tuple[Work | None, str]:
    """A replay of `work`, or None and why it cannot be captured."""
    try:
        return capture(work), ""
    except RuntimeError as error:
        torch.cuda.synchronize()
        return None, str(error).split("\n")[0][:120]


def peer_works(
    w: wl.Workload, x: wl.Inputs, wanted: list[str]
) -> tuple[dict[str, Work], dict[str, str]]:
    """Peers that can run here, warmed up (this is where fla tunes itself), and why the others cannot."""
    ready, why = {}, {}
    for name in wanted:
        try:
            with torch.inference_mode():
                work = peers.PEERS[name](w, x)
                work()
                torch.cuda.synchronize()
            ready[name] = work
        except Exception as error:  # a peer may fail in any way; it must not end our run
            why[name] = f"{type(error).__name__}: {str(error)[:120]}"
    return ready, why


# ---------------------------------------------------------------- one workload, one gate


def measure(
    w: wl.Workload, gate: str, timer: GpuTimer, copy: float, args: argparse.Namespace
) -> tuple[list[dict], dict]:
    """Rows of all rungs on one workload and gate, and what could not run with the reason."""
    x = wl.make_inputs(w, gate)
    heads = sample(wl.call_arguments(w, x), GOLD_HEADS)
    exact = heads.gold()
    eager, rows, missing = {}, {}, {}
    for name in candidates(w, args.rung):
        try:
            work, served_by = rung_work(name, w, x)
            row = facts(work, w, x, heads, exact) | dict(rung=name, served_by=served_by)
            row["workspace_bytes"] = scratch(served_by, w, x)
            rows[name], eager[name] = row, work
        except (ValueError, torch.OutOfMemoryError) as error:
            missing[name] = str(error)[:200]
            torch.cuda.empty_cache()
    if not eager:
        return [], missing
    their, why = peer_works(w, x, args.peers)
    missing |= why
    with torch.inference_mode():
        replays, no_graph = {}, {}
        for name, work in (eager | their).items():
            if name in peers.NO_GRAPH and w.direction == "forward":
                continue
            replay, reason = try_capture(work)
            if replay:
                replays[name] = replay
            else:
                no_graph[name] = reason
        graph_times = interleaved(timer, replays, args.milliseconds)
        eager_times = interleaved(timer, eager | their, args.milliseconds)
        host = {
            name: round(host_us(work, eager_times[name].median), 1)
            for name, work in (eager | their).items()
        }
    of_peers = {n: (graph_times.get(n) or eager_times[n]).median for n in their}
    for name, row in rows.items():
        graph = graph_times.get(name)
        row |= dict(
            graph_ms=graph.median if graph else None, eager_ms=eager_times[name].median,
            spread=(graph or eager_times[name]).spread, floor_ms=w.floor_bytes / copy * 1e3,
            runs=len((graph or eager_times[name]).ms), peers=of_peers, gate=gate,
            host_us=host[name], peers_host_us={n: host[n] for n in their},
        )  # fmt: skip
        if not graph:
            row["graph_error"] = no_graph.get(name, "not captured")
    return list(rows.values()), missing


def facts(
    work: Work, w: wl.Workload, x: wl.Inputs, heads: Heads, exact: tuple[Tensor, Tensor]
) -> dict:
    """What is measured once: error on a sample of heads, and the memory a call adds at its peak."""
    with torch.no_grad():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result: tuple[Tensor, Tensor] = work()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        error, state_error = heads.errors(result[0], result[1], exact)
    if not error <= WRONG:
        raise ValueError(f"its output is {error:.1e} from fp64: wrong, so not timed")
    return dict(
        direction=w.direction,
        workload=w.name,
        error=error,
        state_error=state_error,
        peak_bytes=peak,
    )


def scratch(served_by: str, w: wl.Workload, x: wl.Inputs) -> int:
    """Workspace bytes of a rung; 0 for a PyTorch implementation."""
    if served_by not in RUNGS:
        return 0
    call = check_call(**wl.call_arguments(w, x), recurrent=w.direction == "decode")
    return workspace_bytes(served_by, call)


# ---------------------------------------------------------------- a whole run


def plan(args: argparse.Namespace) -> list[tuple[wl.Workload, str]]:
    """(workload, gate) in the order of importance, so that a budget that runs out cuts the tail."""
    names = args.workload or (wl.QUICK if args.quick else wl.ORDER)
    unknown = [n for n in names if n not in wl.ALL]
    if unknown:
        raise SystemExit(f"bench: no workload {unknown[0]!r}; they are {', '.join(wl.ALL)}")
    gates = args.gate or (["strong", "long"] if args.quick else list(wl.GATES))
    chosen = [wl.ALL[n] for n in names]
    forward = [w for w in chosen if w.direction == "forward"]
    pairs = [(w, "strong") for w in chosen if w.direction == "decode"]
    return [(w, g) for w in forward for g in gates] + pairs


def show_ratios(rows: list[dict], missing: dict[str, str]) -> None:
    """One line a rung: ratios to the peers first, then times."""
    for row in rows:
        ms = row["graph_ms"] or row["eager_ms"]
        ratios = "  ".join(
            f"{peer}/{row['rung']} {t / ms:5.2f}" for peer, t in row["peers"].items()
        )
        say(
            f"bench: {row['workload']:14s} {row['gate']:6s} {row['rung']:6s} {ratios}"
            f"  {ms / row['floor_ms']:6.1f} x floor  graph {ms:9.4f} ms  eager {row['eager_ms']:9.4f} ms"
            f"  +-{row['spread']:.1%}  host {row['host_us']:.0f} us  error {row['error']:.1e}"
        )
    for name, reason in missing.items():
        say(f"bench:   {name} did not run: {reason[:150]}")


def bench(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        print(
            "bench: no CUDA GPU here (or a CPU build of PyTorch); `kda-lab bench cpu` needs none",
            file=sys.stderr,
        )
        return 1
    started, clocks = time.time(), Clocks()
    clocks.look()
    ceilings = gpu_ceilings()
    clocks.look()
    say(f"bench: {torch.cuda.get_device_name()}: copy {ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
        f"bf16 product {ceilings['matmul_flops_per_s'] / 1e12:.0f} TFLOP/s")  # fmt: skip
    timer, hashes, rows = GpuTimer(), sources.compiled_hashes(), []
    pairs, path, date = plan(args), None, now()
    slowest = 0.0
    for number, (w, gate) in enumerate(pairs, 1):
        left = args.time_budget - (time.time() - started)
        if left < 1.3 * slowest:
            say(
                f"bench: time budget reached, {len(pairs) - number + 1} of {len(pairs)} not measured"
            )
            break
        begin = time.time()
        say(f"bench: {number} of {len(pairs)}: {w.name}, {gate} gate ({left:.0f} s left)")
        try:
            new, missing = measure(w, gate, timer, ceilings["copy_bytes_per_s"], args)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            say(f"bench:   failed: {str(error).splitlines()[0][:200]}")
            if not _alive():
                break
            continue
        finally:
            torch.cuda.empty_cache()
        clocks.look()
        show_ratios(new, missing)
        rows += new
        served = {row["served_by"] for row in rows}
        entry = dict(
            kind="bench", **fingerprint(clocks), date=date, command=" ".join(["kda-lab bench", *args.words]),
            hashes={n: h for n, h in hashes.items() if n in served}, rows=rows, ceilings=ceilings,
            versions=peers.versions(),
        )  # fmt: skip
        if rows:
            path = ledger.write(entry, args.out / ledger.file_name(entry))
        if number > 1:  # the first pays for compilation and tuning
            slowest = max(slowest, time.time() - begin)
    if path is None:
        print("bench: nothing was measured", file=sys.stderr)
        return 1
    say(f"bench: wrote {path}; {time.time() - started:.0f} s")
    if args.out.resolve() != ledger.directory().resolve():
        say(f"bench: ledger: {ledger.add(path).name}")
    return 0


def _alive() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kda-lab bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="six workloads, two gates; within two minutes"
    )
    parser.add_argument(
        "--rung",
        nargs="+",
        choices=[*sources.gpu_rungs(), "auto"],
        help="default: all, as far as they run on this GPU",
    )
    parser.add_argument("--workload", nargs="+", help="by name, such as 8192-H96")
    parser.add_argument("--gate", nargs="+", choices=list(wl.GATES))
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=list(peers.PEERS),
        help=f"default: all but {', '.join(peers.ON_REQUEST)}; --quick: nor fla",
    )
    parser.add_argument(
        "--milliseconds",
        type=float,
        help="of runs per candidate and kind (default 150, --quick 50)",
    )
    parser.add_argument("--time-budget", type=float, help="seconds (default 1500, --quick 110)")
    parser.add_argument("--out", type=Path, help="folder for the result (default: the ledger)")
    args = parser.parse_args(argv)
    args.words = argv
    args.out = args.out or ledger.directory()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.peers is None:
        args.peers = [
            p for p in peers.PEERS if p not in peers.ON_REQUEST and not (args.quick and p == "fla")
        ]
    args.milliseconds = args.milliseconds or (50 if args.quick else 150)
    args.time_budget = args.time_budget or (110 if args.quick else 1500)
    return args


def main(argv: list[str]) -> int:
    if argv[:1] == ["cpu"]:
        from kda_lab.bench import cpu

        return cpu.main(argv[1:])
    if argv[:1] == ["micro"]:
        from kda_lab.bench import micro

        return micro.main(argv[1:])
    return bench(arguments(argv))
