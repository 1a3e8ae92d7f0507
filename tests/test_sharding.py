"""Cutting a layer for one rank: what stays together is named by the axis that is split, with the sizes that fit."""

import pytest

from qload.declare import block_scale
from qload.errors import LayoutError, ShardError
from qload.geometry import MAX_SIZE, Sharding, column, row, single
from qload.layout import in_, out
from qload.sharding import cut_layer

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


@pytest.mark.parametrize(("rank", "size"), [(0, 0), (2, 2), (-1, 2)])
def test_a_rank_that_is_not_there_is_no_matter_of_sizes(rank: int, size: int) -> None:
    with pytest.raises(LayoutError, match="there is no") as caught:
        cut_layer(single(64, 256), column, [SCALE], "layer", rank, size)
    assert not isinstance(caught.value, ShardError)
