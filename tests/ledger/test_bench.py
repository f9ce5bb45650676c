"""What the bench computes from what it times; the timing itself needs a GPU."""

import functools
import time
import types

import pytest
import torch

import kda_lab
from kda_lab.bench import cpu, ledger, main, micro, peers, plots, profile, sources, tables, timing
from kda_lab.bench import workloads as wl
from kda_lab.bench.textbook import textbook_kda
from tests.ledger.entries import entry, put


def test_the_workloads_of_the_contract():
    names = (
        "8192-H96 mixed6-H96 1024x8-H96 8192-H64 mixed6-H64 1024x8-H64 8192-H32 8192-H16 2048-H12 "
        "65536-H16 4096x4-H16 512-H64"
    )
    assert [w.name for w in wl.FORWARD] == names.split()
    assert wl.LONGEST.name == "1048576-H16"
    assert {"1x32-H32", "1x256-H32", "1-H32"} <= set(wl.ALL)
    assert set(wl.QUICK) <= set(wl.ALL)


@pytest.mark.parametrize(
    "name, milliseconds",
    [("8192-H96", 0.336), ("mixed6-H96", 0.356), ("1024x8-H96", 0.365), ("65536-H16", 0.446)],
)
def test_the_floor_is_the_one_that_was_published(name, milliseconds):
    assert wl.ALL[name].floor_bytes / 3.03e12 * 1e3 == pytest.approx(milliseconds, rel=0.02)


def test_the_arithmetic_floor():
    assert wl.Workload((4096,), 8).flops == 4096 * 8 * 114_688


def test_inputs_are_seeded_and_gated():
    w = wl.Workload((100, 28), 2)
    x, y = (wl.make_inputs(w, "long", seed=3, device="cpu") for _ in range(2))
    assert all(torch.equal(x[name], y[name]) for name in x)
    assert x["g"].float().mean().item() == pytest.approx(-8.5, abs=0.1)
    assert x["cu"].tolist() == [0, 100, 128] and x["h0"].shape == (2, 2, 128, 128)
    assert x["q"].norm(dim=-1).float().mean().item() == pytest.approx(1, abs=1e-2)
    o, state = kda_lab.chunk_kda(**wl.call_arguments(w, x), backend="chunked")
    assert o.isfinite().all() and state.shape == x["h0"].shape


def test_textbook_is_right_at_every_gate():
    for gate in wl.GATES:
        w = wl.Workload((128,), 2)
        x = wl.make_inputs(w, gate, device="cpu", dtype=torch.float32)
        g, beta, S = wl.LOWER_BOUND * x["g"].sigmoid(), x["beta"].sigmoid(), x["h0"].mT.contiguous()
        want = kda_lab.chunk_kda(
            x["q"],
            x["k"],
            x["v"],
            g,
            beta,
            initial_state=S,
            output_final_state=True,
            backend="reference",
        )
        got = textbook_kda(x["q"], x["k"], x["v"], g, beta, 128**-0.5, S)
        for a, b in zip(got, want, strict=True):
            assert ((a - b).norm() / b.norm()).item() < 1e-5


def test_textbook_refuses_a_ragged_length():
    x = torch.zeros(1, 65, 1, 4)
    with pytest.raises(ValueError, match="q has T = 65"):
        textbook_kda(x, x, x, x, x[..., 0], 1.0, torch.zeros(1, 1, 4, 4))


def test_medians_and_spread():
    times = timing.Times([float(x) for x in range(1, 12)])
    assert times.median == 6.0
    assert times.spread == pytest.approx((10 - 2) / 6)


class Clock:
    """Times work by the numbers it is given instead of by a GPU."""

    def __init__(self, ms):
        self.ms, self.order = ms, []

    def run(self, work, repeats):
        self.order.append(work)
        return [self.ms[work]] * repeats

    def repeats(self, work, milliseconds):
        return 8


def test_works_are_timed_in_turns_and_backwards_every_second_round():
    a, b = object(), object()
    clock = Clock({a: 1.0, b: 2.0})
    times = timing.interleaved(clock, {"a": a, "b": b}, 100, rounds=4)
    assert clock.order == [a, b, b, a, a, b, b, a]
    assert len(times["a"].ms) == 8 and times["b"].median == 2.0


