"""`kda-lab trace`: when each warp of a rung waited, loaded, computed and stored, recorded on this GPU.

The rung is compiled a second time with the hooks of `kernels/common/trace.cuh` switched on; the library
that is timed and shipped has none. A few blocks and a window of chunks are kept, so that a trace stays
small enough to look at.
"""

import argparse
import ctypes
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from kda_lab.bench import ledger, sources
from kda_lab.bench import workloads as wl
from kda_lab.bench.machine import Clocks, fingerprint, now
from kda_lab.hopper.trace import RECORD, Trace, from_records
from kda_lab.native import build
from kda_lab.native.rungs import RUNGS, closure
from kda_lab.native.toolchain import Unbuildable

HOOKS = "common/trace.cuh"
ROLES = ("load", "load v", "store", *(f"math {i}" for i in range(8)))  # kda::trace::Role
WHATS = ("wait", "load", "store", "solve", "state")  # kda::trace::What
SPANS = 512  # records of a warp for which there is room


def traceable() -> list[str]:
    """The rungs whose sources have hooks."""
    return [
        name
        for name in sources.gpu_rungs()
        if any(path.as_posix().endswith(HOOKS) for path in closure(name))
    ]


def instrumented(rung: str) -> Path:
    """The rung's library with its hooks switched on, compiled if need be. Raises Unbuildable."""
    row = RUNGS[rung]
    return build.build_rung(replace(row, flags=(*row.flags, "-DKDA_TRACE")))


def record(
    rung: str, workload: str, gate: str, blocks: int, first_chunk: int, chunks: int
) -> bytes:
    """Runs the rung once with hooks, after a warm-up, and returns the records of its warps.

    Has to come before the process loads the rung in any other way. Raises Unbuildable, or ValueError when
    the rung declines the workload.
    """
    from kda_lab.bench.main import rung_work

    with tempfile.TemporaryDirectory() as folder:
        path = instrumented(rung)
        build.copy_out(path, Path(folder))
        os.environ["KDA_LAB_LIBRARY_DIR"] = folder
        w = wl.ALL[workload]
        work, _ = rung_work(rung, w, wl.make_inputs(w, gate))
        library = ctypes.CDLL(str(Path(folder) / path.name))  # the copy that is loaded already
        size = blocks * len(ROLES) * SPANS * RECORD.itemsize
        with torch.no_grad():
            records = torch.zeros(size, dtype=torch.uint8, device="cuda")
            work()
            torch.cuda.synchronize()
            into = ctypes.c_void_p(records.data_ptr())
            if library.kda_trace_into(into, blocks, SPANS, first_chunk, chunks):
                raise RuntimeError("CUDA refused the address of the records")
            work()
            torch.cuda.synchronize()
    return records.cpu().numpy().tobytes()


def row(records: bytes, rung: str, workload: str, gate: str, gpu: str) -> dict:
    """A ledger row from what a rung recorded. Raises ValueError when that is nothing."""
    made: Trace = from_records(
        records,
        ROLES,
        WHATS,
        title=f"{rung}, {workload}",
        source=f"recorded on {gpu}",
        unit="cycles",
        each_block_from_zero=True,
    )
    if not made.events:
        raise ValueError("nothing was recorded: are there so many chunks?")
    seen = {event.role for event in made.events}
    return dict(
        rung=rung,
        direction="forward",
        workload=workload,
        gate=gate,
        unit=made.unit,
        roles=[role for role in made.roles if role in seen],
        events=[event.to_dict() for event in made.events],
    )


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kda-lab trace",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [w.name for w in wl.FORWARD]
    parser.add_argument("--rung", nargs="+", help="default: every rung that has hooks")
    parser.add_argument("--workload", default="2048-H12", choices=names, metavar="NAME")
    parser.add_argument("--gate", default="strong", choices=list(wl.GATES))
    parser.add_argument("--blocks", type=int, default=2, help="blocks recorded (default 2)")
    parser.add_argument("--first-chunk", type=int, default=8, help="start of the window (8)")
    parser.add_argument("--chunks", type=int, default=8, help="length of the window (8)")
    parser.add_argument("--out", type=Path, help="folder for the result (default: the ledger)")
    args = parser.parse_args(argv)
    for name, least in (("blocks", 1), ("first_chunk", 0), ("chunks", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    unknown = [name for name in args.rung or [] if name not in traceable()]
    if unknown:
        parser.error(
            f"rung {unknown[0]!r} has no hooks to record with; those that have: "
            f"{', '.join(traceable())}"
        )
    return args


def main(argv: list[str]) -> int:
    args = arguments(argv)
    if not torch.cuda.is_available():
        print("trace: no CUDA GPU here (or a CPU build of PyTorch)", file=sys.stderr)
        return 1
    clocks, date, rows = Clocks(), now(), []
    hashes = sources.compiled_hashes()
    for rung in args.rung or traceable():
        try:
            records = record(
                rung, args.workload, args.gate, args.blocks, args.first_chunk, args.chunks
            )
            clocks.look()
            rows.append(row(records, rung, args.workload, args.gate, torch.cuda.get_device_name()))
        except (Unbuildable, ValueError, RuntimeError) as reason:
            print(f"trace: {rung}: {reason}", file=sys.stderr)
            continue
        print(f"trace: {rung}: {len(rows[-1]['events'])} spans", flush=True)
    if not rows:
        return 1
    entry = dict(
        kind="trace",
        **fingerprint(clocks),
        date=date,
        command=" ".join(["kda-lab trace", *argv]),
        hashes={r["rung"]: hashes[r["rung"]] for r in rows},
        rows=rows,
    )
    out = args.out or ledger.directory()
    path = ledger.write(entry, out / ledger.file_name(entry))
    if out.resolve() != ledger.directory().resolve():
        ledger.add(path)
    print(f"trace: wrote {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
