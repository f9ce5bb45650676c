"""Cases and wrong versions of `ex12_layouts`: offsets, swizzles, banks, accumulators."""

from kda_lab.grading.spec import Case, Draw, Exercise, Mutant, close, shape


def fixed(*arguments):
    return lambda draw: arguments


def any_layout(draw: Draw) -> tuple:
    modes = 3
    return [draw.integer(2, 4) for _ in range(modes)], [draw.integer(1, 40) for _ in range(modes)]


LAYOUT_OFFSETS = Exercise(
    "layout_offsets",
    outputs=("offsets",),
    cases=[
        Case("shape", fixed([2, 3], [1, 2]), shape(), "There is one offset for each coordinate.", "Two times three coordinates: six offsets."),
        Case("hand-worked", fixed([2, 3], [3, 1]), close(0), "Two rows of three, stored row by row, read down the columns.", "Write the matrix of offsets on paper, then read it column by column.", expect=[0, 3, 1, 4, 2, 5]),
        Case("gaps", fixed([4, 2], [2, 100]), close(0), "Strides may leave gaps.", "Use the strides as they are."),
        Case("three modes", fixed([2, 3, 4], [12, 1, 3]), close(0), "The quotient goes on from mode to mode.", "Print the coordinates of index 7: (1, 0, 1)."),
        Case("any layout", any_layout, close(0), "The same function for every shape and stride.", "Which mode is off?"),
    ],
    mutants=[
        Mutant("rightmost fastest", "the rightmost mode was counted fastest", [("zip(shape, stride)", "zip(shape[::-1], stride[::-1])")]),
        Mutant("no remainder", "the coordinate was not reduced to its mode: take the remainder", [("index % s * d", "index * d")]),
        Mutant("strides ignored", "the strides were ignored", [("index % s * d", "index % s")]),
        Mutant("never divided", "every mode got the same index: divide by the extent before the next", [("index //= s", "index //= 1")]),
        Mutant("last mode dropped", "the last mode was left out", [("zip(shape, stride)", "zip(shape[:-1], stride[:-1])")]),
        Mutant("first mode dropped", "the first mode was left out", [("zip(shape, stride)", "zip(shape[1:], stride[1:])")]),
        Mutant("swapped", "shape and stride changed places", [("zip(shape, stride)", "zip(stride, shape)")]),
        Mutant("from one", "the count started at 1", [("range(prod(shape))", "range(1, prod(shape) + 1)")]),
        Mutant("divided by stride", "the index was divided by the stride, not by the extent", [("index //= s", "index //= d")]),
    ],
)  # fmt: skip


def any_swizzle(draw: Draw) -> tuple:
    bits = draw.integer(2, 3)
    return [draw.integer(0, 4095) for _ in range(40)], bits, draw.integer(1, 3), bits + draw.integer(0, 1)


SWIZZLE = Exercise(
    "swizzle",
    outputs=("new",),
    cases=[
        Case("shape", fixed([0, 1, 2], 1, 0, 1), shape(), "There is one new offset for each old one.", "Return a list."),
        Case("hand-worked", fixed([0, 1, 4, 5, 8], 2, 0, 2), close(0), "8 is 1000: its upper bits 10 flip 00 into 10.", "Write the five numbers in binary.", expect=[0, 1, 5, 4, 10]),
        Case("TMA 128", fixed(list(range(0, 2048, 16)), 3, 4, 3), close(0), "Swizzle<3,4,3> on byte addresses: rows of 128 bytes, pieces of 16.", "The bits read start at 4 + 3 = 7."),
        Case("TMA 64", fixed(list(range(0, 2048, 16)), 2, 4, 3), close(0), "Swizzle<2,4,3>: bits fewer than shift.", "How many ones has the mask, and where is the lowest?"),
        Case("any swizzle", any_swizzle, close(0), "The same function for all bits, bases and shifts.", "Which of the three numbers is used twice, or never?"),
    ],
    mutants=[
        Mutant("or", "the bits were set (OR), not flipped (XOR)", [("x ^ (", "x | (")]),
        Mutant("plus", "the bits were added, so a carry runs on", [("x ^ (", "x + (")]),
        Mutant("mask at base", "the mask stands at base: it must stand shift above", [("<< (base + shift)", "<< base")]),
        Mutant("mask at shift", "the mask stands at shift: base was left out", [("<< (base + shift)", "<< shift")]),
        Mutant("not moved", "the bits were not moved down", [(" >> shift)", " >> 0)")]),
        Mutant("moved up", "the bits were moved up, not down", [(" >> shift)", " << shift)")]),
        Mutant("one bit", "the mask has one bit only", [("((1 << bits) - 1)", "(1 << bits - 1)")]),
        Mutant("one bit too many", "the mask is one bit too wide", [("((1 << bits) - 1)", "((2 << bits) - 1)")]),
        Mutant("mask moved", "the mask was moved instead of the bits", [("((x & mask) >> shift)", "(x & (mask >> shift))")]),
    ],
)  # fmt: skip


def column(stride: int, width: int):
    return fixed([stride * t for t in range(32)], width)


def any_access(draw: Draw) -> tuple:
    width = 4 * 2 ** draw.integer(0, 2)
    return [width * draw.integer(0, 96) for _ in range(32)], width