def test_host_time_is_that_of_a_call(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: time.sleep(0.01))  # never counted
    calls = []
    slow = timing.host_us(lambda: calls.append(time.sleep(0.002)), gpu_ms=5.0, rounds=3)
    assert len(calls) == 3 * 4 and 2000 < slow < 8000
    assert timing.host_us(lambda: calls.append(0), gpu_ms=100.0, rounds=3) < 1000
    assert len(calls) == 3 * 4 + 3


@pytest.fixture
def no_cuda(monkeypatch):
    """`measure` on CPU tensors: the compiled cpu rung stands for a GPU's, and two peers are invented."""
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    make = wl.make_inputs
    monkeypatch.setattr(
        wl, "make_inputs", lambda w, gate: make(w, gate, device="cpu", dtype=torch.float32)
    )
    monkeypatch.setattr(main, "candidates", lambda w, wanted: ["recurrent", "auto", "v0"])
    monkeypatch.setattr(
        peers, "PEERS", {"fla": lambda w, x: lambda: "fla", "cudnn_fused": broken_peer}
    )

    def times(timer, works, milliseconds):
        return {
            name: timing.Times([float(len(name)), float(len(name)) + 1, 99.0]) for name in works
        }

    monkeypatch.setattr(main, "interleaved", times)


def broken_peer(w, x):
    raise ImportError("No module named 'cudnn'")


def test_rows_of_one_workload(no_cuda, monkeypatch):
    def capture(work):
        if work() == "fla":
            raise RuntimeError("cannot be captured")
        return work

    monkeypatch.setattr(main, "capture", capture)
    args = types.SimpleNamespace(rung=None, peers=["fla", "cudnn_fused"], milliseconds=1)
    w = wl.Workload((64, 33), 2)
    rows, missing = main.measure(w, "weak", None, 3.0e12, args)
    assert [row["rung"] for row in rows] == ["recurrent", "auto"]
    assert "v0" in missing and "No module" in missing["cudnn_fused"]
    auto = rows[1]
    assert auto["served_by"] in ("cpu", "chunked")
    assert auto["graph_ms"] == 5.0 and auto["peers"] == {"fla": 4.0}
    assert auto["host_us"] > auto["peers_host_us"]["fla"] > 0
    assert auto["floor_ms"] == pytest.approx(w.floor_bytes / 3e9)
    assert auto["error"] < 1e-5 and auto["state_error"] < 1e-5
    machine = dict(
        gpu="NVIDIA H200", driver="", cuda="", torch="", clocks={}, date="2026-11-24T00:00:00Z"
    )
    ledger.validate(dict(kind="bench", command="", hashes={}, rows=rows, **machine), "rows")


