"""Calls like one served before: whatever differs, they get the answer or the refusal of the long way."""

import pytest
import torch

from kda_lab import chunk_kda, inputs, ops
from kda_lab.contract import make_call
from kda_lab.inputs import check_call

DTYPE = torch.bfloat16


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """CPU tensors as a GPU's: values are not looked at, and what was served is remembered from here on."""
    monkeypatch.setattr(ops, "looks_at_values", lambda q: not isinstance(q, torch.Tensor))
    monkeypatch.setattr(ops, "_served", {})


def example(dtype: torch.dtype = DTYPE, **kw) -> dict:
    call = make_call("weak", dtype, lengths=(20,), B=2, K=16, V=8, activate_inside=True, **kw)
    return call | dict(scale=1.0, output_final_state=True)


def packed(**kw) -> dict:
    return make_call("weak", DTYPE, lengths=(9, 0, 11), packed=True, K=16, V=8, **kw)


def strided(x: torch.Tensor, axis: int) -> torch.Tensor:
    """x with other values between its own along `axis`."""
    wide = torch.stack([x, torch.randn_like(x)], axis + 1).flatten(axis, axis + 1)
    return wide[(slice(None),) * axis + (slice(None, None, 2),)]


def shifted(x: torch.Tensor) -> torch.Tensor:
    """x one element further in its memory."""
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)


def outcome(function, arguments: dict):
    """The results, or the error in words."""
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def long_way(backend: str = "auto", **arguments):
    call = check_call(**arguments)
    return ops.choose(call, backend).run(call)


def alike(x, y) -> bool:
    if isinstance(x, str) or isinstance(y, str) or x is None or y is None:
        return type(x) is type(y) and x == y
    if isinstance(x, tuple):
        return all(map(alike, x, y))
    return x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y)


def changes(a: dict) -> dict[str, dict]:
    """Calls that differ from `a` in one respect."""
    tensors = {name: x for name, x in a.items() if isinstance(x, torch.Tensor)}
    found = {
        "other values": {name: x + 0.25 for name, x in tensors.items()},
        "fp32": example(torch.float32),
        "longer": example(seed=1) | {n: torch.cat([a[n]] * 2, 1) for n in ("q", "k", "v", "g", "beta")},
        "one group of heads": example(HV=2),
        "packed": packed() | dict(backend="auto"),
        "v first": dict(state_v_first=True, initial_state=a["initial_state"].mT.contiguous()),
        "wrong state layout": dict(state_v_first=True),
        "no state in": dict(initial_state=None),
        "no state out": dict(output_final_state=False),
        "bf16 state": dict(initial_state=a["initial_state"].bfloat16()),
        "fp32 gate": dict(g=a["g"].float()),
        "fp32 beta": dict(beta=a["beta"].float()),
        "no A_log": dict(A_log=None),
        "flat dt_bias": dict(dt_bias=a["dt_bias"].reshape(-1)),
        "no norm": dict(use_qk_l2norm_in_kernel=False),
        "log gate": dict(use_gate_in_kernel=False, A_log=None, dt_bias=None, g=-a["g"].abs()),
        "softplus gate": dict(lower_bound=None, safe_gate=False),
        "unsafe gate": dict(safe_gate=False),
        "another bound": dict(lower_bound=-3.0),
        "a bound too low": dict(lower_bound=-6.0),
        "plain beta": dict(use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False),
        "beta below one": dict(allow_neg_eigval=False),
        "another scale": dict(scale=0.5),
        "a scale that is no number": dict(scale=True),
        "a flag that is no bool": dict(output_final_state=1),
        "a list for a scale": dict(scale=[1.0]),
        "chunks of 16": dict(chunk_size=16),
        "chunks of 17": dict(chunk_size=17),
        "another backend": dict(backend="recurrent"),
        "no such backend": dict(backend="v99"),
        "no tensor": dict(q=None),
        "sparse": dict(beta=a["beta"].to_sparse()),
        "half": dict(v=a["v"].half()),
        "a head too many": dict(beta=torch.cat([a["beta"], a["beta"][:, :, :1]], 2)),
    }  # fmt: skip
    for name, x in tensors.items():
        found[f"{name} one further"] = {name: shifted(x)}
        for axis in range(x.dim()):
            found[f"{name} strided along {axis}"] = {name: strided(x, axis)}
    return {
        name: change if "q" in change and "k" in change else a | change
        for name, change in found.items()
    }


