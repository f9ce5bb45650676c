"""The cpu rung beyond the contract's cases: every instruction set, every tile remainder, threads, memory."""

import subprocess
from pathlib import Path

import pytest
import torch

from kda_lab import backends, chunk_kda
from kda_lab.contract import GATE_KINDS, make_call
from kda_lab.inputs import check_call
from kda_lab.native import build
from kda_lab.native.call import binding, run, run_in_place
from kda_lab.native.rungs import RUNGS, kernels_dir
from kda_lab.reference import run_fp64

CPU = RUNGS["cpu"]
CPUINFO = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
ISAS = ["baseline"]
if " avx2 " in CPUINFO and " fma " in CPUINFO:
    ISAS += ["avx2", "avx512 as avx2"]
if " avx512vl " in CPUINFO and " avx512dq " in CPUINFO:
    ISAS += ["avx512"]


@pytest.fixture(scope="session", autouse=True)
def rung_is_here():
    assert backends()["cpu"] is None


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The rung with its 16-lane code compiled to pairs of AVX2 registers."""
    path = tmp_path_factory.mktemp("emulated") / "libkda_cpu.so"
    root = kernels_dir()
    flags = [*build.CXX_FLAGS, "-O1", "-Wno-psabi", "-DKDA_EMULATE_AVX512"]
    flags.append(f"-I{root / 'include'}")
    subprocess.run(["g++", *flags, str(root / "cpu/cpu.cpp"), "-o", str(path)], check=True)
    return binding().load(str(path), "cpu")


@pytest.fixture(params=ISAS)
def isa(request, monkeypatch):
    """Runs the test with one instruction set."""
    name = request.param.split()[0]
    monkeypatch.setenv("KDA_LAB_CPU_ISA", name)
    if "as" in request.param:
        library = request.getfixturevalue("emulated")
        monkeypatch.setattr("kda_lab.native.call.load", lambda _: library)
    return request.param


def assert_right(kw: dict, tolerance: float, state_tolerance: float = 1e-5) -> None:
    call = check_call(**kw)
    want_o, want_state = run_fp64(call)
    o, state = run(CPU, call)
    assert relative(o, want_o) < tolerance
    if call.output_final_state:
        assert relative(state, want_state) < state_tolerance


def relative(x, want) -> float:
    return ((x.double() - want).norm() / want.norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_gates(isa, kind):
    assert_right(make_call(kind, torch.float32, lengths=(50,), K=40, V=37), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "K,V",
    [(1, 1), (3, 5), (16, 31), (17, 32), (33, 33), (64, 16), (128, 128), (130, 66), (256, 20)],
)
def test_shapes(isa, K, V, dtype):
    kw = make_call("mixture", dtype, lengths=(35,), H=1, HV=2, K=K, V=V)
    assert_right(kw, 1e-5 if dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize("T", [*range(1, 34), 129])
def test_lengths(isa, T):
    kw = make_call("strong", torch.float32, lengths=(T,), H=1, HV=1, K=16, V=16)
    assert_right(kw, 1e-5)


def test_strided_inputs():
    """Head-major storage, a slice of wider rows, channels apart, one key expanded over all heads."""
    kw = make_call("weak", torch.float32, lengths=(40,), B=2, H=2, HV=4, K=24, V=20)
    plain = run(CPU, check_call(**kw))
    views = dict(kw)
    views["q"] = kw["q"].transpose(1, 2).contiguous().transpose(1, 2)
    views["v"] = torch.cat([kw["v"], kw["v"]], -1)[..., :20]
    views["g"] = torch.stack([kw["g"], kw["g"]], -1)[..., 0]
    views["beta"] = kw["beta"].transpose(1, 2).contiguous().transpose(1, 2)
    views["initial_state"] = kw["initial_state"].transpose(2, 3).contiguous().transpose(2, 3)
    assert not any(views[n].is_contiguous() for n in ("q", "v", "g", "beta", "initial_state"))
    for a, b in zip(run(CPU, check_call(**views)), plain):
        assert torch.equal(a, b)
    one = dict(kw, k=kw["k"][:, :, :1].expand(-1, -1, 2, -1))
    copied = dict(one, k=one["k"].contiguous())
    assert torch.equal(run(CPU, check_call(**one))[0], run(CPU, check_call(**copied))[0])


def test_threads_change_nothing(isa, monkeypatch):
    """The same bits however the work is divided: one thread, more threads than heads (V is split)."""
    kw = make_call("weak", torch.float32, lengths=(700, 0, 35), packed=True, HV=2, K=128, V=100)
    results = []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        results.append(run(CPU, check_call(**kw)))
    for o, state in results[1:]:
        assert torch.equal(o, results[0][0])
        assert torch.equal(state, results[0][1])


def test_a_slow_constant_decay_does_not_drift():
    """65,536 tokens of g = -1e-4: 4,096 chunk borders, whose equal rounding errors would add up."""
    generator = torch.Generator().manual_seed(0)
    T = 65536  # the state's horizon is 10,000 tokens
    q, k = (
        torch.nn.functional.normalize(torch.randn(1, T, 1, 8, generator=generator), dim=-1)
        for _ in range(2)
    )
    v = torch.randn(1, T, 1, 4, generator=generator) + 1
    g = torch.full((1, T, 1, 8), -1e-4)
    beta = torch.full((1, T, 1), 1e-4)
    kw = dict(q=q, k=k, v=v, g=g, beta=beta, output_final_state=True)
    assert_right(kw, 2e-6, 2e-6)


def test_identical_keys_with_beta_up_to_two():
    """At 2 itself the eigenvalue along the key is -1: errors never decay, in any implementation."""
    for beta in (0.9997, 1.99):
        kw = make_call(
            "zero", torch.float32, lengths=(512,), H=1, HV=1, K=32, V=32, keys="identical"
        )
        kw["beta"] = torch.full_like(kw["beta"], beta)
        assert_right(kw, 1e-5)


def test_nothing_is_written_outside_the_outputs():
    """o inside a larger poisoned buffer: every element of o is written, and no other."""
    for lengths, packed in (((75,), False), ((3, 0, 20), True)):
        kw = make_call("strong", torch.float32, lengths=lengths, packed=packed, spare=4 * packed)
        call = check_call(**kw)
        want, want_state = run(CPU, call)
        for poison in (torch.nan, 12345.0):
            room = torch.full((call.B, call.T + 2, call.HV + 2, call.V + 9), poison)
            o = room[:, 1:-1, 1:-1, 4:-5]
            states = torch.full((want_state.numel() + 64,), poison)
            state = states[32:-32].view_as(want_state)
            forward_into(call, o, state)
            assert torch.equal(o, want)
            assert torch.equal(state, want_state)
            o.fill_(poison)
            state.fill_(poison)
            for buffer in (room, states):
                assert torch.equal(
                    buffer.nan_to_num(0), torch.full_like(buffer, poison).nan_to_num(0)
                )


def forward_into(call, o, state) -> None:
    """The rung on the caller's own output buffers."""
    from kda_lab.native import call as native

    arguments = native._Arguments(call)
    arguments.args.o = (*(o.data_ptr(), *o.stride()[:3]), native.DTYPES[o.dtype])
    arguments.args.final_state = state.data_ptr()
    native._forward(CPU, arguments, o.device)


