"""The layout algebra: its laws on random layouts, known values, and agreement with pycute."""

import importlib.util
import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kda_lab.hopper.layouts import (
    Layout,
    Swizzle,
    Swizzled,
    blocked_product,
    coalesce,
    column_major,
    complement,
    composition,
    concat,
    flatten,
    logical_divide,
    logical_product,
    raked_product,
    row_major,
    shared_access,
    smem_atom,
    table,
    tma_swizzle,
    warp_access,
    zipped_divide,
)

settings.register_profile("laws", deadline=None, max_examples=60)
settings.load_profile("laws")

extents = st.integers(1, 6)
strides = st.integers(0, 12)


@st.composite
def layouts(draw):
    shape = draw(st.recursive(extents, lambda x: st.lists(x, min_size=2, max_size=3).map(tuple)))
    assume(len(flatten(shape)) <= 5)
    stride = nest(shape, iter(draw(st.lists(strides, min_size=5, max_size=5))))
    return Layout(shape, stride)


@st.composite
def packed(draw):
    """A layout that hits every offset below its size once: extents permuted in memory."""
    shape = tuple(draw(st.lists(st.sampled_from((1, 2, 3, 4)), min_size=1, max_size=4)))
    order = draw(st.permutations(range(len(shape))))
    stride, reached = [0] * len(shape), 1
    for i in order:
        stride[i], reached = reached, reached * shape[i]
    return Layout(shape, tuple(stride))


def nest(shape, values):
    if isinstance(shape, tuple):
        return tuple(nest(s, values) for s in shape)
    return next(values)


def offsets(layout):
    return [layout(i) for i in range(layout.size)]


@given(layouts())
def test_parse_reads_what_print_writes(layout):
    assert Layout.parse(str(layout)) == layout


@given(layouts())
def test_coalesce_keeps_the_function_and_has_no_mergeable_modes(layout):
    small = coalesce(layout)
    assert offsets(small) == offsets(layout)
    modes = small.flat()
    assert all(s * d != e for (s, d), (_, e) in itertools.pairwise(modes))


@given(packed(), packed())
def test_composition_is_the_composition_of_functions(a, b):
    assume(b.cosize <= a.size)
    try:
        c = composition(a, b)
    except ValueError:
        return
    assert offsets(c) == [a(b(i)) for i in range(b.size)]


def test_composition_is_not_always_refused():
    """The law above says nothing when every composition is refused: most must succeed."""
    done = 0
    for s in (1, 2, 4):
        for d in (1, 2, 3, 4, 6, 12):
            for n in (1, 2, 3, 4):
                try:
                    composition(Layout((4, 6, s)), Layout(n, d))
                    done += 1
                except ValueError:
                    pass
    assert done > 40


@given(packed(), st.integers(1, 4))
def test_complement_fills_the_gaps_exactly(layout, times):
    spread = Layout(layout.shape, tuple(2 * d for d in layout.stride))
    size = spread.size * 2 * times
    rest = complement(spread, size)
    both = concat(spread, rest)
    assert sorted(offsets(both)) == list(range(size))


@given(packed(), packed())
def test_logical_product_repeats_the_block(a, b):
    both = logical_product(a, b)
    assert offsets(both[0]) == offsets(a)
    assert sorted(offsets(both)) == list(range(a.size * b.size))


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]))
def test_divide_reaches_every_element_once(tile, step):
    layout = row_major(8, 4)
    parts = logical_divide(layout, Layout(tile, step))
    assert parts[0].size == tile
    assert sorted(offsets(parts)) == sorted(offsets(layout))


