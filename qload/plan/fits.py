"""How the tensors of a source lie in the parameters of a layer, whatever module of the checkpoint the source is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import NamedTuple, TypeVar

from msgspec import structs

from qload.checkpoint import TensorEntry
from qload.declare import ParameterKind, ParameterSpec, View
from qload.dtypes import BITS
from qload.errors import LayoutError
from qload.geometry import Geometry, Shard
from qload.layout import Cut, Dim, Extent, Extents, Interval, Layout, Place, Region, expert, volume
from qload.plan.targets import Source

Each = TypeVar("Each")

_SINGLE = (ParameterKind.TENSOR_SCALE, ParameterKind.GLOBAL_SCALE)


class Move(NamedTuple):
    """From a region of a stored tensor to a region of a parameter."""

    source: Region
    destination: Region


def join_steps(moves: tuple[Move, ...]) -> tuple[Move, ...]:
    """One move in place of those whose rows lie between each other's, on both sides alike; else the same ones."""
    sources, destinations = (_join_regions([move[side] for move in moves]) for side in (0, 1))
    return moves if sources is None or destinations is None else (Move(sources, destinations),)


def _join_regions(regions: Sequence[Region]) -> Region | None:
    """The region that several make together which have the same steps along one axis, one after another."""
    axes = [set(intervals) for intervals in zip(*regions, strict=True)]
    stepped = [axis for axis, intervals in enumerate(axes) if len(intervals) > 1]
    if len(regions) < 2 or len(stepped) != 1:
        return None
    intervals = [region[stepped[0]] for region in regions]
    first = intervals[0]
    expected = [Interval(first.start + n, first.stop + n, len(regions)) for n in range(len(regions))]
    if intervals != expected:
        return None
    whole = Interval(first.start, intervals[-1].stop)
    return tuple(whole if axis == stepped[0] else interval for axis, interval in enumerate(regions[0]))


@dataclass(frozen=True, slots=True)
class Reading:
    """A stored tensor viewed with one shape: what is moved of it, and how many entries of the parameter that writes.

    `fault` says why the shard cannot be cut from it. `turned` is as of a copy.
    """

    shape: tuple[int, ...]
    moves: tuple[Move, ...] = ()
    written: int = 0
    fault: str = ""
    turned: bool = False

    def shorten(self, size: int) -> "Reading":
        """The same of a tensor that ends after `size` entries of its last axis; what it lacks is zero, and written."""
        moves = tuple(Move(_shorten(move.source, size), _shorten(move.destination, size)) for move in self.moves)
        return replace(self, shape=(*self.shape[:-1], size), moves=moves)

    def shift(self, axis: int, count: int) -> "Reading":
        """The same of a tensor that goes so many entries farther along an axis of the parameter."""
        moves = tuple(Move(move.source, _shift_region(move.destination, axis, count)) for move in self.moves)
        return replace(self, moves=moves)


