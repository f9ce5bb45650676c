"""Ledger files and rows for the tests."""

from pathlib import Path

from kda_lab.bench import ledger, sources

MACHINE = dict(
    gpu="NVIDIA H200", driver="580.0", cuda="13.0", torch="2.11.0", clocks={"sm_mhz": [345, 1980]}
)


def entry(kind: str, rows: list[dict], date: str = "2026-11-24T00:00:00Z", **other) -> dict:
    names = {row.get("served_by", row["rung"]) for row in rows}
    hashes = {n: h for n, h in sources.standing_hashes().items() if n in names}
    return (
        dict(kind=kind, **MACHINE, date=date, command=f"kda-lab {kind}", hashes=hashes, rows=rows)
        | other
    )


def timed(
    rung: str = "v1", workload: str = "8192-H96", gate: str = "strong", ms: float = 2.0, **other
) -> dict:
    return dict(
        rung=rung, direction="forward", workload=workload, gate=gate, graph_ms=ms, eager_ms=ms + 0.01,
        spread=0.01, floor_ms=0.25, workspace_bytes=0, peak_bytes=1024, error=3e-3,
        peers={"fla": 3.0, "cudnn_fused": 1.5},
    ) | other  # fmt: skip


def put(entry: dict) -> Path:
    return ledger.write(entry, ledger.directory() / ledger.file_name(entry))
