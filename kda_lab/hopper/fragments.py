"""Which thread of a warp or warpgroup holds which matrix element, as CuTe layouts; and what mma.sync and
ldmatrix do with them, lane by lane.

A fragment's layout takes (thread, value) to an index into the matrix counted down the columns: row
+ column * rows. Sources: PTX ISA, sections 'Matrix Fragments' of mma.m16n8k16, wgmma.m64nNk16 and
ldmatrix; CUTLASS, mma_traits_sm80.hpp and mma_traits_sm90_gmma.hpp.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kda_lab.hopper.layouts import Layout


@dataclass(frozen=True)
class Fragment:
    """A matrix spread over the registers of a warp (32 threads) or a warpgroup (128).

    layout: (thread, value) -> row + column * rows. 16-bit values 2r and 2r+1 of a thread share its
    register r.
    """

    name: str
    rows: int
    columns: int
    layout: Layout

    @property
    def threads(self) -> int:
        return self.layout[0].size

    @property
    def values(self) -> int:
        """Values that each thread holds."""
        return self.layout[1].size

    def at(self, thread: int, value: int) -> tuple[int, int]:
        """Row and column of a thread's value."""
        column, row = divmod(self.layout(thread, value), self.rows)
        return row, column

    @cached_property
    def owners(self) -> np.ndarray:
        """[rows, columns, 2]: the thread and the value index that hold each element."""
        owners = np.empty((self.rows, self.columns, 2), dtype=int)
        for thread in range(self.threads):
            for value in range(self.values):
                owners[self.at(thread, value)] = thread, value
        return owners

    def gather(self, matrix: np.ndarray) -> np.ndarray:
        """[threads, values]: what each thread holds of a `[rows, columns]` matrix."""
        if matrix.shape != (self.rows, self.columns):
            raise ValueError(f"matrix must be {(self.rows, self.columns)}, not {matrix.shape}")
        return matrix.reshape(-1, order="F")[self._places]

    def scatter(self, held: np.ndarray) -> np.ndarray:
        """The `[rows, columns]` matrix of which each thread holds its row of `[threads, values]`."""
        if held.shape != (self.threads, self.values):
            raise ValueError(f"held must be {(self.threads, self.values)}, not {held.shape}")
        flat = np.empty(self.rows * self.columns, dtype=held.dtype)
        flat[self._places] = held
        return flat.reshape(self.rows, self.columns, order="F")

    @cached_property
    def _places(self) -> np.ndarray:
        where = [[self.layout(t, v) for v in range(self.values)] for t in range(self.threads)]
        return np.array(where)


MMA_A = Fragment(
    "mma.m16n8k16 A [M,K]", 16, 16, Layout(((4, 8), (2, 2, 2)), ((32, 1), (16, 8, 128)))
)
MMA_B = Fragment("mma.m16n8k16 B [N,K]", 8, 16, Layout(((4, 8), (2, 2)), ((16, 1), (8, 64))))
MMA_C = Fragment("mma.m16n8k16 C [M,N]", 16, 8, Layout(((4, 8), (2, 2)), ((32, 1), (16, 8))))
LDMATRIX = Fragment("ldmatrix, one 8x8", 8, 8, Layout(((4, 8), 2), ((16, 1), 8)))

WGMMA_A = Fragment(
    "wgmma.m64k16 A from registers [M,K]",
    64,
    16,
    Layout(((4, 8, 4), (2, 2, 2)), ((128, 1, 16), (64, 8, 512))),
)


def wgmma_c(n: int) -> Fragment:
    """The accumulator of wgmma.m64nNk16, [64, n]: n a multiple of 8 up to 256.

    For n = 16 it is WGMMA_A: an accumulator, converted to 16 bits and packed, is the next product's
    A.
    """
    if n % 8 or not 8 <= n <= 256:
        raise ValueError(f"n must be a multiple of 8 from 8 to 256, not {n}")
    layout = Layout(((4, 8, 4), (2, 2, n // 8)), ((128, 1, 16), (64, 8, 512)))
    return Fragment(f"wgmma.m64n{n} accumulator [M,N]", 64, n, layout)


def ldmatrix_rows() -> list[tuple[int, int]]:
    """(row, column) that each thread of ldmatrix.x4 points at, to load a 16 x 16 A tile as MMA_A.

    Thread t gives the address of row t % 8 of 8 x 8 matrix t // 8; the matrices go down first, then
    right.
    """
    return [(t % 8 + 8 * (t // 8 % 2), 8 * (t // 16)) for t in range(32)]


def bf16(x: np.ndarray) -> np.ndarray:
    """x rounded to the nearest bf16, ties to even, as fp32 numbers; NaN stays NaN."""
    x = np.array(x, dtype=np.float32)
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), x, rounded.astype(np.uint32).view(np.float32))


def mma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """One mma.sync m16n8k16 of a warp: C + A B from the lanes' registers, bf16 operands, fp32 sums.

    a: `[32,8]`, b: `[32,4]`, c: `[32,4]`, as MMA_A, MMA_B and MMA_C hold them. Returns `[32,4]`. The
    hardware's order of summation is its own; here it is numpy's. ValueError on an operand that bf16 cannot hold.
    """
    for name, x in (("a", a), ("b", b)):
        if not np.array_equal(bf16(x), x, equal_nan=True):
            raise ValueError(f"{name} must hold bf16 numbers: round it first, bf16({name})")
    A, B = MMA_A.scatter(a).astype(np.float32), MMA_B.scatter(b).astype(np.float32)
    return MMA_C.gather(MMA_C.scatter(c).astype(np.float32) + A @ B.T)


def ldmatrix(memory: np.ndarray, addresses: Sequence[int], transposed: bool = False) -> np.ndarray:
    """ldmatrix of one, two or four 8 x 8 matrices: what each lane receives, `[32, 2 * matrices]`.

    memory: shared memory as a row of 2-byte elements. addresses: the byte address of row i % 8 of
    matrix i // 8, 8, 16 or 32 of them, multiples of 16. transposed: the variant .trans.
    """
    if len(addresses) not in (8, 16, 32):
        raise ValueError(f"addresses must be 8, 16 or 32, one for each row, not {len(addresses)}")
    held = []
    for first in range(0, len(addresses), 8):
        rows = []
        for i, address in enumerate(addresses[first : first + 8], first):
            if address % 16 or not 0 <= address <= 2 * memory.size - 16:
                raise ValueError(
                    f"addresses must be multiples of 16 inside the memory: {i} has {address}"
                )
            rows.append(memory[address // 2 : address // 2 + 8])
        matrix = np.stack(rows)
        held.append(LDMATRIX.gather(matrix.T if transposed else matrix))
    return np.concatenate(held, axis=1)
