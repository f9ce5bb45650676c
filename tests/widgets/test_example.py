"""The running example says by hand-checkable numbers what the notebooks claim about it."""

import pytest
import torch

from kda_lab import chunk_kda, example
from kda_lab.reference import kda_recurrence


def states(gate, beta=1.0, tokens=8):
    x = example.inputs(gate, beta)
    q, k, v, g, b = (x[name][0, :tokens, 0] for name in ("q", "k", "v", "g", "beta"))
    return kda_recurrence(q, k, v, g, b, x["scale"], torch.zeros(4, 4, dtype=torch.float64))


def test_keys_are_unit_and_only_ada_and_ben_overlap():
    overlap = example.K_GUESTS @ example.K_GUESTS.T
    expected = torch.eye(4, dtype=torch.float64)
    expected[0, 1] = expected[1, 0] = 0.6
    torch.testing.assert_close(overlap, expected)


def test_sum_of_outer_products_mixes_ada_with_ben():
    S = example.K_GUESTS.T @ example.V_DRINKS
    answer = torch.tensor([1, 0.6, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(example.recall(S)[0], answer)


def test_the_delta_rule_answers_the_last_order_exactly():
    _, S = states("none", tokens=5)
    water = example.V_DRINKS[example.DRINKS.index("water")]
    torch.testing.assert_close(example.recall(S)[0], water)


def test_a_scalar_gate_forgets_table_two_and_a_channel_gate_keeps_it():
    before = example.recall(states("none", tokens=6)[1])
    scalar = example.recall(states("scalar", tokens=7)[1])
    channel = example.recall(states("channel", tokens=7)[1])
    torch.testing.assert_close(scalar, before / 8)
    torch.testing.assert_close(channel[:2], before[:2] / 8)
    torch.testing.assert_close(channel[2:], before[2:])


@pytest.mark.parametrize("gate", example.GATES)
def test_it_is_a_call_of_the_library(gate):
    o, S = chunk_kda(**example.inputs(gate, 0.5), output_final_state=True, backend="reference")
    torch.testing.assert_close(S[0, 0], states(gate, 0.5)[1])
    assert o.shape == (1, 8, 1, 4)


def test_padding_to_a_kernel_size_changes_nothing():
    small, _ = chunk_kda(**example.inputs(), backend="reference")
    x = example.inputs(K=128, V=128)
    assert x["q"].shape == (1, 8, 1, 128)
    large, _ = chunk_kda(**x, backend="reference")
    torch.testing.assert_close(large[..., :4], small)
    assert (large[..., 4:] == 0).all()


def test_orders_follow_the_story():
    assert example.orders(3) == {"Ada": "tea", "Ben": "coffee", "Cleo": "cola", "Dev": "water"}
    assert example.orders(5)["Ada"] == "water"
    assert example.orders(6) == {"Cleo": "cola", "Dev": "water"}
    assert example.orders(7) == {"Ben": "cola", "Cleo": "cola", "Dev": "water"}


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="gate"):
        example.inputs("soft")
    with pytest.raises(ValueError, match="K and V"):
        example.inputs(K=3)
