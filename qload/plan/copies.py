"""The copies that fill one parameter of one rank."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from qload.checkpoint import TensorEntry
from qload.declare import ParameterKind, ParameterSpec
from qload.dtypes import storage_bytes
from qload.layout import Cut, Dim, Place, Region, volume
from qload.plan.targets import Source, Target


@dataclass(frozen=True, slots=True)
class Copy:
    """From the region `source` of a stored tensor, viewed with the shape `view`, to a region of a parameter.

    The regions have the same sizes, but for axes of one entry that only the destination has.
    """

    entry: TensorEntry
    view: tuple[int, ...]
    source: Region
    destination: Region

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.entry.dtype, volume(self.source))


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter to be made and filled: its name on the layer, dtype code, shape, and copies.

    `fill` is what it holds before; a slot with padding starts from zero.
    """

    name: str
    kind: ParameterKind
    dtype: str
    shape: tuple[int, ...]
    fill: float
    copies: tuple[Copy, ...]
    bounds: tuple[int, int] | None = None

    @property
    def nbytes(self) -> int:
        return storage_bytes(self.dtype, prod(self.shape))


def local_shape(spec: ParameterSpec, target: Target) -> tuple[int, ...]:
    """The shape of one parameter on this rank, padding included."""
    local = target.shard.local(target.geometry)
    return spec.layout.local_shape(target.geometry.extents, local.extents)


def make_copies(
    spec: ParameterSpec, target: Target, source: Source, stored: ParameterSpec, entry: TensorEntry
) -> Iterator[Copy]:
    """The copies of one stored tensor into one parameter; none where the rank owns nothing of it.

    `spec` is the parameter's declaration in the whole layer, `stored` the one of the tensor on disk.
    Raises LayoutError where the shard splits a unit.
    """
    extents = source.geometry(target.geometry).extents
    if not stored.matches(entry.shape, stored.layout.shape(extents)):
        extents = source.fused_extents(target.geometry)
    layer, local = target.geometry.extents, target.shard.local(target.geometry).extents
    for part in range(source.part, source.part + source.parts):
        origin = _source_place(target, source, part, len(extents[Dim.PART].sizes))
        goal = _destination_place(target, source, part)
        if origin is None or goal is None:
            continue
        region = stored.layout.region(extents, origin)
        if volume(region):
            yield Copy(entry, stored.layout.shape(extents), region, spec.layout.region(local, goal, whole=layer))


def _source_place(target: Target, source: Source, part: int, stored_parts: int) -> Place | None:
    cuts = dict(target.shard.cuts(part))
    segments: dict[Dim, int] = {Dim.PART: part - source.part if stored_parts > 1 else 0}
    if source.parts > 1 and target.geometry.interleaved:
        segments[Dim.OUT] = part - source.part
    else:
        cuts[Dim.OUT] = _shift(cuts[Dim.OUT], source.before + _offset(target, source.part, part))
    if source.expert is None and target.geometry.experts is not None:
        cuts[Dim.EXPERT] = target.shard.experts
    return Place(segments, cuts)


def _destination_place(target: Target, source: Source, part: int) -> Place | None:
    owned_rows = target.shard.out[part]
    cuts: dict[Dim, Cut] = {Dim.OUT: Cut(0, owned_rows.size, owned_rows.padding)}
    segments: Mapping[Dim, int] = {Dim.OUT: part, Dim.PART: part}
    if source.expert is not None:
        owned = target.shard.experts
        if not owned.start <= source.expert < owned.stop:
            return None
        cuts[Dim.EXPERT] = Cut(source.expert - owned.start, source.expert - owned.start + 1)
    return Place(segments, cuts)


def _offset(target: Target, first: int, part: int) -> int:
    return sum(each.size for each in target.geometry.parts[first:part])


def _shift(cut: Cut, offset: int) -> Cut:
    return Cut(cut.start + offset, cut.stop + offset, cut.padding)
