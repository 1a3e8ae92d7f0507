"""Cuts a whole layer for one rank, or says which tensor-parallel sizes would fit."""

from collections.abc import Sequence

from qload.declare import ParameterSpec
from qload.errors import LayoutError, ShardError
from qload.geometry import MAX_SIZE, Geometry, Shard, Sharding, check_rank
from qload.layout import Dim, Place


def cut_layer(
    geometry: Geometry, sharding: Sharding, specs: Sequence[ParameterSpec], name: str, rank: int, size: int
) -> Shard:
    """The shard of one rank, every tensor of which can be cut.

    Raises ShardError, with the layer, the tensor, the unit that is split and the sizes that fit, where it cannot;
    LayoutError for a rank that `size` does not have.
    """
    check_rank(rank, size)
    tensor = ""
    try:
        shard = sharding(geometry, rank, size)
        for spec in specs:
            tensor = f".{spec.name}"
            check_cuts(geometry, shard, spec)
    except LayoutError as error:
        raise ShardError(
            error.what,
            where=name + tensor,
            unit=error.unit,
            sizes=fitting_sizes(geometry, sharding, specs),
            expected=error.expected,
            found=error.found,
        ) from error
    return shard


def fitting_sizes(geometry: Geometry, sharding: Sharding, specs: Sequence[ParameterSpec]) -> list[int]:
    """The sizes up to MAX_SIZE at which every rank's share of every tensor fits."""
    return [size for size in range(1, MAX_SIZE + 1) if _fits(geometry, sharding, specs, size)]


def check_cuts(geometry: Geometry, shard: Shard, spec: ParameterSpec) -> None:
    """Raises LayoutError where the shard splits a unit of the tensor."""
    for part in range(len(geometry.parts)):
        cuts = {**shard.cuts(part), Dim.EXPERT: shard.experts}
        spec.layout.region(geometry.extents, Place({Dim.OUT: part, Dim.PART: part}, cuts))


def _fits(geometry: Geometry, sharding: Sharding, specs: Sequence[ParameterSpec], size: int) -> bool:
    try:
        for rank in range(size):
            shard = sharding(geometry, rank, size)
            for spec in specs:
                check_cuts(geometry, shard, spec)
    except LayoutError:
        return False
    return True
