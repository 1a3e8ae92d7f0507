"""A vocabulary's tokens on each rank: base rows, padding, added rows, padding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qload.errors import LayoutError, ShardError
from qload.geometry import (
    Geometry,
    IndexTable,
    Kind,
    Shard,
    index_tokens,
    make_vocabulary,
    vocabulary,
    vocabulary_columns,
)
from qload.layout import Cut
from qload.sharding import order_gathered


def make(rows: int, added: int = 0) -> Geometry:
    return make_vocabulary(rows, 8, added=added, kind=Kind.EMBEDDING, dtype="F32", bias=False)


def cut(geometry: Geometry, size: int, multiple: int = 64) -> list[Shard]:
    return [vocabulary(multiple)(geometry, rank, size) for rank in range(size)]


def index(rows: int, size: int, multiple: int = 64, added: int = 0) -> list[IndexTable]:
    geometry = make(rows, added)
    return [index_tokens(geometry, shard) for shard in cut(geometry, size, multiple)]


vocabularies = given(st.integers(1, 400), st.integers(0, 40), st.sampled_from([1, 2, 8, 64]), st.integers(1, 9))


def test_a_multiple_is_raised_where_ranks_do_not_divide_what_is_padded() -> None:
    by_three = index(129280, 3)
    assert [table.rows for table in by_three] == [43136] * 3
    assert [table.base for table in by_three] == [
        Cut(0, 43136),
        Cut(43136, 86272),
        Cut(86272, 129280, 128),
    ]
    assert [table.rows for table in index(129280, 4)] == [32320] * 4
    assert all(table.base.padding == 0 for table in index(129280, 4))


def test_a_rank_may_have_no_token() -> None:
    tables = index(65, 4)
    assert [(table.base.start, table.base.stop) for table in tables] == [(0, 32), (32, 64), (64, 65), (65, 65)]
    assert tables[3].rows == 32
    assert all(tables[3].row(token) is None for token in range(65))


def test_added_rows_lie_after_each_ranks_own() -> None:
    ranks = index(8, 2, multiple=1, added=4)
    none = None
    assert [ranks[0].row(token) for token in range(12)] == [0, 1, 2, 3, none, none, none, none, 4, 5, none, none]
    assert [ranks[1].row(token) for token in range(12)] == [none, none, none, none, 0, 1, 2, 3, none, none, 4, 5]


def test_base_and_added_rows_are_padded_apart() -> None:
    (whole,) = index(1000, 1, added=8)
    assert (whole.base, whole.added) == (Cut(0, 1000, 24), Cut(1000, 1008, 56))
    assert (whole.row(999), whole.row(1000), whole.rows) == (999, 1024, 1088)
    first, second = index(1000, 2, added=40)
    assert (first.added, second.added) == (Cut(1000, 1032), Cut(1032, 1040, 24))


@vocabularies
def test_every_token_is_on_one_rank_in_order(rows: int, added: int, multiple: int, size: int) -> None:
    tables = index(rows, size, multiple, added)
    assert len({table.rows for table in tables}) == 1
    for cuts, first, last in (
        ([table.base for table in tables], 0, rows),
        ([table.added for table in tables], rows, rows + added),
    ):
        assert [token for cut in cuts for token in range(cut.start, cut.stop)] == list(range(first, last))
        assert len({cut.padded_size for cut in cuts}) == 1
    places = [(rank, table.row(token)) for token in range(rows + added) for rank, table in enumerate(tables)]
    found = [place for place in places if place[1] is not None]
    assert len(found) == len(set(found)) == rows + added
    assert all(0 <= row < tables[0].rows for _, row in found if row is not None)


@vocabularies
def test_gathered_rows_in_token_order_are_the_whole(rows: int, added: int, multiple: int, size: int) -> None:
    geometry = make(rows, added)
    shards = cut(geometry, size, multiple)
    gathered: list[int | None] = []
    for shard in shards:
        table = index_tokens(geometry, shard)
        held = {table.row(token): token for token in range(rows + added)}
        gathered += [held.get(row) for row in range(table.rows)]
    runs = order_gathered(shards)
    assert [token for run in runs for token in gathered[run.slice]] == list(range(rows + added))


def test_one_rank_without_padding_has_nothing_to_put_in_order() -> None:
    (run,) = order_gathered(cut(make(128, 64), 1))
    assert (run.start, run.size) == (0, 192)


def test_columns_are_divided_evenly_or_not_at_all() -> None:
    geometry = make(100, 4)
    shards = [vocabulary_columns(64)(geometry, rank, 2) for rank in range(2)]
    assert [shard.in_ for shard in shards] == [Cut(0, 4), Cut(4, 8)]
    assert all(shard.out == (Cut(0, 100, 28), Cut(0, 4, 60)) for shard in shards)
    with pytest.raises(ShardError, match="8 input features cannot be divided by 3") as caught:
        vocabulary_columns(64)(geometry, 0, 3)
    assert caught.value.sizes == (1, 2, 4, 8)


@pytest.mark.parametrize(("rows", "features", "added"), [(0, 8, 0), (-1, 8, 0), (8, 0, 0), (8, -2, 0), (8, 8, -1)])
def test_sizes_that_no_vocabulary_has(rows: int, features: int, added: int) -> None:
    with pytest.raises(LayoutError, match="a vocabulary has too few"):
        make_vocabulary(rows, features, added=added, kind=Kind.EMBEDDING, dtype="F32", bias=False)
