"""Exercises of notebook 12: layouts, swizzles, bank conflicts, and who holds what."""

from math import prod


# ex12.layout_offsets: 3 points, 15 minutes, about 8 lines
# A hint: kda-lab hint ex12.layout_offsets     Your verdict: kda-lab grade ex12
def layout_offsets(shape: list[int], stride: list[int]) -> list[int]:
    """The offsets of the layout shape:stride, one for each coordinate, leftmost mode fastest.

    shape: extents, at least 1 each. stride: as many strides.

    (2,3):(3,1) is two rows of three, stored row by row. Going down the columns first:

    >>> layout_offsets([2, 3], [3, 1])
    [0, 3, 1, 4, 2, 5]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex12.layout_offsets")


# ex12.swizzle: 3 points, 15 minutes, about 3 lines
# A hint: kda-lab hint ex12.swizzle     Your verdict: kda-lab grade ex12
def swizzle(offsets: list[int], bits: int, base: int, shift: int) -> list[int]:
    """CuTe's Swizzle<bits, base, shift> of each offset.

    It reads `bits` bits, the lowest of them at base + shift, and XORs them into the `bits` bits
    that start at base. All other bits stay.

    Swizzle<2,0,2>: bits 2 and 3 are flipped into bits 0 and 1. 5 is 0101, and becomes 0100.

    >>> swizzle([0, 1, 4, 5, 8], 2, 0, 2)
    [0, 1, 5, 4, 10]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex12.swizzle")


# ex12.wavefronts: 4 points, 20 minutes, about 7 lines
# A hint: kda-lab hint ex12.wavefronts     Your verdict: kda-lab grade ex12
def wavefronts(addresses: list[int], width: int) -> int:
    """Wavefronts that one shared-memory load of a warp takes.

    addresses: 32 byte addresses, multiples of width. width: bytes a thread, 4, 8 or 16. There are
    32 banks of 4 bytes. Threads are served in groups of 128 / width, in order.

    All threads in one bank, 32 different words:

    >>> wavefronts([128 * t for t in range(32)], 4)
    32
    >>> wavefronts([16 * t for t in range(32)], 16)     # four groups, none with a conflict
    4
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex12.wavefronts")


# ex12.accumulator: 4 points, 20 minutes, about 7 lines
# A hint: kda-lab hint ex12.accumulator     Your verdict: kda-lab grade ex12
def accumulator(thread: int, n: int) -> list[list[int]]:
    """[row, column] of each value that a thread holds of a wgmma m64nN accumulator, in order.

    thread: 0 to 127 of the warpgroup. n: columns, a multiple of 8. Warp w owns rows 16 w to
    16 w + 15. In each 8 x 8 block, thread t of the warp holds two neighbours of row t // 4.

    >>> accumulator(5, 8)
    [[1, 2], [1, 3], [9, 2], [9, 3]]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex12.accumulator")
