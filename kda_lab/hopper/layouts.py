"""CuTe's layouts in plain Python: a layout is a function from a coordinate to an offset.

`shape:stride` is the whole of it: the offset is the inner product of coordinate and stride. This
module has the algebra (coalesce, composition, complement, divide, product), swizzles, and what
shared memory makes of an access. Source of the algebra: CUTLASS, media/docs/cpp/cute/01_layout.md
and 02_layout_algebra.md; tests compare with pycute and with CuTe itself compiled for the host.
"""

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

IntTuple = Any  # an integer, or a tuple of IntTuples

BANKS = 32  # banks of shared memory
WORD = 4  # bytes that one bank delivers per wavefront


def flatten(t: IntTuple) -> tuple[int, ...]:
    """The integers of a nested tuple, left to right."""
    return sum((flatten(x) for x in t), ()) if isinstance(t, tuple) else (t,)


def size_of(t: IntTuple) -> int:
    """The product of all integers of a nested tuple."""
    return prod(flatten(t))


def congruent(a: IntTuple, b: IntTuple) -> bool:
    """Whether two tuples nest the same way."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(congruent, a, b))
    return not isinstance(a, tuple) and not isinstance(b, tuple)


def compact(shape: IntTuple) -> IntTuple:
    """The strides that pack `shape` without gaps, leftmost mode fastest (CuTe's default)."""
    flat = flatten(shape)
    return _like(shape, list(accumulate((1, *flat[:-1]), lambda x, y: x * y)))


def _like(shape: IntTuple, values: list[int]) -> IntTuple:
    """The values, nested as `shape` is; consumes the list."""
    if isinstance(shape, tuple):
        return tuple(_like(s, values) for s in shape)
    return values.pop(0)


def _text(t: IntTuple) -> str:
    return f"({','.join(map(_text, t))})" if isinstance(t, tuple) else str(t)


def _is_int_tuple(t: object, least: int) -> bool:
    if isinstance(t, tuple):
        return len(t) > 0 and all(_is_int_tuple(x, least) for x in t)
    return isinstance(t, int) and not isinstance(t, bool) and t >= least


@dataclass(frozen=True)
class Layout:
    """A function from coordinates of `shape` to offsets: sum of coordinate times stride.

    shape: positive integers, nested as you like. stride: nested the same way; packed, leftmost
    fastest, if omitted. A coordinate is an integer (counted leftmost fastest), or a tuple with one
    entry a mode, each of them again either.
    """

    shape: IntTuple
    stride: IntTuple = None

    def __post_init__(self):
        if not _is_int_tuple(self.shape, 1):
            raise ValueError(
                f"shape must hold integers from 1, nested in tuples, not {self.shape!r}"
            )
        if self.stride is None:
            object.__setattr__(self, "stride", compact(self.shape))
        if not _is_int_tuple(self.stride, 0):
            raise ValueError(
                f"stride must hold integers from 0, nested as shape, not {self.stride!r}"
            )
        if not congruent(self.shape, self.stride):
            raise ValueError(
                f"stride {_text(self.stride)} must nest as shape {_text(self.shape)} does"
            )

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """Reads `(4,(2,2)):(2,(1,8))`, or a shape alone. ValueError says what is wrong with the
        text."""
        shape, _, stride = text.partition(":")
        try:
            shape, stride = (ast.literal_eval(part.strip() or "None") for part in (shape, stride))
        except (ValueError, SyntaxError):
            raise ValueError(
                f"layout {text!r} must read like (4,8):(8,1): shape, colon, stride"
            ) from None
        return cls(shape, stride)

    def __call__(self, *coord: IntTuple) -> int:
        """The offset of a coordinate; IndexError outside the shape."""
        coord = coord[0] if len(coord) == 1 else coord
        return _offset(coord, self.shape, self.stride)

    @property
    def size(self) -> int:
        """How many coordinates it has."""
        return size_of(self.shape)

    @property
    def cosize(self) -> int:
        """One more than the largest offset: the memory it needs."""
        return 1 + sum((s - 1) * d for s, d in self.flat())

    @property
    def rank(self) -> int:
        """The number of top-level modes."""
        return len(self.shape) if isinstance(self.shape, tuple) else 1

    def flat(self) -> list[tuple[int, int]]:
        """(extent, stride) pairs of every mode, nesting removed."""
        return list(zip(flatten(self.shape), flatten(self.stride), strict=True))

    def modes(self) -> tuple["Layout", ...]:
        """The top-level modes as layouts."""
        if not isinstance(self.shape, tuple):
            return (self,)
        return tuple(Layout(s, d) for s, d in zip(self.shape, self.stride, strict=True))

    def __getitem__(self, i: int) -> "Layout":
        return self.modes()[i]

    def __str__(self) -> str:
        return f"{_text(self.shape)}:{_text(self.stride)}"

    __repr__ = __str__


def _offset(coord: IntTuple, shape: IntTuple, stride: IntTuple) -> int:
    if isinstance(coord, tuple):
        if not isinstance(shape, tuple) or len(coord) != len(shape):
            raise IndexError(
                f"coordinate {_text(coord)} must have one entry for each mode of {_text(shape)}"
            )
        return sum(map(_offset, coord, shape, stride))
    if not 0 <= coord < size_of(shape):
        raise IndexError(
            f"coordinate {coord} must be below {size_of(shape)} in a mode of shape {_text(shape)}"
        )
    offset = 0
    for s, d in zip(flatten(shape), flatten(stride), strict=True):
        offset, coord = offset + coord % s * d, coord // s
    return int(offset)


def row_major(*extents: int) -> Layout:
    """Packed strides, rightmost mode fastest (PyTorch's and C's order)."""
    return Layout(extents, tuple(prod(extents[i + 1 :]) for i in range(len(extents))))


def column_major(*extents: int) -> Layout:
    """Packed strides, leftmost mode fastest (CuTe's and Fortran's order)."""
    return Layout(extents)


def concat(*layouts: Layout) -> Layout:
    """One layout whose modes are the given layouts."""
    return Layout(tuple(x.shape for x in layouts), tuple(x.stride for x in layouts))


def _from_flat(pairs: Sequence[tuple[int, int]]) -> Layout:
    pairs = list(pairs) or [(1, 0)]
    if len(pairs) == 1:
        return Layout(*pairs[0])
    return Layout(tuple(s for s, _ in pairs), tuple(d for _, d in pairs))


def coalesce(layout: Layout) -> Layout:
    """The same function of an integer coordinate with as few modes as possible."""
    result: list[tuple[int, int]] = []
    for s, d in layout.flat():
        if s == 1:
            continue
        if result and result[-1][0] * result[-1][1] == d:
            result[-1] = (result[-1][0] * s, result[-1][1])
        else:
            result.append((s, d))
    return _from_flat(result)


def composition(a: "Layout | Swizzled | Swizzle", b: "Layout | tuple") -> "Layout | Swizzled":
    """R with R(c) = A(B(c)), in B's shape.

    A tuple of layouts composes mode by mode. ValueError where an extent of A is cut at a point that
    does not divide it.
    """
    if isinstance(a, Swizzle):
        return Swizzled(a, b if isinstance(b, Layout) else concat(*b))
    if isinstance(a, Swizzled):
        return Swizzled(a.swizzle, _compose(a.layout, b))
    return _compose(a, b)


def _compose(a: Layout, b: Layout | tuple) -> Layout:
    if isinstance(b, tuple):
        return concat(*map(_compose, a.modes()[: len(b)], b), *a.modes()[len(b) :])
    if isinstance(b.shape, tuple):
        return concat(*(_compose(a, mode) for mode in b.modes()))
    return _select(coalesce(a).flat(), b.shape, b.stride)


def _select(a: list[tuple[int, int]], count: int, step: int) -> Layout:
    """Every `step`-th element of A, `count` of them."""
    if step == 0:
        return Layout(count, 0)
    result = []
    for s, d in a[:-1]:
        if step % s and s % step:
            raise ValueError(
                f"stride {step} must divide the left layout's extent {s}, or be a multiple of it"
            )
        left = max(1, s // step)  # elements of this mode that the step can reach
        take = min(left, count)
        if count % take:
            raise ValueError(
                f"extent {count} must be a multiple of {take}, what the left layout's mode holds"
            )
        result.append((take, step * d))
        count, step = count // take, max(1, step // s)
    s, d = a[-1]
    result.append((count, step * d))
    return coalesce(_from_flat(result))


def complement(layout: Layout, size: int) -> Layout:
    """The layout of the gaps: its offsets times the layout's fill 0 .. size-1 once.

    ValueError when the layout hits an offset twice, so that nothing can complete it.
    """
    result, filled = [], 1  # `filled` consecutive offsets are reached so far
    for d, s in sorted((d, s) for s, d in layout.flat() if s > 1):
        if d < filled or d % filled:
            raise ValueError(
                f"layout {layout} must not reach an offset twice, and its strides must nest"
            )
        result.append((d // filled, filled))
        filled = d * s
    result.append((-(-size // filled), filled))
    return coalesce(_from_flat(result))


def logical_divide(layout: Layout, tiler: "Layout | int | tuple") -> Layout:
    """Each mode as (position in the tile, which tile). A tuple of tilers goes mode by mode."""
    if isinstance(tiler, tuple):
        done = [logical_divide(m, t) for m, t in zip(layout.modes(), tiler, strict=False)]
        return concat(*done, *layout.modes()[len(tiler) :])
    if isinstance(tiler, int):
        tiler = Layout(tiler)
    return _compose(layout, concat(tiler, complement(tiler, layout.size)))


def zipped_divide(layout: Layout, tiler: "Layout | int | tuple") -> Layout:
    """The tile's modes gathered in mode 0, the modes that count tiles in mode 1."""
    parts = logical_divide(layout, tiler)
    if not isinstance(tiler, tuple):
        return parts
    cut, rest = parts.modes()[: len(tiler)], parts.modes()[len(tiler) :]
    return concat(concat(*(m[0] for m in cut)), concat(*(m[1] for m in cut), *rest))


def logical_product(layout: Layout, tiler: Layout) -> Layout:
    """Mode 0 is the layout; mode 1 repeats it in the pattern of the tiler."""
    rest = complement(layout, layout.size * tiler.cosize)
    return concat(layout, _compose(rest, tiler))


def blocked_product(block: Layout, tiler: Layout) -> Layout:
    """A block, repeated by the tiler, mode by mode: ((block, tiler), (block, tiler), ...)."""
    return _paired(logical_product(block, tiler), lambda b, t: concat(b, t))


def raked_product(block: Layout, tiler: Layout) -> Layout:
    """As blocked_product, with the copies interleaved: ((tiler, block), (tiler, block), ...)."""
    return _paired(logical_product(block, tiler), lambda b, t: concat(t, b))


def _paired(pair: Layout, join: Callable[[Layout, Layout], Layout]) -> Layout:
    if pair[0].rank != pair[1].rank:
        raise ValueError(f"block {pair[0]} and tiler {pair[1]} must have the same number of modes")
    return concat(*map(join, pair[0].modes(), pair[1].modes()))


@dataclass(frozen=True)
class Swizzle:
    """CuTe's Swizzle<B,M,S>: XOR `bits` bits, `shift` above them, into the bits that start at
    `base`.

    0..MMM (base bits stay) YYY (read) ... : new = x ^ ((x & YYY) >> shift).
    """

    bits: int
    base: int
    shift: int

    def __post_init__(self):
        if self.bits < 0 or self.base < 0:
            raise ValueError(f"bits and base must not be negative, got {self.bits} and {self.base}")
        if self.shift < self.bits:
            raise ValueError(
                f"shift {self.shift} must be at least bits {self.bits}, so that none is both"
            )

    def __call__(self, offset: int) -> int:
        mask = ((1 << self.bits) - 1) << (self.base + self.shift)
        return offset ^ ((offset & mask) >> self.shift)

    def __str__(self) -> str:
        return f"Sw<{self.bits},{self.base},{self.shift}>"

    __repr__ = __str__


@dataclass(frozen=True)
class Swizzled:
    """A swizzle after a layout: offset(c) = swizzle(layout(c))."""

    swizzle: Swizzle
    layout: Layout

    def __call__(self, *coord: IntTuple) -> int:
        return self.swizzle(self.layout(*coord))

    @property
    def shape(self) -> IntTuple:
        return self.layout.shape

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def cosize(self) -> int:
        return 1 + max(self(i) for i in range(self.size))

    @property
    def rank(self) -> int:
        return self.layout.rank

    def __str__(self) -> str:
        return f"{self.swizzle} o {self.layout}"

    __repr__ = __str__


AnyLayout = Layout | Swizzled


def table(layout: AnyLayout) -> np.ndarray:
    """Offsets as a matrix: rows run over mode 0, columns over mode 1 (a rank-1 layout is one
    row)."""
    if layout.rank > 2:
        raise ValueError(f"layout {layout} must have one or two modes to be drawn as a matrix")
    if layout.rank == 1:
        return np.array([[layout(i) for i in range(layout.size)]])
    rows, columns = map(size_of, layout.shape)
    return np.array([[layout(i, j) for j in range(columns)] for i in range(rows)])


TMA_SWIZZLES = {
    32: Swizzle(1, 4, 3),
    64: Swizzle(2, 4, 3),
    128: Swizzle(3, 4, 3),
}  # on byte addresses


def tma_swizzle(row_bytes: int, element_bytes: int = 1) -> Swizzle:
    """What TMA's 32, 64 or 128-byte mode does, for offsets counted in elements of `element_bytes`.

    Source: PTX ISA, 'Swizzling modes' of tensor copies: 16-byte pieces permuted inside rows of 32,
    64 or 128 bytes.
    """
    if row_bytes not in TMA_SWIZZLES:
        raise ValueError(f"row_bytes must be 32, 64 or 128, not {row_bytes}")
    if element_bytes not in (1, 2, 4, 8, 16):
        raise ValueError(f"element_bytes must be 1, 2, 4, 8 or 16, not {element_bytes}")
    s = TMA_SWIZZLES[row_bytes]
    return Swizzle(s.bits, s.base - element_bytes.bit_length() + 1, s.shift)


def smem_atom(row_bytes: int, element_bytes: int = 2) -> Swizzled:
    """CuTe's K-major shared-memory atom GMMA::Layout_K_SW{32,64,128}_Atom: 8 rows of `row_bytes`,
    offsets in elements."""
    swizzle = tma_swizzle(row_bytes, element_bytes)
    return Swizzled(swizzle, row_major(8, row_bytes // element_bytes))


@dataclass(frozen=True)
class Access:
    """One shared-memory instruction of a warp, as the banks see it.

    phases: which threads go together. words: for each phase, bank -> {word: threads}. ways: for
    each phase, the largest number of different words asked of one bank, which is how many
    wavefronts the phase takes.
    """

    width: int
    phases: tuple[tuple[int, ...], ...]
    words: tuple[dict[int, dict[int, list[int]]], ...]
    ways: tuple[int, ...]

    @property
    def wavefronts(self) -> int:
        """Passes through shared memory that the instruction takes."""
        return sum(self.ways)

    @property
    def conflicts(self) -> int:
        """Wavefronts beyond one a phase: 0 is the best there is."""
        return self.wavefronts - sum(w > 0 for w in self.ways)

    def __str__(self) -> str:
        phases = sum(w > 0 for w in self.ways)
        lines = [
            f"{self.width} bytes a thread: {phases} phase{'s' * (phases != 1)}, "
            f"{self.wavefronts} wavefront{'s' * (self.wavefronts != 1)}, "
            f"{self.conflicts} of them from bank conflicts"
        ]
        for i, (threads, banks, ways) in enumerate(
            zip(self.phases, self.words, self.ways, strict=True)
        ):
            if ways > 1:
                bank, asked = max(banks.items(), key=lambda item: len(item[1]))
                who = [t[0] for t in asked.values()]
                lines.append(
                    f"  phase {i} (threads {threads[0]}-{threads[-1]}): bank {bank} is asked for "
                    f"{ways} different words, by threads {', '.join(map(str, who))}"
                )
        return "\n".join(lines)


def shared_access(addresses: Sequence[int | None], width: int = 4) -> Access:
    """What 32 banks of 4 bytes make of one load or store.

    addresses: byte address of each thread of the warp (None: the thread sits out). width: bytes a
    thread, 1 to 16; the hardware serves 32 threads at once up to 4 bytes, 16 at 8, 8 at 16. The
    same word twice is one word (broadcast). ldmatrix and stmatrix are 16-byte accesses whose
    addresses are the rows of 8 x 8 matrices.
    """
    if width not in (1, 2, 4, 8, 16):
        raise ValueError(f"width must be 1, 2, 4, 8 or 16 bytes, not {width}")
    if len(addresses) > 32:
        raise ValueError(f"addresses must be those of one warp, at most 32, not {len(addresses)}")
    for thread, address in enumerate(addresses):
        if address is not None and (address < 0 or address % width):
            raise ValueError(
                f"addresses must be multiples of width {width}: thread {thread} has {address}"
            )
    together = min(32, 128 // width)
    phases = tuple(
        tuple(range(lo, min(lo + together, len(addresses))))
        for lo in range(0, len(addresses), together)
    )
    words = []
    for threads in phases:
        banks: dict[int, dict[int, list[int]]] = {}
        for t in threads:
            start = addresses[t]
            if start is not None:
                for word in range(start // WORD, (start + width - 1) // WORD + 1):
                    banks.setdefault(word % BANKS, {}).setdefault(word, []).append(t)
        words.append(banks)
    ways = tuple(max((len(asked) for asked in banks.values()), default=0) for banks in words)
    return Access(width, phases, tuple(words), ways)


def warp_access(
    layout: AnyLayout, coords: Sequence[IntTuple], element_bytes: int = 2, width: int = 16
) -> Access:
    """The access in which thread t starts at `coords[t]` of a tensor in shared memory, `width`
    bytes a thread."""
    starts = [layout(*c) if isinstance(c, tuple) else layout(c) for c in coords]
    return shared_access([s * element_bytes for s in starts], width)
