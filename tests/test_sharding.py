"""Cutting a layer for one rank: what stays together is named by the axis that is split, with the sizes that fit."""

from dataclasses import replace

import pytest

from qload.declare import block_scale, packed
from qload.errors import LayoutError, ShardError
from qload.geometry import MAX_SIZE, Geometry, Shard, Sharding, column, replicated, row, single, vocabulary
from qload.layout import Cut, in_, out
from qload.sharding import cut_layer, fitting_sizes

SCALE = block_scale("scale", out(16), in_(128))


@pytest.mark.parametrize(("sharding", "unit", "sizes"), [(column, 16, (1, 2, 4)), (row, 128, (1, 2))])
def test_the_unit_is_that_of_the_axis_that_is_split(sharding: Sharding, unit: int, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ShardError) as caught:
        cut_layer(single(64, 256), sharding, [SCALE], "layer", 0, 8)
    assert caught.value.where == "layer.scale"
    assert (caught.value.unit, caught.value.sizes) == (unit, sizes)


def test_the_sizes_that_fit_are_tried_up_to_the_greatest() -> None:
    with pytest.raises(ShardError) as caught:
        cut_layer(single(3 * 16 * MAX_SIZE, 256), column, [SCALE], "layer", 0, 5)
    assert caught.value.sizes[-1] == MAX_SIZE


def test_a_rank_that_owns_nothing_splits_nothing() -> None:
    """65 rows in shares of 32: the third rank has the last one, and the fourth has padding alone."""
    specs = [packed("values", out(8), in_(), dtypes=("I32",))]
    cuts = [cut_layer(single(65, 64), vocabulary(64), specs, "head", rank, 4).out[0] for rank in range(4)]
    assert [(cut.start, cut.stop, cut.padding) for cut in cuts[2:]] == [(64, 65, 31), (65, 65, 32)]


def test_a_size_fits_where_every_rank_does() -> None:
    """A sharding of somebody's own gives the first rank twice as much as each other one."""

    def uneven(geometry: Geometry, rank: int, size: int) -> Shard:
        share = geometry.out_features // (size + 1)
        cut = Cut(share * (rank + 1) if rank else 0, share * (rank + 2))
        return replace(replicated(geometry, rank, size), out=(cut,))

    # Of 3 ranks the first ends with a unit, and the second does not.
    assert fitting_sizes(single(96, 256), uneven, [block_scale("scale", out(48), in_(128))]) == [1]


@pytest.mark.parametrize(("rank", "size"), [(0, 0), (2, 2), (-1, 2)])
def test_a_rank_that_is_not_there_is_no_matter_of_sizes(rank: int, size: int) -> None:
    with pytest.raises(LayoutError, match="there is no") as caught:
        cut_layer(single(64, 256), column, [SCALE], "layer", rank, size)
    assert not isinstance(caught.value, ShardError)