def test_known_values():
    """Worked by hand, or in CUTLASS's own pages on the layout algebra."""
    a = Layout.parse("((2,2),(2,2)):((1,4),(2,8))")
    assert [a(1, 0), a(2, 0), a(0, 1), a((1, 1), (0, 1))] == [1, 4, 2, 13]
    assert (
        str(composition(Layout((6, 2), (8, 2)), Layout((4, 3), (3, 1)))) == "((2,2),3):((24,2),8)"
    )
    assert str(composition(Layout((4, 2), (2, 1)), Layout(4, 2))) == "(2,2):(4,1)"
    assert str(complement(Layout(4, 2), 24)) == "(2,3):(1,8)"
    assert str(complement(Layout((2, 4), (1, 6)), 24)) == "3:2"
    divided = logical_divide(Layout((4, 2, 3), (2, 1, 8)), Layout(4, 2))
    assert str(divided) == "((2,2),(2,3)):((4,1),(2,8))"
    assert (
        str(logical_product(Layout((2, 2), (4, 1)), Layout(6, 1))) == "((2,2),(2,3)):((4,1),(2,8))"
    )
    assert str(blocked_product(Layout((2, 5), (5, 1)), Layout((3, 4), (1, 3)))) == (
        "((2,3),(5,4)):((5,10),(1,30))"
    )
    assert str(raked_product(Layout((2, 5), (5, 1)), Layout((3, 4), (1, 3)))) == (
        "((3,2),(4,5)):((10,5),(30,1))"
    )


def test_zipped_divide_gathers_the_tile():
    parts = zipped_divide(row_major(8, 16), (Layout(4), Layout(8)))
    assert (parts[0].size, parts[1].size) == (32, 4)
    assert table(concat(*parts[0].modes())).tolist() == [
        [16 * i + j for j in range(8)] for i in range(4)
    ]
    assert [parts[1](i) for i in range(4)] == [0, 64, 8, 72]


def test_a_coordinate_counts_leftmost_fastest():
    a = row_major(2, 3)
    assert [a(i) for i in range(6)] == [a(i % 2, i // 2) for i in range(6)] == [0, 3, 1, 4, 2, 5]
    assert table(column_major(2, 3)).tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Layout((0, 2)), "shape"),
        (lambda: Layout((2, 2), (1,)), "stride"),
        (lambda: Layout((2, 2), (-1, 2)), "stride"),
        (lambda: Layout.parse("(2,2):("), "layout"),
        (lambda: composition(Layout((4, 6), (1, 8)), Layout(3, 3)), "stride"),
        (lambda: composition(Layout((4, 6), (1, 8)), Layout(6, 1)), "extent"),
        (lambda: complement(Layout((2, 2), (1, 1)), 4), "layout"),
        (lambda: Swizzle(3, 3, 2), "shift"),
        (lambda: tma_swizzle(48), "row_bytes"),
        (lambda: shared_access([0], 3), "width"),
        (lambda: shared_access([4], 8), "addresses"),
        (lambda: shared_access([0] * 33), "addresses"),
        (lambda: table(Layout((2, 2, 2))), "layout"),
    ],
)
def test_bad_input_is_named(make, word):
    with pytest.raises(ValueError, match=rf"\b{word}\b"):
        make()


def test_a_coordinate_outside_the_shape_is_refused():
    with pytest.raises(IndexError, match="coordinate 4"):
        row_major(4, 2)(4, 0)
    with pytest.raises(IndexError, match="coordinate"):
        row_major(4, 2)(0, 0, 0)


# ---- swizzles and banks ----


@given(st.integers(0, 3), st.integers(0, 4), st.integers(3, 4))
def test_a_swizzle_is_its_own_inverse(bits, base, shift):
    swizzle = Swizzle(bits, base, shift)
    once = [swizzle(x) for x in range(2048)]
    assert sorted(once) == list(range(2048))
    assert [swizzle(x) for x in once] == list(range(2048))


@pytest.mark.parametrize("row_bytes", [32, 64, 128])
def test_tma_swizzle_permutes_sixteen_byte_pieces_of_each_row(row_bytes):
    swizzle = tma_swizzle(row_bytes)
    for x in range(0, 2048, 16):
        y = swizzle(x)
        assert y // row_bytes == x // row_bytes
        assert [swizzle(x + i) for i in range(16)] == [y + i for i in range(16)]
    # in elements of two bytes: the same permutation
    halves = tma_swizzle(row_bytes, 2)
    assert [2 * halves(i) for i in range(1024)] == [swizzle(2 * i) for i in range(1024)]