BASE = example() | dict(backend="cpu")
CHANGES = changes(BASE)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_call_is_served_as_if_it_were_the_first(change):
    for _ in range(2):
        assert alike(outcome(chunk_kda, BASE), outcome(long_way, BASE))
        assert alike(outcome(chunk_kda, CHANGES[change]), outcome(long_way, CHANGES[change]))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_packed_calls_change_their_lengths(index):
    a = packed(index_dtype=index) | dict(backend="cpu", output_final_state=True)
    for lengths in ([0, 9, 9, 20], [0, 3, 8, 20], [0, 0, 0, 15]):
        a["cu_seqlens"].copy_(torch.tensor(lengths))
        assert alike(outcome(chunk_kda, a), outcome(long_way, a))
    assert len(ops._served) == 1


def test_the_second_call_is_not_looked_at(monkeypatch):
    want = chunk_kda(**BASE)
    monkeypatch.setattr(ops, "check_call", lambda *_, **__: pytest.fail("checked again"))
    assert alike(chunk_kda(**BASE), want)


def test_results_are_new_each_time():
    first, second = chunk_kda(**BASE), chunk_kda(**BASE)
    for x, y in zip(first, second, strict=True):
        assert x.data_ptr() != y.data_ptr()


def test_gradients_take_the_long_way():
    chunk_kda(**example(torch.float32))
    arguments = example(torch.float32)
    arguments["q"].requires_grad_()
    assert chunk_kda(**arguments)[0].requires_grad
    with torch.no_grad():
        assert not chunk_kda(**arguments)[0].requires_grad


def test_values_are_looked_at_on_cpu_and_when_asked(monkeypatch):
    q = torch.empty(0)
    on_gpu = type("OnGpu", (), {"is_cpu": False})()
    monkeypatch.delenv("KDA_LAB_CHECK", raising=False)
    assert inputs.looks_at_values(q) and not inputs.looks_at_values(on_gpu)
    monkeypatch.setenv("KDA_LAB_CHECK", "1")
    assert inputs.looks_at_values(on_gpu)


def test_where_values_are_looked_at_nothing_is_remembered(monkeypatch):
    monkeypatch.setattr(ops, "looks_at_values", inputs.looks_at_values)
    for _ in range(2):
        chunk_kda(**BASE)
        with pytest.raises(ValueError, match="cu_seqlens falls"):
            chunk_kda(**packed() | dict(cu_seqlens=torch.tensor([0, 12, 9, 20])))
    assert not ops._served


def test_a_backend_that_was_replaced_is_not_used_again(monkeypatch):
    from dataclasses import replace

    from kda_lab.backend import BACKENDS

    chunk_kda(**BASE)
    silent = replace(
        BACKENDS["cpu"], run=lambda call: (call.v * 0, None), prepare=lambda call: None
    )
    monkeypatch.setitem(BACKENDS, "cpu", silent)
    assert not chunk_kda(**BASE)[0].any()


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(ops, "SIGNATURES", 3)
    for T in range(1, 9):
        x = {name: BASE[name][:, :T].contiguous() for name in ("q", "k", "v", "g", "beta")}
        chunk_kda(**(BASE | x))
        assert len(ops._served) <= 3


FORGOTTEN = {  # what a signature leaves out: a call that must then go wrong
    "shapes": (lambda x: isinstance(x, torch.Size), "longer"),
    "strides": (lambda x: x is True or (type(x) is tuple and len(x) == 4), "v strided along 1"),
    "dtypes": (lambda x: isinstance(x, torch.dtype), "fp32"),
    "options": (lambda x: type(x) is tuple and "cpu" in x, "another scale"),
    "types": (lambda x: type(x) is tuple and float in x, "a scale that is no number"),
}


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_a_signature_that_says_less_is_caught(forgotten, monkeypatch):
    """The tests above, tested: each part of the signature is needed."""
    left_out, change = FORGOTTEN[forgotten]
    whole = ops.signature

    def less(tensors, options):
        key, addresses = whole(tensors, options)
        key = [x for x in key if type(x) is not int]  # alignment, which differs by chance
        return tuple(x for x in key if not left_out(x)), addresses

    monkeypatch.setattr(ops, "signature", less)
    arguments = CHANGES[change] | dict(backend="cpu")
    chunk_kda(**BASE)
    assert not alike(outcome(chunk_kda, arguments), outcome(long_way, arguments))
