"""The emulated mma.sync and ldmatrix, against numpy and PyTorch."""

import numpy as np
import pytest
import torch

from kda_lab.hopper.fragments import (
    MMA_A,
    MMA_B,
    MMA_C,
    WGMMA_A,
    bf16,
    ldmatrix,
    ldmatrix_rows,
    mma,
)

RNG = np.random.default_rng(11)


def small(*shape):
    """Whole numbers that bf16 holds and fp32 sums exactly."""
    return RNG.integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("fragment", [MMA_A, MMA_B, MMA_C, WGMMA_A])
def test_scatter_undoes_gather(fragment):
    x = small(fragment.rows, fragment.columns)
    assert (fragment.scatter(fragment.gather(x)) == x).all()
    with pytest.raises(ValueError, match="held must be"):
        fragment.scatter(np.zeros((3, 3)))


def test_bf16_rounds_as_pytorch_does():
    edges = [0.0, -0.0, 1.0, 256.5, 257.0, 259.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-40]
    x = np.concatenate([np.float32(edges), RNG.normal(size=1000).astype(np.float32)])
    want = torch.from_numpy(x).bfloat16().float().numpy()
    assert np.array_equal(bf16(x), want, equal_nan=True)


def test_mma_is_the_product():
    A, B, C = small(16, 16), small(8, 16), small(16, 8)  # B is [N,K]
    d = mma(MMA_A.gather(A), MMA_B.gather(B), MMA_C.gather(C))
    assert (MMA_C.scatter(d) == C + A @ B.T).all()


def test_mma_refuses_what_bf16_cannot_hold():
    zero_a, zero_b, zero_c = np.zeros((32, 8)), np.zeros((32, 4)), np.zeros((32, 4))
    with pytest.raises(ValueError, match="b must hold bf16"):
        mma(zero_a, zero_b + 257, zero_c)


def test_ldmatrix_loads_the_fragments():
    tile = small(16, 64)  # rows of 128 bytes
    at = [2 * (64 * row + 16 + column) for row, column in ldmatrix_rows()]
    assert (ldmatrix(tile.ravel(), at) == MMA_A.gather(tile[:, 16:32])).all()
    two = [2 * (64 * (i % 8) + 8 * (i // 8)) for i in range(16)]
    assert (ldmatrix(tile.ravel(), two) == MMA_B.gather(tile[:8, :16])).all()
    # stored [K,N], wanted as B [N,K]: the transposed variant, one matrix for each 8 of k
    trans = [2 * 64 * i for i in range(16)]
    assert (ldmatrix(tile.ravel(), trans, True) == MMA_B.gather(tile[:, :8].T)).all()


def test_ldmatrix_refuses_bad_addresses():
    memory = np.zeros(64)
    with pytest.raises(ValueError, match="8, 16 or 32"):
        ldmatrix(memory, [0] * 5)
    with pytest.raises(ValueError, match="3 has 8"):
        ldmatrix(memory, [0, 0, 0, 8, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="0 has -16"):
        ldmatrix(memory, [-16] + [0] * 7)
    with pytest.raises(ValueError, match="7 has 128"):
        ldmatrix(memory, [0] * 7 + [128])