def test_a_rung_that_cannot_be_captured_says_so(no_cuda, monkeypatch):
    def capture(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(main, "capture", capture)
    args = types.SimpleNamespace(rung=None, peers=[], milliseconds=1)
    rows, _ = main.measure(wl.Workload((64,), 1), "strong", None, 3.0e12, args)
    assert rows[0]["graph_ms"] is None and "not permitted" in rows[0]["graph_error"]
    assert tables.milliseconds(rows[0]) == rows[0]["eager_ms"]


def test_compiled_pytorch_is_the_same_function(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    w = wl.Workload((100,), 2)  # the last chunk is not full
    x = wl.make_inputs(w, "strong", device="cpu", dtype=torch.float32)
    o, state = peers.torch_compile(w, x)()
    o_ref, state_ref = kda_lab.chunk_kda(**wl.call_arguments(w, x), backend="recurrent")
    assert o.shape == o_ref.shape and (o - o_ref).norm() < 1e-5 * o_ref.norm()
    assert (state - state_ref).norm() < 1e-5 * state_ref.norm()
    assert torch.get_float32_matmul_precision() == "highest"


def test_compiled_pytorch_is_timed_only_when_named():
    assert "torch_compile" not in main.arguments(["--out", "/tmp"]).peers
    named = main.arguments(["--peers", "torch_compile", "--out", "/tmp"])
    assert named.peers == ["torch_compile"] and "torch_compile" in tables.PEERS


def test_the_plan_puts_the_public_shapes_first():
    args = main.arguments(["--quick", "--out", "/tmp"])
    pairs = main.plan(args)
    assert len(pairs) == 10 and {gate for _, gate in pairs} == {"strong", "long"}
    pairs = main.plan(main.arguments(["--out", "/tmp"]))
    assert [(w.name, gate) for w, gate in pairs[:3]] == [
        ("8192-H96", g) for g in ("strong", "weak", "long")
    ]
    with pytest.raises(SystemExit, match="nonsense"):
        main.plan(main.arguments(["--workload", "nonsense", "--out", "/tmp"]))


def test_bench_without_a_gpu_says_so(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main.main(["--quick", "--out", str(tmp_path)]) == 1
    assert "bench cpu" in capsys.readouterr().err


# ---------------------------------------------------------------- cpu


def test_bench_cpu_records_rows_that_the_ledger_shows(kernels, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "WORKLOAD", wl.Workload((128,), 2))
    assert cpu.main(["--repeats", "3"]) == 0
    assert cpu.main(["--repeats", "2"]) == 0
    assert len(list((kernels / "measurements").glob("cpu-*.json"))) == 1
    rows = {row["rung"]: row for row in ledger.show()}
    assert {"textbook", "recurrent", "chunked"} <= set(rows)
    assert all(
        r["gpu"] == "" and r["direction"] == "forward" and r["error"] < 1e-5 for r in rows.values()
    )
    assert "x textbook" in capsys.readouterr().out
    assert "chunked" in tables.cpu(ledger.show()) and "chunked" in plots.cpu_bars()[1]
    if "cpu" in rows:
        source = kernels / sources.rungs.RUNGS["cpu"].sources[0]
        source.write_bytes(source.read_bytes() + b"\n")
        assert "cpu" not in {row["rung"] for row in ledger.show()}


# ---------------------------------------------------------------- microbenchmarks, profile


def test_a_program_prints_rows():
    text = 'building\n{"workload": "n=64", "value": 612.0, "unit": "TFLOP/s", "predicted": 660.0}\nbye\n'
    (row,) = micro.rows_of("wgmma_rate", text)
    assert row["rung"] == "wgmma_rate" and row["direction"] == "micro" and row["predicted"] == 660.0


def test_ncu_units_are_added_up():
    text = "\n".join(
        [
            "==PROF== Connected",
            '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"',
            '"0","prepare","dram__bytes_read.sum","Mbyte","1,200.5"',
            '"0","prepare","dram__bytes_write.sum","Kbyte","500"',
            '"0","prepare","gpu__time_duration.sum","us","10"',
            '"1","walk","dram__bytes_read.sum","byte","7"',
            '"1","walk","smsp__inst_executed.sum","inst","1,000"',
            '"1","walk","l1tex__data_pipe_lsu_wavefronts_mem_shared.sum","","30"',
        ]
    )
    sums = profile.totals(text)
    moved = {"read": 1_200_500_007.0, "write": 500_000.0, "ns": 10_000.0, "kernels": 2}
    assert sums == moved | {"instructions": 1000.0, "cycles": 0.0, "shared_wavefronts": 30.0}


def test_what_the_compiler_made_is_shown_for_the_newest_profile_of_each_rung(kernels):
    made = {"arch": "90a", "sass": {"LDG.E": 3, "LDG.E.128": 2, "LDGSTS.E": 1}}
    made["kernels"] = [{"name": "recurrence", "registers": 64, "spilled": 0}]
    old = dict(rung="v0", workload="8192-H96", gate="strong", dram_bytes=1.0)
    put(entry("profile", [old | {"compiled": {**made, "sass": {}}}]))
    new = [old | {"compiled": made}, old | {"workload": "8192-H16"}]
    put(entry("profile", new, "2026-11-25T00:00:00Z"))
    rows = tables.profiled(("v1", "v0"), "8192-H96")
    assert [row["rung"] for row in rows] == ["v0"]
    assert "| **v0** recurrence | 64 | 0 |" in tables.compiled(rows)
    table = tables.instructions(rows, {r"LDG\.E$": "4 bytes", r"LDG\.E.*\.128": "16 bytes"})
    assert "| **v0**, all its kernels | 3 | 2 |" in table
    assert tables.compiled([old]) == tables.instructions([], {}) == tables.NOTHING
