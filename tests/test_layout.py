"""The axis formula: packing, groups, blocks, parts, and the cuts that do not fit."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qload.errors import LayoutError
from qload.layout import (
    Axis,
    Cut,
    Dim,
    Extent,
    Interval,
    Layout,
    Place,
    expert,
    fixed,
    in_,
    measured,
    out,
    packing,
    part,
    volume,
)

UNITS = st.sampled_from([(1, 1), (8, 1), (16, 1), (4, 1), (2, 1), (32, 3), (32, 5), (128, 1), (32, 18)])


@pytest.mark.parametrize(
    ("bits", "word", "expected"),
    [(4, 32, (8, 1)), (8, 32, (4, 1)), (2, 32, (16, 1)), (3, 32, (32, 3)), (4, 8, (2, 1)), (6, 32, (16, 3))],
)
def test_packing_is_a_fraction_in_lowest_terms(bits: int, word: int, expected: tuple[int, int]) -> None:
    assert packing(bits, word) == expected


def test_a_fraction_of_a_word_packs_exactly() -> None:
    assert Layout((in_(8, 3), out())).shape(extents(8192, 4096)) == (1536, 8192)


@given(UNITS, st.integers(0, 5000))
def test_entries_are_enough_and_no_more(unit: tuple[int, int], count: int) -> None:
    axis = Axis(Dim.IN, *unit)
    entries = axis.entries(count)
    assert entries * axis.logical >= count * axis.stored
    assert (entries - 1) * axis.logical < count * axis.stored or entries == 0


@given(UNITS, st.integers(0, 5000))
def test_a_padded_axis_stores_whole_units(unit: tuple[int, int], count: int) -> None:
    axis = Axis(Dim.IN, *unit, padded=True)
    entries = axis.entries(count)
    assert entries % axis.stored == 0
    assert entries // axis.stored * axis.logical in range(count, count + axis.logical)
    assert [number for number in range(count + axis.logical) if axis.entries(number) == entries] == list(
        axis.counts(entries)
    )[: count + axis.logical]
    assert axis.stored == 1 or not axis.counts(entries + 1)


def test_a_rank_takes_the_padding_of_its_last_unit() -> None:
    axis = in_(32, 18, padded=True)
    extent = Extent((100,))
    assert axis.run(extent, 0, Cut(0, 64)) == Interval(0, 36)
    assert axis.run(extent, 0, Cut(64, 100)) == Interval(36, 72)
    with pytest.raises(LayoutError):
        axis.run(extent, 0, Cut(0, 50))


@given(UNITS, st.integers(1, 5000))
def test_counts_is_the_inverse_of_entries(unit: tuple[int, int], count: int) -> None:
    axis = Axis(Dim.IN, *unit)
    assert count in axis.counts(axis.entries(count))
    assert all(axis.entries(each) == axis.entries(count) for each in axis.counts(axis.entries(count)))


def test_parts_round_one_by_one() -> None:
    layout = Layout((out(128), in_(128)))
    assert layout.shape(extents(0, 512, parts=(320, 320))) == (6, 4)
    second = layout.region(extents(0, 512, parts=(320, 320)), Place({Dim.OUT: 1}))
    assert second == (Interval(3, 6), Interval(0, 4))


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (Layout((out(), in_())), (256, 512)),
        (Layout((in_(8), out())), (64, 256)),
        (Layout((in_(128), out(8))), (4, 32)),
        (Layout((out(), in_(32, 3))), (256, 48)),
        (Layout((out(128), in_(128))), (2, 4)),
        (Layout((part(),)), (1,)),
        (Layout((out(), fixed(1))), (256, 1)),
        (Layout((expert(), out(), in_(2))), (4, 256, 256)),
        (Layout((out(), in_(32, 18))), (256, 288)),
    ],
)
def test_shapes_of_the_formats(layout: Layout, expected: tuple[int, ...]) -> None:
    assert layout.shape(extents(256, 512, experts=4)) == expected


@given(UNITS, st.data())
def test_a_cut_at_units_is_exact(unit: tuple[int, int], data: st.DataObject) -> None:
    axis = Axis(Dim.IN, *unit)
    length = data.draw(st.integers(1, 2000))
    first = data.draw(st.integers(0, (length - 1) // axis.logical)) * axis.logical
    head = axis.run(Extent((length,)), 0, Cut(0, first))
    tail = axis.run(Extent((length,)), 0, Cut(first, length))
    assert (head.start, head.stop, tail.stop) == (0, tail.start, axis.entries(length))


@given(UNITS, st.data())
def test_a_cut_inside_a_unit_raises(unit: tuple[int, int], data: st.DataObject) -> None:
    axis = Axis(Dim.IN, *unit)
    length = data.draw(st.integers(2, 2000))
    place = data.draw(st.integers(1, length - 1))
    if place % axis.logical == 0:
        assert axis.run(Extent((length,)), 0, Cut(0, place)).size == axis.entries(place)
    else:
        with pytest.raises(LayoutError, match=f"multiples of {axis.logical}"):
            axis.run(Extent((length,)), 0, Cut(0, place))
        with pytest.raises(LayoutError):
            axis.run(Extent((length,)), 0, Cut(place, length))


def test_a_packing_that_does_not_fit_raises() -> None:
    with pytest.raises(LayoutError, match="multiples of 8"):
        out(8).run(Extent((100,)), 0, Cut(0, 50))


def test_the_last_unit_may_be_short() -> None:
    axis = in_(128)
    assert axis.run(Extent((320,)), 0, Cut(256, 320)) == Interval(2, 3)


def test_a_whole_axis_is_not_cut() -> None:
    layout = Layout((in_(128, whole=True), out()))
    place = Place(cuts={Dim.IN: Cut(0, 64), Dim.OUT: Cut(0, 128)})
    assert layout.region(extents(256, 512), place) == (Interval(0, 4), Interval(0, 128))
    assert layout.local_shape(extents(256, 512), extents(128, 64)) == (4, 128)


def test_interleaved_parts_have_a_step() -> None:
    both = {Dim.OUT: Extent((4, 4), interleaved=True), Dim.IN: Extent((2,))}
    layout = Layout((out(), in_()))
    rows = [layout.region(both, Place({Dim.OUT: part}, {Dim.OUT: Cut(1, 3)}))[0] for part in (0, 1)]
    assert [list(range(8))[row.slice] for row in rows] == [[2, 4], [3, 5]]
    assert [row.size for row in rows] == [2, 2]


def test_interleaved_parts_cannot_be_packed_along_their_rows() -> None:
    with pytest.raises(LayoutError, match="interleaved"):
        out(8).run(Extent((16, 16), interleaved=True), 0, Cut(0, 8))


def test_padding_belongs_to_the_rank_alone() -> None:
    run = out(8).run(Extent((1001,)), 0, Cut(0, 1001, padding=23))
    assert run == Interval(0, 126)
    assert out(8).entries(Cut(0, 1001, padding=23).padded_size) == 128


def test_a_whole_axis_keeps_nothing_together() -> None:
    layout = Layout((out(16, whole=True), out(4), in_(128)))
    assert [layout.unit(dim) for dim in (Dim.OUT, Dim.IN, Dim.EXPERT)] == [4, 128, 1]


@pytest.mark.parametrize("cut", [Cut(0, 64), Cut(64, 128)])
def test_a_solid_axis_cannot_be_cut(cut: Cut) -> None:
    for axis in (in_(8, 1, solid=True), *Layout((in_(8), out())).solidify(Dim.IN).axes[:1]):
        assert axis.run(Extent((128,)), 0, Cut(0, 128)).size == 16
        with pytest.raises(LayoutError, match="split a unit") as caught:
            axis.run(Extent((128,)), 0, cut)
        assert caught.value.unit == 128


def test_only_the_axes_that_are_named_become_solid() -> None:
    layout = Layout((in_(8), out(4), part())).solidify(Dim.OUT)
    assert [axis.solid for axis in layout.axes] == [False, True, False]


def test_a_measured_axis_is_as_long_as_what_is_stored() -> None:
    layout = Layout((part(), measured()))
    assert layout.is_measured
    assert not Layout((part(), fixed(3))).is_measured
    sizes = extents(64, 32, parts=(32, 32))
    assert layout.shape(sizes) == (2, 0)
    assert layout.measure(17).shape(sizes) == (2, 17)
    assert layout.measure(17).local_shape(sizes, extents(16, 32, parts=(8, 8))) == (2, 17)
    assert layout.measure(17).region(sizes, Place({Dim.PART: 1}, {Dim.OUT: Cut(0, 8)})) == (
        Interval(1, 2),
        Interval(0, 17),
    )
    assert Layout((out(), fixed(3))).measure(17).shape(sizes) == (64, 3)


def test_volume_counts_steps() -> None:
    assert volume((Interval(0, 7, 2), Interval(3, 5))) == 8


def extents(rows: int, columns: int, *, parts: tuple[int, ...] | None = None, experts: int = 1) -> dict[Dim, Extent]:
    parts = parts or (rows,)
    return {
        Dim.OUT: Extent(parts),
        Dim.IN: Extent((columns,)),
        Dim.EXPERT: Extent((experts,)),
        Dim.PART: Extent((1,) * len(parts)),
    }


@pytest.mark.parametrize(("logical", "stored"), [(0, 1), (1, 0), (-8, 1), (8, -1)])
def test_a_unit_is_not_empty(logical: int, stored: int) -> None:
    with pytest.raises(LayoutError, match="a unit of the axis in is empty"):
        in_(logical, stored)


def test_a_solid_axis_is_not_cut_and_holds_no_padding() -> None:
    """However many elements a unit has: it is the dimension that is one."""
    layout = Layout((out(2, solid=True), in_()))
    whole, padded = extents(9, 4, parts=(6, 3)), extents(70, 4, parts=(6, 64))
    assert layout.shape(whole) == (5, 4)
    assert layout.local_shape(whole, padded) == (5, 4)
    second = Place({Dim.OUT: 1}, {Dim.OUT: Cut(0, 3, 61)})
    assert layout.region(padded, second, whole=whole)[0] == Interval(3, 5)
    for cut in (Cut(0, 2), Cut(2, 6), Cut(0, 0)):
        with pytest.raises(LayoutError, match="split a unit of the axis out") as caught:
            layout.region(whole, Place({}, {Dim.OUT: cut}))
        assert (caught.value.unit, caught.value.expected) == (6, "multiples of 6")
    assert layout.is_solid(Dim.OUT)
    assert not layout.is_solid(Dim.IN)


def test_packing_is_exact() -> None:
    """Sizes, and where shares begin, alike; also where values straddle words."""
    thirds = packing(3, 8)
    assert thirds == (8, 3)
    assert Layout((out(*thirds), in_(*thirds))).pack((4096, 8192)) == (1536, 3072)
    assert (out(*packing(4)).pack(4096), out(*packing(4)).pack(0)) == (512, 0)
    assert Layout((in_(32, 18), fixed(1))).pack((64, 1)) == (36, 1)


def test_packing_into_tiles_is_exact() -> None:
    """As repacked weights have it that move 16 rows into their columns."""
    tiles = Axis(Dim.OUT, *packing(4, tile=16))
    assert (tiles.pack(4096), tiles.pack(8)) == (8192, 16)
    with pytest.raises(LayoutError):
        tiles.run(Extent((64,)), 0, Cut(4, 12))
    assert tiles.run(Extent((64,)), 0, Cut(8, 24)) == Interval(16, 48)


def test_what_does_not_make_whole_units_is_not_packed() -> None:
    with pytest.raises(LayoutError, match=r"^100 elements do not make whole units.*multiples of 8") as error:
        Layout((in_(8), in_(8))).pack((100, 50))
    assert error.value.unit == 8
    for count in (1, 4, 9):
        with pytest.raises(LayoutError):
            out(*packing(3, 8)).pack(count)
        with pytest.raises(LayoutError):
            out(*packing(4, tile=16)).pack(count)
    with pytest.raises(LayoutError, match="a size is needed for each axis"):
        Layout((in_(8), in_(8))).pack((8,))
    for wrong in ((0, 32, 1), (4, 0, 1), (4, 32, 0)):
        with pytest.raises(LayoutError, match="cannot be packed so"):
            packing(*wrong)


@given(UNITS, st.integers(0, 10**6))
def test_packing_is_the_fraction_or_is_refused(unit: tuple[int, int], count: int) -> None:
    axis = Axis(Dim.IN, *unit)
    if count % axis.logical == 0:
        assert axis.pack(count) == Fraction(*unit[::-1]) * count == axis.entries(count)
    else:
        with pytest.raises(LayoutError):
            axis.pack(count)


def test_axes_are_permuted() -> None:
    layout = Layout((out(), in_(8), fixed(3)))
    assert layout.permute(2, 0, 1).axes == layout.permute(-1, 0, -2).axes == (fixed(3), out(), in_(8))
    assert layout.permute(2, 0, 1).permute(1, 2, 0) == layout
    assert layout.permute(1, 0, 2).unit(Dim.IN) == 8
    for wrong in ((0, 1), (0, 0, 1), (0, 1, 3), (-4, 1, 2)):
        with pytest.raises(LayoutError, match="each of 3 axes once"):
            layout.permute(*wrong)
