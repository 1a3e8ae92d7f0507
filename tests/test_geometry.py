"""Shards: every rank's share, together the whole, or an error that names what would fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qload.errors import LayoutError, ShardError
from qload.geometry import (
    Geometry,
    Part,
    Sharding,
    column,
    expert_parallel,
    replicated,
    row,
    single,
    vocabulary,
    vocabulary_cut,
)
from qload.layout import Cut


@given(st.integers(1, 64), st.integers(1, 8))
def test_columns_divide_each_part(share: int, size: int) -> None:
    geometry = Geometry(16, (Part("a", share * size), Part("b", 2 * share * size)))
    shards = [column(geometry, rank, size) for rank in range(size)]
    assert [shard.out[0] for shard in shards] == [Cut(n * share, (n + 1) * share) for n in range(size)]
    assert all(shard.in_ == Cut(0, 16) for shard in shards)
    assert all(shard.local(geometry).out_features == 3 * share for shard in shards)


@given(st.integers(1, 64), st.integers(1, 8))
def test_rows_divide_the_inputs(share: int, size: int) -> None:
    geometry = single(16, share * size)
    assert [row(geometry, rank, size).in_.start for rank in range(size)] == [n * share for n in range(size)]


def test_what_cannot_be_divided_raises_with_the_sizes_that_can() -> None:
    with pytest.raises(ShardError, match="100 rows of the layer cannot be divided by 3") as caught:
        column(single(100, 16), 0, 3)
    assert caught.value.sizes[:6] == (1, 2, 4, 5, 10, 20)
    with pytest.raises(ShardError, match="18 input features"):
        row(single(16, 18), 0, 4)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [(0, 128)]), (2, [(0, 64), (64, 128)]), (4, [(0, 64), (0, 64), (64, 128), (64, 128)])],
)
def test_heads_are_replicated_where_there_are_fewer_than_ranks(size: int, expected: list[tuple[int, int]]) -> None:
    geometry = Geometry(16, (Part("k", 128, heads=2, replicable=True),))
    cuts = [column(geometry, rank, size).out[0] for rank in range(size)]
    assert [(cut.start, cut.stop) for cut in cuts] == expected


def test_heads_that_neither_divide_nor_repeat_raise() -> None:
    with pytest.raises(ShardError) as caught:
        column(Geometry(16, (Part("k", 192, heads=3, replicable=True),)), 0, 2)
    assert caught.value.sizes[:5] == (1, 3, 6, 9, 12)


def test_only_replicable_heads_are_replicated() -> None:
    with pytest.raises(ShardError) as caught:
        column(Geometry(16, (Part("q", 128, heads=2),)), 0, 4)
    assert caught.value.sizes == (1, 2)


def test_the_unit_that_stays_together_is_a_head() -> None:
    with pytest.raises(ShardError) as caught:
        column(Geometry(16, (Part("q", 192, heads=3),)), 0, 2)
    assert caught.value.unit == 64


@pytest.mark.parametrize(("size", "heads"), [(100, 3), (100, 0), (100, -2), (2, 4), (-1, None)])
def test_a_part_is_made_of_whole_heads(size: int, heads: int | None) -> None:
    with pytest.raises(LayoutError, match="q: a part is not made of whole heads"):
        Part("q", size, heads)


@pytest.mark.parametrize("sharding", [replicated, column, row, expert_parallel, vocabulary(64)])
@pytest.mark.parametrize(("rank", "size"), [(0, 0), (0, -1), (-1, 2), (2, 2), (5, 4)])
def test_a_rank_that_is_not_there_raises(sharding: Sharding, rank: int, size: int) -> None:
    with pytest.raises(LayoutError, match="there is no"):
        sharding(single(64, 64, experts=4), rank, size)


@pytest.mark.parametrize("multiple", [0, -64])
def test_a_vocabulary_is_padded_to_a_multiple_of_something(multiple: int) -> None:
    with pytest.raises(LayoutError, match="1 row or more"):
        vocabulary_cut(100, 0, 1, multiple)


def test_heads_stay_whole() -> None:
    geometry = Geometry(16, (Part("q", 512, heads=4),))
    assert column(geometry, 1, 2).out[0] == Cut(256, 512)


def test_experts_are_divided_whole() -> None:
    geometry = single(32, 16, experts=8)
    shard = expert_parallel(geometry, 1, 4)
    assert (shard.experts, shard.local(geometry).experts) == (Cut(2, 4), 2)
    with pytest.raises(LayoutError, match="without experts"):
        expert_parallel(single(32, 16), 0, 2)


@pytest.mark.parametrize(
    ("rows", "size", "expected"),
    [
        # (first row, end, padding) of each rank; the vocabulary is padded to a multiple of 64.
        (129280, 3, [(0, 43136, 0), (43136, 86272, 0), (86272, 129280, 128)]),
        (129280, 4, [(n * 32320, (n + 1) * 32320, 0) for n in range(4)]),
        (65, 4, [(0, 32, 0), (32, 64, 0), (64, 65, 31), (65, 65, 32)]),
        (1000, 1, [(0, 1000, 24)]),
    ],
)
def test_the_vocabulary_is_padded_and_divided(rows: int, size: int, expected: list[tuple[int, int, int]]) -> None:
    cuts = [vocabulary_cut(rows, rank, size) for rank in range(size)]
    assert [(cut.start, cut.stop, cut.padding) for cut in cuts] == expected


@given(st.integers(1, 5000), st.integers(1, 16), st.sampled_from([1, 8, 64]))
def test_the_vocabulary_is_covered_once_by_equal_shares(rows: int, size: int, multiple: int) -> None:
    cuts = [vocabulary_cut(rows, rank, size, multiple) for rank in range(size)]
    assert [row for cut in cuts for row in range(cut.start, cut.stop)] == list(range(rows))
    assert len({cut.padded_size for cut in cuts}) == 1


def test_replicated_owns_everything() -> None:
    geometry = Geometry(16, (Part("a", 8), Part("b", 24)), experts=2)
    assert replicated(geometry, 3, 4).local(geometry).extents == geometry.extents


def test_padding_counts_as_rows_of_the_rank() -> None:
    geometry = single(65, 16)
    assert vocabulary(64)(geometry, 3, 4).local(geometry).out_features == 32