WAVEFRONTS = Exercise(
    "wavefronts",
    outputs=("wavefronts",),
    cases=[
        Case("shape", column(4, 4), shape(), "A count.", "Return one whole number."),
        Case("no conflict", column(4, 4), close(0), "32 neighbours fill the 32 banks once.", "Which bank has the word at address 4 t?", expect=1),
        Case("broadcast", fixed([64] * 32, 4), close(0), "All threads want the same word: it is delivered once.", "Count different words, not threads.", expect=1),
        Case("broadcast, 16 bytes", fixed([64] * 32, 16), close(0), "Four groups of eight threads: one wavefront each.", "Groups follow each other, even when they want the same words.", expect=4),
        Case("broadcast, 8 bytes", fixed([64] * 32, 8), close(0), "Two groups of sixteen threads: one wavefront each.", "128 / 8 threads are served together.", expect=2),
        Case("one bank", column(128, 4), close(0), "32 words in one bank: one after the other.", "Bank is word % 32.", expect=32),
        Case("16 bytes, in order", column(16, 16), close(0), "Four groups of eight threads, none with a conflict.", "Each thread wants four words.", expect=4),
        Case("16 bytes, rows of 128", column(128, 16), close(0), "In each group eight rows meet in the same four banks.", "8 wavefronts a group.", expect=32),
        Case("8 bytes, rows of 64", column(64, 8), close(0), "Two groups of sixteen threads.", "Which threads are served together at 8 bytes?"),
        Case("padded rows", column(132, 4), close(0), "A row of 33 words: the classical padding.", "Neighbouring rows are one bank apart."),
        Case("any access", any_access, close(0), "The same rule for any addresses.", "Print the words of the first group."),
        Case("any other access", any_access, close(0), "The same rule for any addresses.", "Print the words of the first group."),
        Case("a third", any_access, close(0), "The same rule for any addresses.", "Print the words of the first group."),
    ],
    mutants=[
        Mutant("no groups", "all 32 threads were served together: there are groups at 8 and 16 bytes", [("together = 128 // width", "together = 32")]),
        Mutant("groups of eight", "every width got groups of eight threads", [("together = 128 // width", "together = 8")]),
        Mutant("threads", "threads were counted, not different words: a broadcast costs nothing", [("{a // 4 + i for a in group for i in range(width // 4)}", "[a // 4 + i for a in group for i in range(width // 4)]")]),
        Mutant("groups of sixteen", "every width got groups of sixteen threads", [("together = 128 // width", "together = 16")]),
        Mutant("sixteen banks", "sixteen banks were assumed: there are 32", [("w % 32", "w % 16")]),
        Mutant("byte banks", "the bank was taken from the byte address: a bank is 4 bytes wide", [("a // 4 + i", "a + i")]),
        Mutant("worst group", "only the last group was counted: the groups follow each other", [("total += max(", "total = max(")]),
        Mutant("extra only", "only the wavefronts beyond the first of each group were counted", [("total += max(", "total += -1 + max(")]),
        Mutant("words", "the words of a group were counted, whatever their bank", [("max(sum(w % 32 == bank for w in words) for bank in range(32))", "len(words)")]),
        Mutant("banks touched", "the banks that are touched were counted, not the words in the busiest", [("max(sum(w % 32 == bank for w in words) for bank in range(32))", "len({w % 32 for w in words})")]),
    ],
)  # fmt: skip

ACCUMULATOR = Exercise(
    "accumulator",
    outputs=("held",),
    cases=[
        Case("shape", fixed(0, 16), shape(), "A thread holds n / 2 values of a 64 x n accumulator.", "A list of [row, column]."),
        Case("hand-worked", fixed(5, 8), close(0), "Thread 5 of warp 0: row 1, columns 2 and 3, and eight rows below.", "5 // 4 is the row, 5 % 4 the pair.", expect=[[1, 2], [1, 3], [9, 2], [9, 3]]),
        Case("wide", fixed(0, 64), close(0), "Every four values the thread moves eight columns to the right.", "Look at value 4."),
        Case("last thread", fixed(127, 32), close(0), "Thread 127 is the last of warp 3: rows 55 and 63.", "Which rows does warp 3 own?"),
        Case("any thread", lambda draw: (draw.integer(33, 127), 40), close(0), "The same map for every thread.", "Compare rows first, then columns."),
    ],
    mutants=[
        Mutant("warps of 8 rows", "each warp got 8 rows: it owns 16", [("16 * (thread // 32)", "8 * (thread // 32)")]),
        Mutant("no warps", "all warps got the same rows", [("16 * (thread // 32)", "0")]),
        Mutant("thread's row", "the row within the warp is that of thread // 4, eight rows in all", [("thread % 32 // 4", "thread % 8")]),
        Mutant("below first", "the second value was put eight rows below: values come in pairs along the row", [("value // 2 % 2", "value % 2"), ("+ value % 2 ", "+ value // 2 % 2 ")]),
        Mutant("one column", "a thread's pair starts two columns after its neighbour's", [("2 * (thread % 4)", "(thread % 4)")]),
        Mutant("transposed", "row and column changed places", [("append([row, column])", "append([column, row])")]),
        Mutant("next row", "values 2 and 3 lie eight rows below, not one", [("8 * (value // 2 % 2)", "value // 2 % 2")]),
        Mutant("four columns", "the next four values lie eight columns to the right, not four", [("8 * (value // 4)", "4 * (value // 4)")]),
        Mutant("all in rows", "all values were put in one row", [("8 * (value // 2 % 2)", "0")]),
    ],
)  # fmt: skip

EXERCISES = [LAYOUT_OFFSETS, SWIZZLE, WAVEFRONTS, ACCUMULATOR]
