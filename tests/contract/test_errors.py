"""Every bad input gets an error of the right type that names the argument as a word."""

import re

import pytest
import torch

import kda_lab
from kda_lab.contract import make_call

GATE = dict(use_gate_in_kernel=True, safe_gate=True, lower_bound=-5.0)


def good(**changes) -> dict:
    call = make_call("mixture", torch.float32, lengths=(20,), B=2, seed=1)
    return {**call, **changes}


def raw(**changes) -> dict:
    call = make_call("strong", torch.float32, lengths=(20,), B=2, seed=1)
    return {**call, **changes}


def packed(cu, **changes) -> dict:
    call = make_call("mixture", torch.float32, lengths=(5, 15), packed=True, seed=1)
    return {**call, "cu_seqlens": cu, **changes}


x = good()
B, T, H, K = x["q"].shape
HV, V = x["v"].shape[2:]
BAD = {  # case: (arguments, the argument that must be named, type of the error)
    "q a list": (good(q=[1.0]), "q", TypeError),
    "k None": (good(k=None), "k", TypeError),
    "v an array": (good(v=x["v"].numpy()), "v", TypeError),
    "q of ints": (good(q=x["q"].long()), "q", TypeError),
    "k sparse": (good(k=x["k"].to_sparse()), "k", TypeError),
    "q complex": (good(q=x["q"] + 0j), "q", TypeError),
    "q three axes": (good(q=x["q"][0]), "q", ValueError),
    "v three axes": (good(v=x["v"][0]), "v", ValueError),
    "no channels": (good(q=x["q"][..., :0], k=x["k"][..., :0], g=x["g"][..., :0]), "q", ValueError),
    "no value heads": (good(v=x["v"][:, :, :0]), "v", ValueError),
    "k of another T": (good(k=x["k"][:, :-1]), "k", ValueError),
    "k of another K": (good(k=x["k"][..., :-1]), "k", ValueError),
    "v of another B": (good(v=x["v"][:1]), "v", ValueError),
    "HV not a multiple of H": (good(v=x["v"][:, :, :3], g=x["g"][:, :, :3], beta=x["beta"][..., :3]), "v", ValueError),
    "g per q head": (good(g=x["g"][:, :, :H]), "g", ValueError),
    "g of another K": (good(g=x["g"][..., :-1]), "g", ValueError),
    "beta per channel": (good(beta=x["g"]), "beta", ValueError),
    "k in another dtype": (good(k=x["k"].bfloat16()), "k", TypeError),
    "v in another dtype": (good(v=x["v"].double()), "v", TypeError),
    "g in another dtype": (good(g=x["g"].bfloat16()), "g", TypeError),
    "beta in another dtype": (good(beta=x["beta"].half()), "beta", TypeError),
    "g above 0": (good(g=-x["g"]), "g", ValueError),
    "g NaN": (good(g=x["g"] * torch.nan), "g", ValueError),
    "g breaks the promise": (good(g=x["g"] - 6, safe_gate=True), "g", ValueError),
    "scale a tensor": (good(scale=torch.tensor(1.0)), "scale", TypeError),
    "scale a string": (good(scale="auto"), "scale", TypeError),
    "scale a bool": (good(scale=True), "scale", TypeError),
    "scale NaN": (good(scale=float("nan")), "scale", ValueError),
    "state of another N": (good(initial_state=x["initial_state"][:1]), "initial_state", ValueError),
    "state transposed": (good(initial_state=x["initial_state"].mT), "initial_state", ValueError),
    "state K first with the flag": (good(state_v_first=True), "initial_state", ValueError),
    "state in fp64": (good(initial_state=x["initial_state"].double()), "initial_state", TypeError),
    "state in fp16": (good(initial_state=x["initial_state"].half()), "initial_state", TypeError),
    "state a number": (good(initial_state=0.0), "initial_state", TypeError),
    "state on meta": (good(initial_state=x["initial_state"].to("meta")), "initial_state", ValueError),
    "flag an int": (good(output_final_state=1), "output_final_state", TypeError),
    "norm flag None": (good(use_qk_l2norm_in_kernel=None), "use_qk_l2norm_in_kernel", TypeError),
    "safe_gate a string": (good(safe_gate="yes"), "safe_gate", TypeError),
    "neg_eigval without the sigmoid": (good(allow_neg_eigval=True), "allow_neg_eigval", ValueError),
    "A_log without the gate": (good(A_log=torch.zeros(HV)), "A_log", ValueError),
    "dt_bias without the gate": (good(dt_bias=torch.zeros(HV, K)), "dt_bias", ValueError),
    "gate without A_log": (raw(lower_bound=None, safe_gate=False, A_log=None), "A_log", ValueError),
    "A_log per q head": (raw(A_log=torch.zeros(H)), "A_log", ValueError),
    "A_log in bf16": (raw(A_log=torch.zeros(HV).bfloat16()), "A_log", TypeError),
    "A_log a list": (raw(A_log=[0.0] * HV), "A_log", TypeError),
    "dt_bias of another K": (raw(dt_bias=torch.zeros(HV, K - 1)), "dt_bias", ValueError),
    "dt_bias flat and short": (raw(dt_bias=torch.zeros(HV * K - 1)), "dt_bias", ValueError),
    "dt_bias in fp64": (raw(dt_bias=torch.zeros(HV, K).double()), "dt_bias", TypeError),
    "safe_gate without a bound": (raw(lower_bound=None), "lower_bound", ValueError),
    "bound below -5": (raw(lower_bound=-5.5), "lower_bound", ValueError),
    "bound 0": (raw(lower_bound=0.0), "lower_bound", ValueError),
    "bound 0 without safe_gate": (raw(lower_bound=0, safe_gate=False), "lower_bound", ValueError),
    "bound infinite": (raw(lower_bound=-float("inf")), "lower_bound", ValueError),
    "bound a string": (raw(lower_bound="-5"), "lower_bound", TypeError),
    "chunk_size 8": (good(chunk_size=8), "chunk_size", ValueError),
    "chunk_size a float": (good(chunk_size=64.0), "chunk_size", TypeError),
    "cu_seqlens a list": (packed([0, 5, 20]), "cu_seqlens", TypeError),
    "cu_seqlens in fp32": (packed(torch.tensor([0.0, 5, 20])), "cu_seqlens", TypeError),
    "cu_seqlens two axes": (packed(torch.tensor([[0, 5, 20]])), "cu_seqlens", ValueError),
    "cu_seqlens of one number": (packed(torch.tensor([0])), "cu_seqlens", ValueError),
    "cu_seqlens starts at 1": (packed(torch.tensor([1, 5, 20])), "cu_seqlens", ValueError),
    "cu_seqlens falls": (packed(torch.tensor([0, 12, 5])), "cu_seqlens", ValueError),
    "cu_seqlens past T": (packed(torch.tensor([0, 5, 21])), "cu_seqlens", ValueError),
    "cu_seqlens with B = 2": (good(cu_seqlens=torch.tensor([0, 5, 20])), "cu_seqlens", ValueError),
    "backend unknown": (good(backend="v99"), "backend", ValueError),
    "backend not a name": (good(backend=2), "backend", TypeError),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("function", [kda_lab.chunk_kda, kda_lab.fused_recurrent_kda])
def test_bad_input(function, case):
    arguments, name, error = BAD[case]
    if function is kda_lab.fused_recurrent_kda:
        if name == "chunk_size":
            return
        arguments = {n: a for n, a in arguments.items() if n != "chunk_size"}
    with pytest.raises(error) as caught:
        function(**arguments)
    assert type(caught.value) is error
    assert re.search(rf"\b{name}\b", str(caught.value)), str(caught.value)


def test_the_good_inputs_are_good():
    for arguments in (good(), raw(), packed(torch.tensor([0, 5, 20]))):
        kda_lab.chunk_kda(**arguments)


def test_a_named_backend_says_why_it_declines():
    q = good()["q"].requires_grad_()
    declining = [n for n, b in kda_lab.ops.BACKENDS.items() if not b.differentiable]
    for name in declining:
        with pytest.raises(ValueError, match=rf"backend '{name}' cannot serve this call: .+"):
            kda_lab.chunk_kda(**good(q=q), backend=name)


def test_garbage_past_the_last_sequence_is_not_looked_at():
    call = packed(torch.tensor([0, 5, 12]))
    for name in ("q", "k", "v", "g", "beta"):
        call[name][:, 12:] = torch.nan
    o, _ = kda_lab.chunk_kda(**call)
    assert torch.equal(o[:, 12:], torch.zeros_like(o[:, 12:]))
    assert o.isfinite().all()


def test_lower_bound_alone_chooses_the_sigmoid_gate():
    call = raw(safe_gate=False, lower_bound=-8.0)
    inside, _ = kda_lab.chunk_kda(**call)
    g = -8 * torch.sigmoid(call["A_log"].exp()[:, None] * (call["g"] + call["dt_bias"]))
    plain = good(**{n: call[n] for n in ("q", "k", "v", "beta", "initial_state")}, g=g, safe_gate=False)
    outside, _ = kda_lab.chunk_kda(**plain)
    torch.testing.assert_close(inside, outside)
