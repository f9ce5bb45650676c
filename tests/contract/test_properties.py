"""Properties over drawn shapes, dtypes and options, and the gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kda_lab
from kda_lab.contract import GATE_KINDS, Case, judge, make_call, relative

LENGTHS = st.lists(st.integers(0, 70), min_size=1, max_size=5).map(tuple)


@st.composite
def options(draw):
    packed = draw(st.booleans())
    H = draw(st.integers(1, 3))
    activate_inside = draw(st.booleans())
    return dict(
        kind=draw(st.sampled_from(GATE_KINDS)),
        lengths=draw(LENGTHS) if packed else (draw(st.integers(0, 90)),),
        packed=packed,
        spare=draw(st.integers(0, 4)) if packed else 0,
        B=1 if packed else draw(st.integers(1, 3)),
        H=H,
        HV=H * draw(st.integers(1, 3)),
        K=draw(st.integers(1, 40)),
        V=draw(st.integers(1, 40)),
        state=draw(st.booleans()),
        state_v_first=draw(st.booleans()),
        index_dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        chunk_size=draw(st.sampled_from([None, 16, 32, 64])),
        activate_inside=activate_inside,
        seed=draw(st.integers(0, 2**31)),
    )


@settings(max_examples=60, deadline=None)
@given(options(), st.sampled_from([torch.float64, torch.float32, torch.float16]))
def test_any_call_agrees_with_the_oracle(chosen, dtype):
    for backend in ("recurrent", "chunked"):
        case = Case("drawn", {**chosen, "beta_max": 1.0})
        verdict = judge(backend, case, dtype)
        assert verdict.declined is None and verdict.problem is None, (backend, verdict)


@settings(max_examples=25, deadline=None)
@given(options(), st.integers(0, 89))
def test_two_pieces_equal_one_shot(chosen, cut):
    T = max(chosen["lengths"][0], 1)
    cut = cut % (T + 1)
    chosen = {**chosen, "packed": False, "spare": 0, "lengths": (T,), "state": True}
    call = make_call(dtype=torch.float64, **chosen)
    whole, end = kda_lab.chunk_kda(**call)
    time = ("q", "k", "v", "g", "beta")
    first = {**call, **{n: call[n][:, :cut] for n in time}}
    second = {**call, **{n: call[n][:, cut:] for n in time}}
    o1, middle = kda_lab.chunk_kda(**first)
    o2, last = kda_lab.chunk_kda(**{**second, "initial_state": middle})
    torch.testing.assert_close(torch.cat([o1, o2], 1), whole, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(last, end, rtol=1e-9, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.integers(0, 2**31))
def test_packing_equals_one_call_a_sequence(lengths, seed):
    call = make_call("weak", torch.float64, lengths, packed=True, seed=seed)
    o, state = kda_lab.chunk_kda(**call)
    ends = call["cu_seqlens"].tolist()
    for n, (a, b) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        alone = {x: call[x][:, a:b] for x in ("q", "k", "v", "g", "beta")}
        alone = {**call, **alone, "cu_seqlens": None, "initial_state": call["initial_state"][n : n + 1]}
        o_n, state_n = kda_lab.chunk_kda(**alone)
        torch.testing.assert_close(o[:, a:b], o_n, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(state[n : n + 1], state_n, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bf16_state_is_read_and_returned_as_such(dtype):
    call = make_call("weak", dtype, lengths=(20,))
    rounded = call["initial_state"].bfloat16()
    o, state = kda_lab.chunk_kda(**{**call, "initial_state": rounded}, backend="chunked")
    want_o, want = kda_lab.chunk_kda(**{**call, "initial_state": rounded.float()}, backend="chunked")
    assert state.dtype == torch.bfloat16
    assert torch.equal(o, want_o) and torch.equal(state, want.bfloat16())


def differentiable_call(kind: str, **options) -> tuple[dict, list[str]]:
    call = make_call(kind, torch.float64, H=1, HV=2, K=5, V=3, seed=3, **options)
    names = [n for n, x in call.items() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return call, names


@pytest.mark.parametrize("backend", ["recurrent", "chunked"])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("strong", dict(lengths=(19,), activate_inside=True)),
        ("softplus", dict(lengths=(18,), activate_inside=True, state_v_first=True)),
        ("spread", dict(lengths=(17,))),
        ("mixture", dict(lengths=(3, 0, 18), packed=True)),
    ],
)
def test_gradients_against_finite_differences(backend, kind, options):
    call, names = differentiable_call(kind, **options)
    if "g" in names and kind in ("spread", "mixture"):
        call["g"] = call["g"] - 1e-3  # room for the finite difference below 0
        call["safe_gate"] = False

    def function(*tensors):
        return kda_lab.chunk_kda(**{**call, **dict(zip(names, tensors, strict=True))}, backend=backend)

    leaves = [call[n].clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("chunk_size", [16, 32, 64])
@pytest.mark.parametrize("kind", ["weak", "minus5", "alternating", "minus_inf"])
def test_gradients_of_chunks_equal_those_of_the_recurrence(kind, chunk_size):
    grads = {}
    for backend in ("recurrent", "chunked"):
        call, names = differentiable_call(kind, lengths=(70,))
        for n in names:
            call[n].requires_grad_()
        o, state = kda_lab.chunk_kda(**{**call, "chunk_size": chunk_size}, backend=backend)
        (o.square().sum() + state.sin().sum()).backward()
        grads[backend] = {n: call[n].grad for n in names}
    for n in names:
        a, b = grads["recurrent"][n], grads["chunked"][n]
        assert a.isfinite().all() and relative(b, a) < 1e-10, n


def test_auto_takes_a_differentiable_implementation_when_asked_for_gradients():
    call = make_call("weak", torch.float32, lengths=(20,))
    call["v"].requires_grad_()
    for function in (kda_lab.chunk_kda, kda_lab.fused_recurrent_kda):
        call.pop("chunk_size", None)
        o, _ = function(**call)
        assert o.requires_grad


def test_result_does_not_depend_on_strides():
    call = make_call("mixture", torch.float64, lengths=(40,), B=2)
    call["chunk_size"] = 16
    want, want_state = kda_lab.chunk_kda(**call)
    for n in ("q", "k", "v", "g"):
        call[n] = call[n].permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
    o, state = kda_lab.chunk_kda(**call)
    torch.testing.assert_close(o, want)
    torch.testing.assert_close(state, want_state)


def test_recurrent_and_reference_agree_through_the_token_function():
    call = make_call("spread", torch.float64, lengths=(1,))
    call.pop("chunk_size")
    o, S = kda_lab.fused_recurrent_kda(**call)
    want, want_S = kda_lab.fused_recurrent_kda(**call, backend="reference")
    assert relative(o, want) < 1e-12 and relative(S, want_S) < 1e-12


def test_inputs_are_left_alone():
    call = make_call("weak", torch.float32, lengths=(33,))
    before = {n: x.clone() for n, x in call.items() if isinstance(x, torch.Tensor)}
    for backend in ("reference", "recurrent", "chunked"):
        kda_lab.chunk_kda(**call, backend=backend)
        for n, x in before.items():
            assert torch.equal(call[n], x), (backend, n)


def test_long_slabs_join(monkeypatch):
    """Chunks prepared a slab at a time give what one slab gives."""
    from kda_lab import chunked

    call = make_call("weak", torch.float64, lengths=(200, 30, 129), packed=True)
    want, want_state = kda_lab.chunk_kda(**call, backend="chunked")
    monkeypatch.setattr(chunked, "SLAB", 1)
    o, state = kda_lab.chunk_kda(**call, backend="chunked")
    assert torch.equal(o, want) and torch.equal(state, want_state)
