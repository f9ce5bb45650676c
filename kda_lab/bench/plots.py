"""Pictures drawn from the ledger: time against floor, and the roofline."""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from kda_lab import palette
from kda_lab.bench import ledger, tables
from kda_lab.bench import workloads as wl
from kda_lab.native.rungs import RUNGS

MARKS = dict(zip([*RUNGS, "auto"], "xosDv^P*phX", strict=False))
SHADES = (
    "#f2b8de",
    "#e482c3",
    "#ce2d9e",
    "#9a1f76",
    "#6b1552",
    "#430b33",
)  # our rungs, older ones paler


def shade(rung: str) -> str:
    """The colour of a rung: one hue, darker with every rung."""
    ladder = [r for r in RUNGS if RUNGS[r].cuda] + ["auto"]
    place = ladder.index(rung) if rung in ladder else 0
    return SHADES[min(place, len(SHADES) - 1)]


def without_auto(by_workload: dict[str, dict[str, dict]]) -> dict[str, dict[str, dict]]:
    """The rungs themselves: `auto` is one of them under another name."""
    rungs = {
        w: {r: x for r, x in by_rung.items() if r != "auto"} for w, by_rung in by_workload.items()
    }
    return {w: by_rung for w, by_rung in rungs.items() if by_rung}


def time_against_floor(gate: str = "strong", rows: list[dict] | None = None) -> tuple[Figure, str]:
    """Every workload's rungs and peers as multiples of its floor, and what the picture shows in words."""
    by_workload = tables.timed(ledger.show() if rows is None else rows, "forward", gate)
    by_workload = without_auto(by_workload)
    with palette.style():
        fig, ax = plt.subplots(figsize=(7.2, 0.9 + 0.34 * max(len(by_workload), 3)))
        if not by_workload:
            return _nothing(fig, ax)
        names = list(by_workload)
        flat = [row for by_rung in by_workload.values() for row in by_rung.values()]
        for y, name in enumerate(names):
            rungs = by_workload[name]
            peers = {p: t for row in rungs.values() for p, t in row["peers"].items()}
            floor = next(iter(rungs.values()))["floor_ms"]
            for i, (peer, ms) in enumerate(sorted(peers.items(), key=lambda item: item[1])):
                ax.plot(ms / floor, y, "|", ms=13, mew=2.5, color=palette.PEER)
                if y == 0:
                    palette.label(
                        ax,
                        ms / floor,
                        y,
                        tables.PEERS[peer],
                        "peer",
                        xytext=(0, 10 + 9 * (i % 2)),
                        ha="center",
                        fontsize=7,
                    )
            for rung, row in rungs.items():
                x = tables.milliseconds(row) / floor
                ax.plot(x, y, MARKS[rung], ms=6, color=shade(rung))
                if y == len(names) - 1:
                    palette.label(
                        ax, x, y, rung, shade(rung), xytext=(0, -11), ha="center", fontsize=8
                    )
        ax.axvline(1, color=palette.REFERENCE, lw=1.2)
        ax.set(
            xscale="log",
            xlabel="time / time that the bytes alone take",
            yticks=range(len(names)),
            yticklabels=names,
        )
        ax.set_ylim(len(names) - 0.3, -1.1)
        ax.grid(axis="x", which="both", alpha=0.5)
        ax.set_title(
            f"Forward, {gate} gate: how far from the floor. {tables.recorded(flat)}", fontsize=9
        )
    best = {
        n: min(tables.milliseconds(r) / r["floor_ms"] for r in by_workload[n].values())
        for n in names
    }
    words = ", ".join(f"{n} {x:.1f}" for n, x in best.items())
    return (
        fig,
        f"Time of every rung and peer as a multiple of the floor, {gate} gate. Our best: {words}.",
    )


