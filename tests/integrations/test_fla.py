"""The backend in fla's dispatch: what it serves, what it leaves to fla, and that it lets go.

Without fla a stand-in with the protocol of fla-core 0.6's `fla.backends` takes its place; with it
both are tested.
"""

import importlib.util
import sys
import threading
from functools import wraps
from types import ModuleType

import pytest
import torch

import kda_lab
from kda_lab.contract import make_call
from kda_lab.integrations import fla as ours

FLAS = ["stand-in", "fla"] if importlib.util.find_spec("fla") else ["stand-in"]


def stand_in(disabled: bool = False) -> dict[str, ModuleType]:
    """Modules by name: `fla.backends` and `fla.ops.kda.chunk`, whose own chunk_kda never computes."""

    class BaseBackend:
        backend_type, env_var, priority = "base", None, 5

        def is_enabled(self):
            import os

            return os.environ.get(self.env_var or "", "1") != "0"

        def verify(self, name, *args, **kwargs):
            try:
                return getattr(self, f"{name}_verifier")(*args, **kwargs)
            except Exception as error:
                return False, str(error)

    found: dict[str, BaseBackend] = {}

    def dispatch(function):
        @wraps(function)
        def wrapper(*args, **kwargs):
            for backend in sorted(found.values(), key=lambda b: b.priority):
                if backend.is_available() and backend.is_enabled():
                    accepted, _ = backend.verify(function.__name__, *args, **kwargs)
                    if accepted:
                        return getattr(backend, function.__name__)(*args, **kwargs)
            return function(*args, **kwargs)

        return wrapper

    @dispatch
    def chunk_kda(*args, **kwargs):
        raise RuntimeError("fla's own kernels")

    def register(entry_point):
        assert entry_point is chunk_kda
        return lambda cls: found.update({cls.backend_type: cls()}) or cls

    modules = {
        n: ModuleType(n)
        for n in ("fla", "fla.backends", "fla.ops", "fla.ops.kda", "fla.ops.kda.chunk")
    }
    for name, module in modules.items():
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(modules[parent], leaf, module)
    vars(modules["fla.backends"]).update(
        BaseBackend=BaseBackend, register=register, _DISPATCH_DISABLED=disabled
    )
    modules["fla.ops.kda.chunk"].chunk_kda = chunk_kda
    return modules


@pytest.fixture(params=FLAS)
def chunk_kda(request, monkeypatch):
    """fla's function, with our backend behind it, for CPU tensors too."""
    if request.param == "stand-in":
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    from fla.ops.kda.chunk import chunk_kda

    ours.register(backends=("chunked",))
    yield chunk_kda
    ours.unregister()


def call_of(kind: str, dtype: torch.dtype = torch.bfloat16, **kw) -> dict:
    arguments = make_call(kind, dtype, **kw)
    del arguments["chunk_size"]  # None, which fla does not know
    return arguments


def example(**kw) -> dict:
    return call_of("weak", activate_inside=True, **kw)


def goes_to_fla(chunk_kda, **arguments) -> bool:
    """Whether we declined: fla's own kernels, real or not, fail on CPU."""
    try:
        chunk_kda(**arguments)
    except Exception:
        return True
    return False


def same(x, y) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(x, y, strict=True))


