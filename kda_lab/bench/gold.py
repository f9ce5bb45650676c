"""The fp64 answer on the device, and the distance to it."""

from dataclasses import dataclass

import torch
from torch import Tensor

import kda_lab

LOOP_TOKENS = 16_384  # up to here the fp64 token recurrence itself, beyond it its chunked form


def relative_l2(x: Tensor, exact: Tensor) -> float:
    """||x - exact|| / ||exact|| in fp64; ||x|| where exact is 0; inf as soon as x holds a NaN or infinity.

    >>> relative_l2(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]))
    0.0
    """
    x, exact = x.detach().double(), exact.detach().double()
    if not torch.isfinite(x).all():
        return float("inf")
    size = exact.norm().item()
    return (x - exact).norm().item() / (size if size > 0 else 1.0)


def longest(arguments: dict) -> int:
    """Tokens of the longest sequence of a call."""
    cu = arguments.get("cu_seqlens")
    return arguments["q"].shape[1] if cu is None else int(cu.diff().max())


def gold(**arguments) -> tuple[Tensor, Tensor]:
    """o and the final state of a call, both fp64, from the same (already rounded) inputs.

    The token recurrence over all heads and sequences at once; sequences of more than 16,384 tokens
    go through the chunked form in fp64, which agrees with the recurrence to 1e-12.
    """
    wide = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }
    backend = "recurrent" if longest(arguments) <= LOOP_TOKENS else "chunked"
    with torch.no_grad():
        o, state = kda_lab.chunk_kda(**(wide | {"output_final_state": True}), backend=backend)
    assert state is not None
    return o, state


@dataclass(frozen=True)
class Heads:
    """A sample of the value heads of a call: KDA's heads are independent, so gold on a few judges all."""

    arguments: dict
    heads: tuple[int, ...]

    def sampled(self) -> dict:
        """The call reduced to these heads (no grouped values: HV = H of the reduced call)."""
        a, hv = dict(self.arguments), list(self.heads)
        group = a["v"].shape[2] // a["q"].shape[2]
        for name in ("q", "k"):
            a[name] = a[name][:, :, [h // group for h in hv]]
        for name in ("v", "g", "beta"):
            a[name] = a[name][:, :, hv]
        if a.get("initial_state") is not None:
            a["initial_state"] = a["initial_state"][:, hv]
        if a.get("A_log") is not None:
            a["A_log"] = a["A_log"][hv]
        if a.get("dt_bias") is not None:
            HV, K = self.arguments["v"].shape[2], self.arguments["q"].shape[3]
            a["dt_bias"] = a["dt_bias"].reshape(HV, K)[hv]
        return a

    def gold(self) -> tuple[Tensor, Tensor]:
        """o and the final state of these heads, fp64."""
        return gold(**self.sampled())

    def errors(self, o: Tensor, state: Tensor, exact: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Relative L2 of these heads of o and of the final state against `exact` (from `gold`)."""
        hv = list(self.heads)
        return relative_l2(o[:, :, hv], exact[0]), relative_l2(state[:, hv], exact[1])


def sample(arguments: dict, number: int = 2) -> Heads:
    """The first and the last heads of a call, `number` in all."""
    HV = arguments["v"].shape[2]
    return Heads(
        arguments, tuple(sorted({i * (HV - 1) // max(number - 1, 1) for i in range(number)}))
    )