def roofline(rows: list[dict] | None = None) -> tuple[Figure, str]:
    """Achieved arithmetic rate against intensity under the measured roof, strong gate, one mark a rung and workload."""
    entries = [e for e in ledger.files() if e["kind"] == "bench"]
    by_workload = tables.timed(ledger.show() if rows is None else rows, "forward", "strong")
    by_workload = without_auto(by_workload)
    flat = [(w, row) for w, by_rung in by_workload.items() for row in by_rung.values()]
    with palette.style():
        fig, ax = plt.subplots(figsize=(6.4, 4.0))
        if not flat or not entries:
            return _nothing(fig, ax)
        gpu = flat[-1][1]["gpu"]
        ceilings = [e["ceilings"] for e in entries if e["gpu"] == gpu][-1]
        copy, product = ceilings["copy_bytes_per_s"], ceilings["matmul_flops_per_s"]
        x = [1, product / copy, 4000]
        ax.plot(x, [min(i * copy, product) / 1e12 for i in x], color=palette.REFERENCE)
        palette.label(
            ax,
            x[1],
            product / 1e12,
            f"bf16 product, measured: {product / 1e12:.0f} TFLOP/s",
            "reference",
            xytext=(-60, 8),
        )
        palette.label(
            ax,
            2,
            2 * copy / 1e12,
            f"copy, measured: {copy / 1e12:.1f} TB/s",
            "reference",
            xytext=(6, -8),
        )
        last: dict[str, tuple[float, float]] = {}
        for name, row in flat:
            w = wl.ALL[name]
            here = w.flops / w.floor_bytes, w.flops / tables.milliseconds(row) / 1e9
            last[row["rung"]] = max(here, last.get(row["rung"], here))
            ax.plot(*here, MARKS[row["rung"]], ms=6, color=shade(row["rung"]))
        for rung, (x_last, rate) in last.items():
            palette.label(ax, x_last, rate, rung, shade(rung), xytext=(14, 0), fontsize=9)
        ax.set(xscale="log", yscale="log", xlim=(1, 4000))
        ax.set(xlabel="FLOP per byte that must move (chunk-16 form)", ylabel="TFLOP/s achieved")
        ax.set_title(tables.recorded([row for _, row in flat]), fontsize=9)
    return (
        fig,
        f"Roofline of an {gpu}: every rung on every workload, below a measured roof of "
        f"{copy / 1e12:.1f} TB/s and {product / 1e12:.0f} TFLOP/s.",
    )


def cpu_bars(rows: list[dict] | None = None) -> tuple[Figure, str]:
    """The CPU implementations' times as bars on one axis, with the arithmetic floor."""
    mine = ledger.newest(
        [
            r
            for r in (ledger.show() if rows is None else rows)
            if r["gpu"] == "" and r["direction"] == "forward"
        ]
    )
    with palette.style():
        fig, ax = plt.subplots(figsize=(6.4, 2.4))
        if not mine:
            return _nothing(fig, ax)
        found = sorted(mine.values(), key=lambda row: -row["eager_ms"])
        floor = found[0]["floor_ms"]
        for y, row in enumerate(found):
            ax.barh(
                y,
                row["eager_ms"],
                color=palette.PEER if row["rung"] == "textbook" else palette.OWN,
                height=0.6,
            )
            palette.label(ax, row["eager_ms"], y, f"{row['rung']}, {row['eager_ms']:,.0f} ms")
        ax.axvline(floor, color=palette.REFERENCE, lw=1.2)
        palette.label(ax, floor, -0.75, f"floor {floor:,.0f} ms", "reference")
        ax.set(
            xscale="log",
            xlabel="milliseconds, T = 4096, H = 8",
            yticks=[],
            xlim=(floor / 2, found[0]["eager_ms"] * 8),
        )
        ax.set_ylim(len(found) - 0.4, -1.1)
        ax.spines["left"].set_visible(False)
    words = ", ".join(f"{row['rung']} {row['eager_ms']:,.0f} ms" for row in found)
    return (
        fig,
        f"Time of one forward pass on a CPU: {words}; the arithmetic alone would take {floor:,.0f} ms.",
    )


def _nothing(fig: Figure, ax: plt.Axes) -> tuple[Figure, str]:
    ax.axis("off")
    ax.text(
        0.5,
        0.5,
        textwrap.fill(tables.NOTHING, 40),
        ha="center",
        va="center",
        color=palette.REFERENCE,
    )
    return fig, tables.NOTHING


def write(folder: Path) -> int:
    """Writes every picture as PNG into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ledger.show()
    drawn = {f"floor-{gate}": time_against_floor(gate, rows) for gate in wl.GATES}
    drawn |= {"roofline": roofline(rows), "cpu": cpu_bars(rows)}
    for name, (fig, _) in drawn.items():
        fig.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
        plt.close(fig)
        print(f"ledger: {folder / name}.png")
    return 0
