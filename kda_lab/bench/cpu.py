"""`kda-lab bench cpu`: the PyTorch implementations and the cpu rung on this machine's cores.

T = 4096, H = 8, K = V = 128 in fp32, log gates already activated; medians of five.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

import kda_lab
from kda_lab.bench import ledger, sources
from kda_lab.bench.gold import gold, relative_l2
from kda_lab.bench.machine import fingerprint, now
from kda_lab.bench.textbook import textbook_kda
from kda_lab.bench.timing import cpu_matmul_rate, cpu_times
from kda_lab.bench.workloads import LOWER_BOUND, D, Workload, make_inputs

WORKLOAD = Workload((4096,), 8)
ORDER = ("textbook", "recurrent", "chunked", "cpu")


def cpu_call(gate: str = "weak") -> dict:
    """Arguments of the timed call: unit q and k, activated g and beta, an initial state."""
    x = make_inputs(WORKLOAD, gate, device="cpu", dtype=torch.float32)
    return dict(
        q=x["q"], k=x["k"], v=x["v"], g=LOWER_BOUND * torch.sigmoid(x["g"]),
        beta=torch.sigmoid(x["beta"]), initial_state=x["h0"].mT.contiguous(),
        output_final_state=True, safe_gate=True,
    )  # fmt: skip


def works(a: dict) -> dict[str, Callable]:
    """Every implementation as a function of nothing, in the order of `ORDER`."""
    q, k, v, g, beta = (a[name] for name in ("q", "k", "v", "g", "beta"))
    found: dict[str, Callable] = {}
    found["textbook"] = lambda: textbook_kda(q, k, v, g, beta, D**-0.5, a["initial_state"])
    for name in ("recurrent", "chunked"):
        found[name] = lambda name=name: kda_lab.chunk_kda(**a, backend=name)
    if kda_lab.backends()["cpu"] is None:
        found["cpu"] = lambda: kda_lab.chunk_kda(**a, backend="cpu")
    return found


def measure(repeats: int = 5, gate: str = "weak", say: Callable[[str], None] = print) -> dict:
    """Times all of them and returns the ledger file of kind `cpu`."""
    with torch.no_grad():
        a = cpu_call(gate)
        exact, _ = gold(**a)
        before = cpu_matmul_rate()
        rows = []
        for name, work in works(a).items():
            error = relative_l2(work()[0], exact)
            times = cpu_times(work, repeats)
            rows.append(dict(rung=name, eager_ms=times.median, spread=times.spread, error=error))
            say(f"bench cpu: {name:10s} {times.median:9.1f} ms, error {error:.1e}")
        rate = max(before, cpu_matmul_rate())
    floor_ms = WORKLOAD.flops / rate * 1e3
    shared = dict(
        direction="forward", workload=WORKLOAD.name, gate=gate, floor_ms=floor_ms, dtype="float32"
    )
    hashes = {name: h for name, h in sources.compiled_hashes().items() if name == "cpu"}
    return dict(
        kind="cpu", **(fingerprint() | dict(gpu="", driver="", clocks={}, cuda="")), date=now(),
        command="kda-lab bench cpu", hashes=hashes, rows=[row | shared for row in rows],
        ceilings={"matmul_flops_per_s": rate}, threads=torch.get_num_threads(),
    )  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="kda-lab bench cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the result (default: the ledger)")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    entry = measure(args.repeats)
    folder = args.out or ledger.directory()
    path = ledger.write(entry, folder / ledger.file_name(entry))
    if args.out is None:  # the newest measurement replaces the ones before
        for old in set(folder.glob("cpu-*.json")) - {path}:
            old.unlink()
    from kda_lab.bench import tables

    print(tables.cpu([row | {"gpu": ""} for row in entry["rows"]]))
    print(f"bench: wrote {path.name}")
    return 0