CALLS = {
    "batch": example(B=2),
    "packed": example(lengths=(30, 0, 45), packed=True),
    "state v first": example(state_v_first=True),
    "no states": example(state=False) | dict(output_final_state=False),
    "log gate": call_of("mixture"),
    "softplus gate": call_of("softplus"),
    "fp32": call_of("strong", torch.float32),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_served_is_chunk_kda(chunk_kda, name):
    arguments = CALLS[name]
    assert ours.refusal(**arguments) is None
    with torch.no_grad():
        assert same(chunk_kda(**arguments), kda_lab.chunk_kda(**arguments, backend="chunked"))


def test_as_fla_models_call_it(chunk_kda):
    """Positional tensors, parameters of any shape, hints about speed: the same numbers."""
    a = example(B=2)
    want = kda_lab.chunk_kda(**a, backend="chunked")
    a["A_log"], a["dt_bias"] = a["A_log"].view(1, 1, -1, 1), a["dt_bias"].reshape(-1)
    hints = dict(
        chunk_size=32, disable_recompute=True, use_graph=True, max_num_seqs=2, cu_seqlens_cpu=None
    )
    tensors = [a.pop(name) for name in ("q", "k", "v", "g", "beta")]
    assert same(chunk_kda(*tensors, **a, **hints), want)
    plain = call_of("mixture", torch.float32)
    want = kda_lab.chunk_kda(**plain, backend="chunked")
    ignored = dict(A_log=torch.zeros(3), dt_bias=torch.zeros(5))  # without use_gate_in_kernel
    assert same(chunk_kda(**plain, **ignored), want)


DECLINED = {
    "context parallel": (dict(cp_context=object()), "cp_context"),
    "intermediate states": (dict(return_intermediate_states=True), "return_intermediate_states"),
    "an argument of another version": (dict(transpose_state_layout=True), "transpose_state_layout"),
    "chunks of 16": (dict(chunk_size=16), "chunk_size is 16"),
    "a state in bf16": (
        dict(initial_state=torch.zeros(1, 4, 24, 20).bfloat16()), "initial_state has dtype",
    ),
    "a state of another shape": (
        dict(initial_state=torch.zeros(1, 4, 20, 24)), "initial_state has shape",
    ),
    "beta of another shape": (dict(beta=torch.zeros(1, 75)), "beta has shape"),
    "v in half": (dict(v=torch.zeros(1, 75, 4, 20).half()), "v has dtype"),
    "offsets with a batch": (
        dict(B=2, cu_seqlens=torch.tensor([0, 75])), "cu_seqlens needs sequences packed",
    ),
    "no A_log": (dict(A_log=None, lower_bound=None, safe_gate=False), "A_log is None"),
    "no bound": (dict(lower_bound=None), "lower_bound is None"),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_declined_goes_on_to_fla(chunk_kda, name):
    change, reason = DECLINED[name]
    arguments = example(B=change.get("B", 1)) | {n: x for n, x in change.items() if n != "B"}
    assert reason in ours.refusal(**arguments)
    assert goes_to_fla(chunk_kda, **arguments)


def test_gradients_and_devices_are_the_backends_business(chunk_kda):
    arguments = example()
    ours.register(backends=("cpu", "v2"))
    reason = ours.refusal(**arguments | dict(q=arguments["q"].clone().requires_grad_()))
    assert "no backward pass" in reason and "'v2' cannot serve" in reason
    ours.register()  # the default: kernels for CUDA alone
    assert ours.FASTER and "cuda tensors" in ours.refusal(**arguments)
    assert goes_to_fla(chunk_kda, **arguments)


def test_unregistered_nothing_is_asked(chunk_kda):
    ours.unregister()
    assert goes_to_fla(chunk_kda, **example())
    ours.unregister()
    ours.register(backends=("chunked",))
    assert not goes_to_fla(chunk_kda, **example())


def test_the_environment_turns_it_off(chunk_kda, monkeypatch):
    monkeypatch.setenv("FLA_KDA_LAB", "0")
    assert goes_to_fla(chunk_kda, **example())


def test_threads_do_not_get_each_others_calls(chunk_kda):
    calls = [example(seed=seed, lengths=(20,)) for seed in range(4)]
    want = [kda_lab.chunk_kda(**a, backend="chunked") for a in calls]
    wrong = []

    def work(n: int) -> None:
        for _ in range(20):
            if not same(chunk_kda(**calls[n]), want[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_call_is_not_kept(chunk_kda):
    chunk_kda(**example())
    assert ours._checked.run is None


def test_a_dispatch_that_is_turned_off_is_an_error(monkeypatch):
    for name, module in stand_in(disabled=True).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(RuntimeError, match="FLA_DISABLE_BACKEND_DISPATCH"):
        ours.register()


def test_without_fla_the_error_says_what_is_missing(monkeypatch):
    for name in list(sys.modules):
        if name == "fla" or name.startswith("fla."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(ImportError, match=r"fla-core 0\.6"):
        ours.register()
