"""Declarations: what a spec says of a stored tensor."""

import math
from dataclasses import replace

import pytest

from qload.declare import (
    ParameterSpec,
    View,
    bias,
    channel_scale,
    complete,
    document,
    group_scale,
    index,
    keep_together,
    metadata,
    packed,
    setting,
    striped,
    table,
    tensor_scale,
    weight,
)
from qload.geometry import Geometry, Part, single
from qload.layout import Axis, Cut, Dim, expert, in_, out, part


@pytest.mark.parametrize(
    ("spec", "stored", "declared", "expected"),
    [
        (packed("p", out(), in_(8), dtypes=("I32",)), (4, 2), (4, 2), True),
        (packed("p", out(), in_(8), dtypes=("I32",)), (8,), (4, 2), False),
        (packed("p", out(), in_(2), dtypes=("U8",), view=View.FLAT), (8, 1), (4, 2), True),
        (packed("p", out(), in_(2), dtypes=("U8",), view=View.FLAT), (9, 1), (4, 2), False),
        (packed("p", out(), in_(), dtypes=("U8", "F16"), view=View.BYTES), (8,), (4, 2), True),
        (packed("p", out(), in_(), dtypes=("U8", "F16"), view=View.BYTES), (4,), (4, 2), False),
        (metadata("m", dtypes=("U8",), view=View.ANY), (13,), (), True),
        (metadata("m", dtypes=("U8",)), (13,), (), False),
        (setting("n", 4), (), (1,), True),
        (tensor_scale("s"), (), (1,), True),
        (tensor_scale("s"), (1, 1), (1,), True),
        (tensor_scale("s"), (2,), (1,), False),
        (channel_scale("s", out()), (4, 1), (4,), True),
        (channel_scale("s", out(), in_(2)), (4, 2), (2, 4), False),
        (group_scale("s", out(), in_(2)), (2,), (1, 2), False),
        (document("d", 8, "text"), (8,), (1, 8), True),
        (document("d", 8, "text"), (4,), (1, 8), True),
        (document("d", 8, "text"), (9,), (1, 8), False),
        (document("d", 8, "text"), (0,), (1, 8), False),
        (document("d", 8, "text"), (1, 4), (1, 8), False),
        (document("d", 8, "text"), (4,), (2, 8), False),
        (table("t", 16), (16,), (1, 16), True),
        (table("t", 16), (8,), (1, 16), False),
    ],
)
def test_shapes_on_disk_and_views_of_them(
    spec: ParameterSpec, stored: tuple[int, ...], declared: tuple[int, ...], expected: bool
) -> None:
    assert spec.matches(stored, declared) is expected


@pytest.mark.parametrize(
    ("rows", "columns", "count", "group", "shape"),
    [
        ((8,), 64, 2, 32, (4, 64)),
        ((8, 4), 64, 2, 32, (6, 64)),
        ((8, 3), 64, 2, 32, (11, 32)),
        ((3,), 64, 2, 32, (3, 32)),
        ((3,), 64, 2, None, (2, 64)),
        ((128,), 256, 10, 64, (52, 64)),
        ((10,), 256, 10, 64, (1, 256)),
        ((4,), 24, 4, 16, (2, 16)),
    ],
)
def test_stripes_are_rows_where_rows_share_words_evenly(
    rows: tuple[int, ...], columns: int, count: int, group: int | None, shape: tuple[int, int]
) -> None:
    """Else they are as they are packed, groups one below another, and each part rounds by itself."""
    geometry = Geometry(columns, tuple(Part(str(number), size) for number, size in enumerate(rows)))
    words = packed("w", *striped(geometry, count, group), dtypes=("U8",))
    assert words.layout.shape(geometry.extents) == shape


def test_what_is_not_written_cannot_pass_for_data() -> None:
    assert math.isnan(tensor_scale("s").fill)
    assert math.isnan(weight("w", out(), in_()).fill)
    assert packed("p", out(), in_(8), dtypes=("I32",)).fill == 0
    assert math.isnan(table("t", 16).fill)
    assert document("d", 8, "text").fill == 0


def test_the_core_adds_the_bias_and_the_experts() -> None:
    specs = (weight("weight", out(), in_()),)
    assert complete(specs, single(4, 2)) == specs
    assert complete(specs, single(4, 2, bias=True)) == (*specs, bias())
    (stacked,) = complete(specs, single(4, 2, experts=3))
    assert stacked.layout.axes[0].dim is Dim.EXPERT
    assert stacked.layout.shape(single(4, 2, experts=3).extents) == (3, 4, 2)


@pytest.mark.parametrize(
    ("axis", "unit"), [(in_(), (24, 24)), (in_(8), (24, 3)), (in_(16, 2), (48, 6)), (in_(48), (48, 1))]
)
def test_what_a_scale_of_inputs_serves_stays_together_and_is_stored_alike(axis: Axis, unit: tuple[int, int]) -> None:
    spec = packed("p", out(8), axis, dtypes=("U8",))
    made = keep_together(spec, Dim.IN, 24)
    assert (made.layout.axes[1].logical, made.layout.axes[1].stored) == unit
    assert made.layout.axes[0] == spec.layout.axes[0]
    for columns in (1, 24, 40, 47, 96):
        extents = single(16, columns).extents
        assert made.layout.shape(extents) == spec.layout.shape(extents)
    assert made.layout.axes[1].admits(Cut(0, unit[0]), 96)
    assert not made.layout.axes[1].admits(Cut(0, 8), 96)


def test_a_method_may_declare_the_bias_and_the_experts_itself() -> None:
    own = replace(bias(), dtypes=("I8",)), weight("weight", out(), expert(), in_())
    assert complete(own, single(4, 2, bias=True)) == own
    (_, stacked) = complete(own, single(4, 2, bias=True, experts=3))
    assert stacked.layout.shape(single(4, 2, experts=3).extents) == (4, 3, 2)


def test_an_index_has_one_row_for_each_part() -> None:
    spec = index("g_idx", part(), in_(), bounds=(0, 4))
    geometry = Geometry(8, (Part("a", 2), Part("b", 2)))
    assert spec.layout.shape(geometry.extents) == (2, 8)
    assert spec.matches((8,), spec.layout.shape(single(2, 8).extents))