def test_a_column_of_sixteen_byte_pieces():
    """Eight rows of 128 bytes: all in one bank group, until the swizzle spreads them."""
    rows = [(r, 0) for r in range(8)]
    plain, swizzled = warp_access(row_major(8, 64), rows), warp_access(smem_atom(128), rows)
    assert (plain.wavefronts, plain.conflicts) == (8, 7)
    assert (swizzled.wavefronts, swizzled.conflicts) == (1, 0)
    assert warp_access(smem_atom(64), rows).conflicts == 0  # rows of 64 bytes
    assert "bank 0 is asked for 8 different words" in str(plain)


@pytest.mark.parametrize(("width", "phases"), [(4, 1), (8, 2), (16, 4)])
def test_contiguous_accesses_take_one_wavefront_a_phase(width, phases):
    access = shared_access([width * t for t in range(32)], width)
    assert len(access.phases) == access.wavefronts == phases
    assert access.conflicts == 0


def test_phases_decide_what_conflicts():
    """Threads 0 and 16 meet in one bank: together at 4 bytes, in different phases at 8."""
    assert shared_access([128 * (t // 16) for t in range(32)], 4).ways == (2,)
    assert shared_access([128 * (t // 16) for t in range(32)], 8).ways == (1, 1)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8, 16, 31, 32, 33])
def test_strided_words_conflict_by_the_common_divisor(stride):
    assert shared_access([4 * stride * t for t in range(32)]).ways == (np.gcd(stride, 32),)


def test_the_same_word_is_a_broadcast_and_absent_threads_count_nothing():
    assert shared_access([64] * 32).conflicts == 0
    assert shared_access([2 * t for t in range(32)], 2).wavefronts == 1
    assert shared_access([None] * 32).wavefronts == 0
    assert shared_access([None, 0, 128], 4).ways == (2,)


# ---- against pycute ----

pycute = None
if importlib.util.find_spec("pycute"):
    import pycute
needs_pycute = pytest.mark.skipif(pycute is None, reason="nvidia-cutlass is not installed")


def theirs(layout):
    return pycute.Layout(layout.shape, layout.stride)


@needs_pycute
@given(layouts())
def test_pycute_agrees_on_offsets_and_coalesce(layout):
    other = theirs(layout)
    assert [other(i) for i in range(layout.size)] == offsets(layout)
    assert str(pycute.coalesce(other)).replace(" ", "") == str(coalesce(layout))


@needs_pycute
@settings(max_examples=200)
@given(packed(), packed())
def test_pycute_agrees_on_composition_divide_and_product(a, b):
    for ours, other in (
        (composition, pycute.composition),
        (logical_divide, pycute.logical_divide),
        (logical_product, pycute.logical_product),
    ):
        try:
            mine = ours(a, b)
        except ValueError:
            continue
        other_layout = other(theirs(a), theirs(b))
        assert [other_layout(i) for i in range(mine.size)] == offsets(mine)


@needs_pycute
@given(packed(), st.integers(1, 64))
def test_pycute_agrees_on_complement(layout, size):
    spread = Layout(layout.shape, tuple(3 * d for d in layout.stride))
    mine = complement(spread, size)
    other = pycute.complement(theirs(spread), size)
    assert [other(i) for i in range(other.size())] == offsets(mine)


@needs_pycute
@given(st.integers(0, 3), st.integers(0, 4), st.integers(3, 4), st.integers(0, 4095))
def test_pycute_agrees_on_swizzles(bits, base, shift, x):
    assert pycute.Swizzle(bits, base, shift)(x) == Swizzle(bits, base, shift)(x)


def test_swizzle_composes_with_a_layout():
    made = composition(Swizzle(3, 3, 3), row_major(8, 64))
    assert isinstance(made, Swizzled)
    assert table(made).tolist() == table(smem_atom(128)).tolist()
    part = composition(made, Layout((8, 8), (1, 8)))
    assert part(3, 1) == made(3, 1)