@dataclass(frozen=True, slots=True)
class Fit:
    """One source's tensor for one parameter: its declaration on disk, and the shapes with which it can be read."""

    stored: ParameterSpec
    readings: tuple[Reading, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the declaration gives it."""
        return self.readings[0].shape

    @property
    def is_by_bytes(self) -> bool:
        """Whether the tensor may be stored in other dtypes than the one that it is read in."""
        return self.stored.view is View.BYTES

    @property
    def expected(self) -> str:
        """The shapes that would be right, in words."""
        if self.stored.view is View.BEGINNING:
            return f"one axis of 1 to {self.shape[-1]} bytes"
        return str(list(self.shape))

    def read(self, shape: tuple[int, ...]) -> Reading | None:
        """How to read a tensor that is stored with that shape; None where nothing of it would be right."""
        for reading in self.readings:
            if shape == reading.shape:
                return reading
            if self.stored.matches(shape, reading.shape):
                return reading.shorten(prod(shape)) if self.stored.view is View.BEGINNING else reading
        return None

    def shift(self, axis: int, count: int) -> "Fit":
        """The same of a tensor that goes so many entries farther along an axis of the parameter."""
        return replace(self, readings=tuple(reading.shift(axis, count) for reading in self.readings))


def find_expert_axis(layout: Layout) -> int | None:
    """The axis along which each expert has one entry; None where experts differ in more than their place on one."""
    axes = [number for number, axis in enumerate(layout.axes) if axis.dim is Dim.EXPERT]
    return axes[0] if len(axes) == 1 and layout.axes[axes[0]] == expert() else None


def _shorten(region: Region, size: int) -> Region:
    return (*region[:-1], Interval(0, size))


def _shift_region(region: Region, axis: int, count: int) -> Region:
    start, stop = region[axis].start + count, region[axis].stop + count
    return (*region[:axis], Interval(start, stop, region[axis].step), *region[axis + 1 :])


def view_bytes(entry: TensorEntry, stored: ParameterSpec) -> TensorEntry:
    """A tensor as its declaration reads it: where only its bytes count, in the first dtype that it may have."""
    if stored.view is not View.BYTES or entry.dtype not in stored.dtypes[1:] or not entry.shape:
        return entry
    *rows, columns = entry.shape
    seen = columns * BITS[entry.dtype] // BITS[stored.dtypes[0]]
    return structs.replace(entry, dtype=stored.dtypes[0], shape=(*rows, seen))


def count_measured(spec: ParameterSpec, source: Source, geometry: Geometry, shape: tuple[int, ...]) -> int:
    """How long the axis is of which only a stored tensor knows it, in one that a source stores with that shape."""
    others = prod(spec.measure(1).layout.shape(source.geometry(geometry).extents))
    return prod(shape) // others if others else 0


def make_fit(
    spec: ParameterSpec,
    stored: ParameterSpec,
    source: Source,
    geometry: Geometry,
    shard: Shard,
    length: int | None = None,
) -> Fit:
    """How a source's tensor, declared as `stored`, fills the parameter `spec` of one rank's share of a layer.

    `length` is that of the axis of which only the stored tensor knows it.
    """
    if length is not None:
        spec, stored = spec.measure(length), stored.measure(length)
    extents = source.geometry(geometry).extents
    # A tensor may have an entry for each part where the parts are stored as one.
    by_part = {**extents, Dim.PART: Extent((1,) * source.parts)}
    whole = _read(spec, stored, source, geometry, shard, extents)
    readings: tuple[Reading, ...] = (whole,)
    if stored.layout.shape(by_part) != stored.layout.shape(extents):
        readings += (_read(spec, stored, source, geometry, shard, by_part),)
    if spec.kind in _SINGLE and prod(whole.shape) > 1 and geometry.experts is not None and source.expert is None:
        readings += (_spread(whole),)
    return Fit(stored, readings)


def _spread(whole: Reading) -> Reading:
    """One scale for a stack of all experts, as some exporters store it: it is that of each."""
    single = tuple(Interval(0, 1) for _ in whole.shape)
    goals = (unit for move in whole.moves for unit in product(*map(_list_units, move.destination)))
    return replace(whole, shape=(1,) * len(single), moves=tuple(Move(single, goal) for goal in goals))


def _list_units(interval: Interval) -> list[Interval]:
    return [Interval(start, start + 1) for start in range(interval.start, interval.stop, interval.step)]


def _read(
    spec: ParameterSpec, stored: ParameterSpec, source: Source, geometry: Geometry, shard: Shard, extents: Extents
) -> Reading:
    shape = stored.layout.shape(extents)
    turned = source.turned and stored.layout.is_matrix
    try:
        # Parts that a tensor does not tell apart are moved once.
        moves = join_steps(tuple(dict.fromkeys(_moves(spec, stored, source, geometry, shard, extents))))
    except LayoutError as error:
        return Reading(_turn(shape) if turned else shape, fault=str(error))
    written = sum(volume(move.destination) for move in moves)
    if not turned:
        return Reading(shape, moves, written)
    return Reading(_turn(shape), tuple(Move(_turn(move.source), move.destination) for move in moves), written, "", True)


def _turn(axes: tuple[Each, ...]) -> tuple[Each, ...]:
    return (*axes[:-2], axes[-1], axes[-2])


def _moves(
    spec: ParameterSpec, stored: ParameterSpec, source: Source, geometry: Geometry, shard: Shard, extents: Extents
) -> Iterator[Move]:
    """The moves of each part; none where the rank owns nothing of it. Raises LayoutError where a unit is split."""
    layer, local = geometry.extents, shard.local(geometry).extents
    goals = _expert_cut(source, shard)
    if goals is None:
        return
    for part in range(source.part, source.part + source.parts):
        origin = _source_place(source, part, geometry, shard, len(extents[Dim.PART].sizes))
        region = stored.layout.region(extents, origin)
        if volume(region):
            yield Move(region, spec.layout.region(local, _destination_place(part, shard, goals), whole=layer))


def _source_place(source: Source, part: int, geometry: Geometry, shard: Shard, stored_parts: int) -> Place:
    cuts = dict(shard.cuts(part))
    segments: dict[Dim, int] = {Dim.PART: part - source.part if stored_parts > 1 else 0}
    if source.parts > 1 and geometry.interleaved:
        segments[Dim.OUT] = part - source.part
    else:
        before = sum(each.size for each in geometry.parts[source.part : part])
        cuts[Dim.OUT] = _shift(cuts[Dim.OUT], source.before + before)
    if source.expert is None and geometry.experts is not None:
        cuts[Dim.EXPERT] = shard.experts
    return Place(segments, cuts)


def _destination_place(part: int, shard: Shard, experts: Mapping[Dim, Cut]) -> Place:
    owned = shard.out[part]
    return Place({Dim.OUT: part, Dim.PART: part}, {Dim.OUT: Cut(0, owned.size, owned.padding), **experts})


def _expert_cut(source: Source, shard: Shard) -> Mapping[Dim, Cut] | None:
    """Where a source's expert lies among those that the rank owns; None where it is not among them."""
    if source.expert is None:
        return {}
    number = source.expert - shard.experts.start
    return {Dim.EXPERT: Cut(number, number + 1)} if 0 <= number < shard.experts.size else None


def _shift(cut: Cut, offset: int) -> Cut:
    return Cut(cut.start + offset, cut.stop + offset, cut.padding)
