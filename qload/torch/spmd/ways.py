"""How one tensor lies over ranks: whole on each, or in even runs along one of its axes."""

from collections.abc import Sequence
from dataclasses import dataclass

from qload.declare import ParameterSpec
from qload.errors import LayoutError
from qload.geometry import Geometry, Shard
from qload.layout import Cut, Dim
from qload.sharding import divided_dims


@dataclass(frozen=True, slots=True)
class Way:
    """Along `dim` in `shares` even runs, each of which as many consecutive ranks have; None: whole on every rank."""

    dim: int | None = None
    shares: int = 1


WHOLE = Way()


def find_way(spec: ParameterSpec, geometry: Geometry, shards: Sequence[Shard]) -> Way:
    """How the tensor lies over ranks with those shards, of a layer whose parts are divided alike.

    Raises LayoutError where it does not lie in even runs along one axis.
    """
    divided = divided_dims(shards)
    axes = [number for number, axis in enumerate(spec.layout.axes) if axis.dim in divided and not axis.is_uncut]
    if not axes:
        return WHOLE
    if len(axes) > 1:
        raise LayoutError("a tensor cannot be divided along two of its axes at once", expected="one axis")
    dim = spec.layout.axes[axes[0]].dim
    lengths = {Dim.OUT: geometry.parts[0].size, Dim.IN: geometry.in_features, Dim.EXPERT: geometry.experts or 1}
    cuts = {
        Dim.OUT: [shard.out[0] for shard in shards],
        Dim.IN: [shard.in_ for shard in shards],
        Dim.EXPERT: [shard.experts for shard in shards],
    }
    if dim is None or dim not in cuts:
        return WHOLE
    return Way(axes[0], _count_shares(cuts[dim], lengths[dim]))


def _count_shares(cuts: Sequence[Cut], length: int) -> int:
    """In how many even runs ranks have them, in their order."""
    share = cuts[0].padded_size
    for shares in (len(cuts), len(set(cuts))):
        replicas, rest = divmod(len(cuts), shares)
        if not rest and all(cut == _run(rank // replicas, share, length) for rank, cut in enumerate(cuts)):
            return shares
    raise LayoutError("ranks do not have even runs in their order", found=f"{cuts[0].size} and {cuts[-1].size}")


def _run(number: int, share: int, length: int) -> Cut:
    start, stop = (min(each * share, length) for each in (number, number + 1))
    return Cut(start, stop, share - (stop - start))
