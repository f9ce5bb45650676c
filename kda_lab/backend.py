"""What an implementation of KDA must tell the rest of the library about itself."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from kda_lab.inputs import Call


def nothing(*_) -> None:
    """No objection."""


@dataclass(frozen=True)
class Backend:
    """One implementation of the contract.

    name: how callers ask for it (`backend="v2"`).
    idea: one sentence, shown by the doctor and in the notebooks.
    run: computes a checked call; returns o `[B,T,HV,V]` and the final state or None.
    unavailable: None, or the reason it cannot run on this machine at all.
    declines: None, or the reason it cannot serve this call exactly. Never asked when unavailable.
    devices: torch device types whose tensors it takes.
    differentiable: whether autograd flows through `run`.
    prepare: of a call that is served, what serves the calls like it (`kda_lab.native.call.Prepared`);
        None if there is no such short way.
    """

    name: str
    idea: str
    run: Callable[[Call], tuple[Tensor, Tensor | None]]
    unavailable: Callable[[], str | None] = nothing
    declines: Callable[[Call], str | None] = nothing
    devices: tuple[str, ...] = ("cpu", "cuda")
    differentiable: bool = False
    prepare: Callable[[Call], Callable | None] = nothing

    def refusal(self, call: Call) -> str | None:
        """Why this backend cannot serve `call`, or None."""
        if call.q.device.type not in self.devices:
            return f"it takes {' or '.join(self.devices)} tensors, these are on {call.q.device}"
        if call.needs_grad and not self.differentiable:
            return "it has no backward pass; detach the inputs or use backend='chunked'"
        return self.unavailable() or self.declines(call)


BACKENDS: dict[str, Backend] = {}


def register(backend: Backend) -> Backend:
    """Adds a backend under its name; a second one of the same name is an error."""
    if backend.name in BACKENDS:
        raise ValueError(f"backend {backend.name!r} is registered already")
    BACKENDS[backend.name] = backend
    return backend