def test_state_in_place():
    """Initial and final state in one buffer, also when V is split over threads."""
    kw = make_call(
        "weak", torch.float32, lengths=(300,), H=1, HV=1, K=128, V=128, state_v_first=True
    )
    call = check_call(**kw)
    want, want_state = run(CPU, call)
    state = kw["initial_state"].clone()
    unset = dict(kw, initial_state=None, output_final_state=False)
    o = run_in_place("cpu", check_call(**unset), state)
    assert torch.equal(o, want)
    assert torch.equal(state, want_state)


@pytest.mark.parametrize(
    "bad,error,word",
    [
        (lambda s: s[:, :1], ValueError, "state"),
        (lambda s: s.double(), TypeError, "state"),
        (lambda s: s.transpose(2, 3), ValueError, "contiguous"),
        (lambda s: torch.cat([s, s]), ValueError, "slots"),
    ],
)
def test_state_in_place_refuses(bad, error, word):
    kw = make_call("weak", torch.float32, K=16, V=16, state=False)
    kw["output_final_state"] = False
    state = torch.zeros(1, 4, 16, 16)
    with pytest.raises(error, match=word):
        run_in_place("cpu", check_call(**kw), bad(state))


def test_paged_states_are_declined():
    kw = make_call("weak", torch.float32, K=16, V=16, state=False)
    kw["output_final_state"] = False
    indices = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="state_indices"):
        run_in_place("cpu", check_call(**kw), torch.zeros(3, 4, 16, 16), indices)


def test_auto_takes_the_rung_unless_a_gradient_is_asked():
    from kda_lab.ops import choose

    kw = make_call("weak", torch.float32)
    assert choose(check_call(**kw), "auto").name == "cpu"
    kw["q"] = kw["q"].clone().requires_grad_()
    assert choose(check_call(**kw), "auto").name == "chunked"
    with torch.no_grad():
        assert choose(check_call(**kw), "auto").name == "cpu"


def test_what_it_declines():
    fp64 = make_call("weak", torch.float64)
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot serve this call: .*float64"):
        chunk_kda(**fp64, backend="cpu")
    kw = make_call("weak", torch.bfloat16)
    kw["initial_state"] = kw["initial_state"].bfloat16()
    with pytest.raises(ValueError, match=r"backend 'cpu' cannot serve this call: .*bfloat16"):
        chunk_kda(**kw, backend="cpu")


def test_an_instruction_set_that_is_not_here(monkeypatch):
    monkeypatch.setenv("KDA_LAB_CPU_ISA", "avx4096")
    with pytest.raises(ValueError, match="KDA_LAB_CPU_ISA"):
        chunk_kda(**make_call("weak", torch.float32), backend="cpu")


def test_a_nan_is_passed_on_and_never_back():
    """A NaN in one head reaches that head's output at once, no earlier token and no other head."""
    for name in ("q", "k", "v", "g", "beta"):
        kw = make_call("long", torch.float32, lengths=(40,), H=4, HV=4, K=16, V=16)
        kw[name] = kw[name].clone()
        kw[name][:, 20, 1] = torch.nan
        o, _ = run(CPU, check_call(**kw))
        assert o[:, 20, 1].isnan().all(), name
        assert not o[:, :20].isnan().any(), name
        assert not o[:, :, [0, 2, 3]].isnan().any(), name
