"""FlashKDA's function: its layouts, states in place, and errors that name the argument."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from kda_lab import ops
from kda_lab.backend import BACKENDS
from kda_lab.integrations.flash_kda import fwd

D = 128


def example(
    T: int = 37, B: int = 1, H: int = 2, HV: int | None = None, K: int = D, V: int = D,
    dtype: torch.dtype = torch.bfloat16, seed: int = 0,
) -> dict:  # fmt: skip
    """Arguments of one call without states, as FlashKDA's own tests make them."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    HV = HV or H
    x = dict(
        q=normal(B, T, H, K), k=normal(B, T, H, K), v=normal(B, T, HV, V), g=normal(B, T, HV, K),
        beta=normal(B, T, HV),
    )  # fmt: skip
    return {name: y.to(dtype) for name, y in x.items()} | dict(
        scale=K**-0.5, out=torch.full((B, T, HV, V), torch.nan, dtype=dtype),
        A_log=torch.rand(HV, generator=rng), dt_bias=normal(HV, K), lower_bound=-5.0,
    )  # fmt: skip


def states(a: dict, N: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    shape = (N, a["v"].shape[2], a["v"].shape[3], a["q"].shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def recurrence(a: dict, initial_state=None, cu_seqlens=None) -> tuple[torch.Tensor, torch.Tensor]:
    """out and the final states by FlashKDA's README, token by token, fp64."""
    x = {n: y.double() for n, y in a.items() if isinstance(y, torch.Tensor)}
    B, T, HV, V = x["v"].shape
    repeat = HV // x["q"].shape[2]
    q, k = (F.normalize(x[n], dim=-1, eps=1e-6).repeat_interleave(repeat, 2) for n in "qk")
    A, bias = x["A_log"].exp()[:, None], x["dt_bias"].reshape(HV, -1)
    decay = (a["lower_bound"] * torch.sigmoid(A * (x["g"] + bias))).exp()
    beta = torch.sigmoid(x["beta"])
    ends = [b * T for b in range(B + 1)] if cu_seqlens is None else cu_seqlens.tolist()
    q, k, v, decay, beta = (y.flatten(0, 1) for y in (q, k, x["v"], decay, beta))
    out, final = torch.zeros(B * T, HV, V, dtype=torch.float64), []
    for n in range(len(ends) - 1):
        S = torch.zeros(HV, V, q.shape[2], dtype=torch.float64)
        S = S if initial_state is None else initial_state[n].double()
        for t in range(ends[n], ends[n + 1]):
            S = S * decay[t][:, None, :]
            u = beta[t][:, None] * (v[t] - (S @ k[t][..., None])[..., 0])
            S = S + u[..., None] * k[t][:, None, :]
            out[t] = a["scale"] * (S @ q[t][..., None])[..., 0]
        final.append(S)
    return out.view(B, T, HV, V), torch.stack(final)


def close(x: torch.Tensor, want: torch.Tensor, limit: float = 6e-3) -> bool:
    return ((x.double() - want).norm() <= limit * want.norm()).item()


def test_the_signature_is_flash_kdas():
    names = "q k v g beta scale out A_log dt_bias lower_bound initial_state final_state cu_seqlens"
    parameters = inspect.signature(fwd).parameters
    assert list(parameters) == names.split()
    assert [p.default for p in parameters.values()] == [inspect.Parameter.empty] * 10 + [None] * 3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("layout", ["one", "batch", "int64", "int32"])
def test_layouts_and_states(layout, dtype, into):
    a = example(B=2 if layout == "batch" else 1, T=50)
    cu = None
    if layout.startswith("int"):
        cu = torch.tensor([0, 17, 17, 50], dtype=getattr(torch, layout))
    N = 3 if cu is not None else a["q"].shape[0]
    first = states(a, N, dtype) if dtype and into else None
    last = torch.full_like(states(a, N, dtype), torch.nan) if dtype else None
    before = {n: x.clone() for n, x in a.items() if isinstance(x, torch.Tensor) and n != "out"}
    assert fwd(**a, initial_state=first, final_state=last, cu_seqlens=cu) is None
    out, final = recurrence(a, first, cu)
    assert close(a["out"], out)
    assert last is None or close(last, final)
    assert all(torch.equal(a[n], x) for n, x in before.items())


def test_a_state_carried_on_in_place():
    a = example(T=60)
    S = states(a, 1)
    want, final = recurrence(a, S)
    for part in (slice(0, 23), slice(23, 60)):
        step = a | {n: a[n][:, part] for n in ("q", "k", "v", "g", "beta", "out")}
        fwd(**step, initial_state=S, final_state=S)
    assert close(a["out"], want) and close(S, final)


def test_half_a_state_in_place_of_another():
    a = example(B=2)
    pool = states(a, 3)
    want, final = recurrence(a, pool[:2])
    fwd(**a, initial_state=pool[:2], final_state=pool[1:])
    assert close(a["out"], want) and close(pool[1:], final)


@pytest.mark.parametrize("name", ["q", "v", "g"])
def test_out_may_be_an_input(name):
    a = example()
    want, _ = recurrence(a)
    fwd(**a | dict(out=a[name]))
    assert close(a[name], want)


def test_more_than_flash_kda_takes():
    for kw in (
        dict(H=2, HV=4, K=24, V=20),
        dict(dtype=torch.float32),
        dict(dtype=torch.float16, K=16, V=8),
    ):
        a = example(**kw)
        want, final = recurrence(a)
        last = torch.empty_like(states(a, 1))
        fwd(**a, final_state=last)
        assert close(a["out"], want) and close(last, final)


def test_any_strides():
    a = example(H=4)
    want, _ = recurrence(a)
    for name in ("q", "k", "v", "g"):
        a[name] = torch.cat([a[name], a[name]], -1)[..., :D]
    a["beta"] = a["beta"].transpose(1, 2).contiguous().transpose(1, 2)
    a["out"] = torch.empty(1, 4, 37, D, dtype=torch.bfloat16).transpose(1, 2)
    fwd(**a)
    assert close(a["out"], want)


def test_what_is_none_counts_as_zero():
    a = example() | dict(A_log=torch.zeros(2), dt_bias=torch.zeros(2, D))
    want, _ = recurrence(a)
    fwd(**a | dict(A_log=None, dt_bias=None))
    assert close(a["out"], want)
    a["dt_bias"] = torch.randn(2, D)
    want, _ = recurrence(a)
    fwd(**a | dict(dt_bias=a["dt_bias"].flatten()))
    assert close(a["out"], want)


def test_a_bound_of_zero_forgets_nothing():
    a = example() | dict(lower_bound=0)
    want, _ = recurrence(a)
    fwd(**a)
    assert close(a["out"], want)


def test_rows_past_the_last_sequence_become_zero():
    a = example(T=30)
    fwd(**a, cu_seqlens=torch.tensor([0, 10, 25]))
    assert a["out"][:, :25].all(-1).all() and not a["out"][:, 25:].any()


def test_nothing_is_recorded_for_autograd():
    a = example(dtype=torch.float32)
    a["q"].requires_grad_()
    fwd(**a)
    assert not a["out"].requires_grad


def test_kernels_write_where_they_are_told(monkeypatch):
    """With a kernel that takes targets, nothing is copied; inputs that overlap are never written over."""
    seen = []

    def prepare(call):
        def run(tensors, addresses):
            seen.append(tensors[9:])
            return tensors[9:]

        return run

    from dataclasses import replace

    monkeypatch.setattr(ops, "looks_at_values", lambda q: False)
    monkeypatch.setattr(ops, "_served", {})
    for name in ("cpu", "chunked"):
        monkeypatch.setitem(BACKENDS, name, replace(BACKENDS[name], prepare=prepare))
    a, S = example(), states(example(), 1)
    for final in (S, S.clone()):
        fwd(**a, initial_state=S, final_state=final)
        assert seen[-1][0] is a["out"] and seen[-1][1] is final
    pool = states(a, 3)
    for ready in (
        dict(out=a["v"]),
        dict(initial_state=S, final_state=S.mT),
        dict(initial_state=S.mT, final_state=S),
        dict(example(B=2), initial_state=pool[:2], final_state=pool[1:]),
    ):
        with pytest.raises(
            (TypeError, AssertionError)
        ):  # the fake returns None where it was given no target
            fwd(**a | ready)
        assert any(x is None for x in seen[-1])


BAD = {
    "q is a list": (dict(q=[1]), TypeError, "q must be"),
    "k of another shape": (dict(k=torch.zeros(1, 36, 2, D)), ValueError, "k has shape"),
    "v of another dtype": (dict(v=torch.zeros(1, 37, 2, D)), TypeError, "v has dtype"),
    "g missing": (dict(g=None), TypeError, "g must be"),
    "beta of another shape": (dict(beta=torch.zeros(1, 37)), ValueError, "beta has shape"),
    "scale in words": (dict(scale="1"), TypeError, "scale must be"),
    "out missing": (dict(out=None), TypeError, "out must be"),
    "out of another shape": (dict(out=torch.zeros(37, 2, D)), ValueError, "out has shape"),
    "out of another dtype": (dict(out=torch.zeros(1, 37, 2, D)), TypeError, "out has dtype"),
    "A_log of another shape": (dict(A_log=torch.zeros(3)), ValueError, "A_log has shape"),
    "A_log in bf16": (dict(A_log=torch.zeros(2).bfloat16()), TypeError, "A_log has dtype"),
    "dt_bias of another shape": (dict(dt_bias=torch.zeros(3, D)), ValueError, "dt_bias has shape"),
    "a bound too low": (dict(lower_bound=-5.5), ValueError, "lower_bound is -5.5"),
    "a bound above 0": (dict(lower_bound=1.0), ValueError, "lower_bound is 1.0"),
    "no bound": (dict(lower_bound=None), ValueError, "lower_bound is None"),
    "False for a bound": (dict(lower_bound=False), TypeError, "lower_bound must be"),
    "K-first sizes": (dict(initial_state=torch.zeros(1, 2, D, 8)), ValueError, "initial_state has shape"),
    "half states": (dict(initial_state=torch.zeros(1, 2, D, D).half()), TypeError, "initial_state has dtype"),
    "a state too many": (dict(final_state=torch.zeros(2, 2, D, D)), ValueError, "final_state has shape"),
    "final state in half": (dict(final_state=torch.zeros(1, 2, D, D).half()), TypeError, "final_state has dtype"),
    "final state a number": (dict(final_state=0), TypeError, "final_state must be"),
    "states of two dtypes": (
        dict(initial_state=torch.zeros(1, 2, D, D), final_state=torch.zeros(1, 2, D, D).bfloat16()),
        TypeError, "final_state has dtype",
    ),
    "offsets in fp32": (dict(cu_seqlens=torch.tensor([0.0, 37.0])), TypeError, "cu_seqlens has dtype"),
    "offsets past the end": (dict(cu_seqlens=torch.tensor([0, 38])), ValueError, "cu_seqlens ends at 38"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_errors_name_the_argument_and_nothing_is_written(bad):
    change, error, words = BAD[bad]
    a = example() | change
    with pytest.raises(error, match=words):
        fwd(**a)
    if isinstance(a["out"], torch.Tensor) and "out" not in change:
        assert a["out"].isnan().all()
