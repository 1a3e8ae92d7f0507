"""Cuts a whole layer for one rank, or says which tensor-parallel sizes would fit."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from qload.declare import ParameterSpec
from qload.errors import LayoutError, ShardError
from qload.geometry import MAX_SIZE, Geometry, Shard, Sharding, check_rank
from qload.layout import Cut, Dim, Extents, Interval, Layout, Place, Region


@dataclass(frozen=True, slots=True)
class Share:
    """What follows from one rank's shard of a layer: the `shards` of all ranks, and the layer as the rank holds it.

    `divided` are the dimensions in which shards differ, and `shapes` those of the rank's tensors by name.
    """

    shard: Shard
    shards: tuple[Shard, ...]
    divided: frozenset[Dim]
    local: Geometry
    shapes: Mapping[str, tuple[int, ...]]


def find_share(
    geometry: Geometry, sharding: Sharding, specs: Sequence[ParameterSpec], name: str, rank: int, size: int
) -> Share:
    """The share of one rank. Raises as `cut_layer` does."""
    shard = cut_layer(geometry, sharding, specs, name, rank, size)
    shards = tuple(sharding(geometry, each, size) for each in range(size))
    local = shard.local(geometry)
    extents, held = geometry.extents, local.extents
    shapes = {spec.name: spec.layout.local_shape(extents, held) for spec in specs}
    return Share(shard, shards, divided_dims(shards), local, shapes)


def cut_layer(
    geometry: Geometry,
    sharding: Sharding,
    specs: Sequence[ParameterSpec],
    name: str,
    rank: int,
    size: int,
    *,
    find_sizes: Callable[[], Sequence[int]] | None = None,
) -> Shard:
    """The shard of one rank, every tensor of which can be cut.

    Raises ShardError, with the layer, the tensor, the unit that is split and the sizes that fit, where it cannot: those
    that `find_sizes` gives, or else that fit this way to divide. LayoutError for a rank that `size` does not have.
    """
    check_rank(rank, size)
    tensor = ""
    try:
        shard = sharding(geometry, rank, size)
        for spec in specs:
            tensor = f".{spec.name}"
            check_cuts(geometry.extents, shard, spec)
    except LayoutError as error:
        raise ShardError(
            error.what,
            where=name + tensor,
            unit=error.unit,
            sizes=find_sizes() if find_sizes else fitting_sizes(geometry, sharding, specs),
            expected=error.expected,
            found=error.found,
        ) from error
    return shard


def fitting_sizes(geometry: Geometry, sharding: Sharding, specs: Sequence[ParameterSpec]) -> list[int]:
    """The sizes up to MAX_SIZE at which every rank's share of every tensor fits."""
    return [size for size in range(1, MAX_SIZE + 1) if fits(geometry, sharding, specs, size)]


def check_cuts(extents: Extents, shard: Shard, spec: ParameterSpec) -> None:
    """Raises LayoutError where the shard of a layer with those extents splits a unit of the tensor."""
    for part in range(len(extents[Dim.OUT].sizes)):
        cuts = {**shard.cuts(part), Dim.EXPERT: shard.experts}
        spec.layout.region(extents, Place({Dim.OUT: part, Dim.PART: part}, cuts))


def fits(geometry: Geometry, sharding: Sharding, specs: Sequence[ParameterSpec], size: int) -> bool:
    """Whether every rank's share of every tensor can be cut.

    Shares are as large for each rank, padding included: the first rank's and the last one's tell for all.
    """
    extents = geometry.extents
    try:
        for rank in {0, size - 1}:
            shard = sharding(geometry, rank, size)
            for spec in specs:
                check_cuts(extents, shard, spec)
    except LayoutError:
        return False
    return True


def match_share(
    layout: Layout,
    geometry: Geometry,
    shard: Shard,
    *,
    held: Geometry | None = None,
    parts: Sequence[int] | None = None,
) -> Iterator[tuple[Region, Region]]:
    """Where each part of a rank's share lies in a layer's whole tensor, and where in the rank's, padding left out.

    `held` is the layer as the whole tensor has it, where that has padding. `parts` are those that the rank's tensor
    has, if not all. Raises LayoutError where the shard splits a unit.
    """
    chosen = tuple(range(len(geometry.parts))) if parts is None else tuple(parts)
    whole, local = (choose_parts(each, chosen).extents for each in (geometry, shard.local(geometry)))
    origin = geometry.extents if held is None else held.extents
    for number, part in enumerate(chosen):
        owned = shard.out[part]
        source = Place({Dim.OUT: part, Dim.PART: part}, {**shard.cuts(part), Dim.EXPERT: shard.experts})
        goal = Place({Dim.OUT: number, Dim.PART: number}, {Dim.OUT: Cut(0, owned.size, owned.padding)})
        yield layout.region(origin, source, whole=geometry.extents), layout.region(local, goal, whole=whole)


def choose_parts(geometry: Geometry, parts: Sequence[int]) -> Geometry:
    """The layer with those of its parts alone."""
    return replace(geometry, parts=tuple(geometry.parts[part] for part in parts))


def divided_dims(shards: Sequence[Shard]) -> frozenset[Dim]:
    """The dimensions of which not all ranks have the same share; `shards` are those of all."""
    counts = {
        Dim.OUT: len({shard.out for shard in shards}),
        Dim.IN: len({shard.in_ for shard in shards}),
        Dim.EXPERT: len({shard.experts for shard in shards}),
    }
    return frozenset(dim for dim, count in counts.items() if count > 1)


def order_gathered(shards: Sequence[Shard]) -> tuple[Interval, ...]:
    """Where a layer's output features lie, in their order, among all ranks' shares one after another.

    Padding is left out, and all but the first of heads that several ranks have. `shards` are all ranks', in order.
    Parts that alternate row by row are not for this: their shares lie in order already.
    """
    runs: list[Interval] = []
    width = sum(cut.padded_size for cut in shards[0].out)
    for part in range(len(shards[0].out)):
        cuts = {shard.out[part].start: (shard.rank, shard.out[part]) for shard in reversed(shards)}
        for _, (rank, cut) in sorted(cuts.items()):
            start = rank * width + sum(before.padded_size for before in shards[rank].out[:part])
            _extend(runs, Interval(start, start + cut.size))
    return tuple(runs)


def _extend(runs: list[Interval], run: Interval) -> None:
    """Add a run, as one with the last where it goes on from there."""
    if runs and run.size and runs[-1].stop == run.start:
        runs[-1] = Interval(runs[-1].start, run.stop)
    elif run.size:
        runs.append(run)
