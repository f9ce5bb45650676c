"""Exercises of notebook 12: layouts, swizzles, bank conflicts, and who holds what."""

from math import prod


# exercise layout_offsets: 3 points, 15 minutes, 8 lines
# hint 1: Direction. Count through all coordinates with one integer. How do you get the coordinate in the
#     first mode out of it, and what is left for the other modes?
# hint 2: The key identity: the coordinate in a mode is the remainder by its extent, and the quotient goes on
#     to the next mode. The offset is the sum of coordinate times stride.
# hint 3: All but one line:
#     for index in range(prod(shape)):
#         offset = 0
#         for s, d in zip(shape, stride):
#             offset += ...
#             index //= s
#         offsets.append(offset)
# why: A layout is this function and nothing else. CuTe runs the same remainders and quotients at compile time,
#     so that only constants are left in the kernel.
def layout_offsets(shape: list[int], stride: list[int]) -> list[int]:
    """The offsets of the layout shape:stride, one for each coordinate, leftmost mode fastest.

    shape: extents, at least 1 each. stride: as many strides.

    (2,3):(3,1) is two rows of three, stored row by row. Going down the columns first:

    >>> layout_offsets([2, 3], [3, 1])
    [0, 3, 1, 4, 2, 5]
    """
    # solution
    offsets = []
    for index in range(prod(shape)):
        offset = 0
        for s, d in zip(shape, stride):
            offset += index % s * d
            index //= s
        offsets.append(offset)
    return offsets
    # end solution


# exercise swizzle: 3 points, 15 minutes, 3 lines
# hint 1: Direction. Take out the bits that are read with a mask, move them down, and flip the bits there.
# hint 2: The key identity: new = x XOR ((x AND mask) moved right by shift). The mask has `bits` ones, and its
#     lowest one stands at base + shift.
# hint 3: All but one line:
#     mask = ((1 << bits) - 1) << (base + shift)
#     return [... for x in offsets]
# why: XOR with bits that stay where they are undoes itself, so nothing collides and nothing is lost: a swizzle
#     only permutes, and the same function reads what it wrote.
def swizzle(offsets: list[int], bits: int, base: int, shift: int) -> list[int]:
    """CuTe's Swizzle<bits, base, shift> of each offset.

    It reads `bits` bits, the lowest of them at base + shift, and XORs them into the `bits` bits
    that start at base. All other bits stay.

    Swizzle<2,0,2>: bits 2 and 3 are flipped into bits 0 and 1. 5 is 0101, and becomes 0100.

    >>> swizzle([0, 1, 4, 5, 8], 2, 0, 2)
    [0, 1, 5, 4, 10]
    """
    # solution
    mask = ((1 << bits) - 1) << (base + shift)
    return [x ^ ((x & mask) >> shift) for x in offsets]
    # end solution


# exercise wavefronts: 4 points, 20 minutes, 7 lines
# hint 1: Direction. Cut the 32 threads into groups that are served together, then look at one group: which
#     words does it want, and which bank does each word live in?
# hint 2: The key identity: a group takes as many wavefronts as the busiest bank has different words. Word is
#     address // 4, bank is word % 32, and groups have 32, 16 or 8 threads at 4, 8 or 16 bytes.
# hint 3: All but one line:
#     together = 128 // width
#     total = 0
#     for start in range(0, 32, together):
#         words = {a // 4 + i for a in addresses[start : start + together] for i in range(width // 4)}
#         total += ...
#     return total
# why: A set, because the same word asked twice is delivered to both (a broadcast). Groups, because 32 threads
#     times 16 bytes would be 512 bytes, and the banks deliver 128 at a time.
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
    # solution
    together = 128 // width
    total = 0
    for start in range(0, 32, together):
        group = addresses[start : start + together]
        words = {a // 4 + i for a in group for i in range(width // 4)}
        total += max(sum(w % 32 == bank for w in words) for bank in range(32))
    return total
    # end solution


# exercise accumulator: 4 points, 20 minutes, 7 lines
# hint 1: Direction. A warp owns 16 rows. Inside it, four neighbouring threads share a row. Where does the
#     next value of a thread lie: to the right, or below?
# hint 2: The key identity: values come in pairs. Values 0 and 1 are neighbours in a row, 2 and 3 lie eight
#     rows below, and values 4 to 7 repeat this eight columns to the right.
# hint 3: All but one line:
#     held = []
#     for value in range(n // 2):
#         row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (value // 2 % 2)
#         column = ...
#         held.append([row, column])
#     return held
# why: Pairs are neighbours so that two 16-bit values fill one register. Packed that way, an accumulator is
#     at once the A operand of the next product, which is how the state stays in registers in notebook 15.
def accumulator(thread: int, n: int) -> list[list[int]]:
    """[row, column] of each value that a thread holds of a wgmma m64nN accumulator, in order.

    thread: 0 to 127 of the warpgroup. n: columns, a multiple of 8. Warp w owns rows 16 w to
    16 w + 15. In each 8 x 8 block, thread t of the warp holds two neighbours of row t // 4.

    >>> accumulator(5, 8)
    [[1, 2], [1, 3], [9, 2], [9, 3]]
    """
    # solution
    held = []
    for value in range(n // 2):
        row = 16 * (thread // 32) + thread % 32 // 4 + 8 * (value // 2 % 2)
        column = 2 * (thread % 4) + value % 2 + 8 * (value // 4)
        held.append([row, column])
    return held
    # end solution
