"""The axis formula: which stored entries carry which logical elements.

Every stored axis says which logical dimension of its layer it follows, and that each `logical`
elements of it are stored as `stored` entries. Sharding, packing, fusing and validating are this one
formula. Integers only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import gcd, prod

from qload.errors import LayoutError


class Dim(StrEnum):
    """The logical dimensions that a stored axis can follow."""

    OUT = "out"
    IN = "in"
    EXPERT = "expert"
    PART = "part"


@dataclass(frozen=True, slots=True)
class Interval:
    """The entries start, start + step, ... below stop, of one axis."""

    start: int
    stop: int
    step: int = 1

    @property
    def size(self) -> int:
        return max(0, -(-(self.stop - self.start) // self.step))

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop, self.step)


Region = tuple[Interval, ...]
"""One interval for each axis of a tensor."""


def volume(region: Region) -> int:
    """The number of entries in `region`."""
    return prod(interval.size for interval in region)


@dataclass(frozen=True, slots=True)
class Cut:
    """The logical elements [start, stop) of one segment that a rank owns.

    `padding` elements follow them on the rank and are stored nowhere.
    """

    start: int
    stop: int
    padding: int = 0

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def padded_size(self) -> int:
        return self.stop - self.start + self.padding


@dataclass(frozen=True, slots=True)
class Extent:
    """The lengths of a dimension's segments: a fused layer's parts lie one after another.

    Interleaved segments (row 0 of each part, then row 1 of each) have equal lengths.
    """

    sizes: tuple[int, ...]
    interleaved: bool = False


Extents = Mapping[Dim, Extent]


@dataclass(frozen=True, slots=True)
class Axis:
    """One stored axis: every `logical` elements of `dim` are stored as `stored` entries.

    A `whole` axis is kept whole on every rank. A `solid` one is a single unit, however long the dimension is: no rank
    can hold a share of it, and it has no room for padding. On a `padded` one the last unit is stored whole even where
    it is short. An axis that follows no dimension has a fixed `size`; where it is `measured`, only what is stored has
    one. Raises LayoutError for a unit that is empty.
    """

    dim: Dim | None
    logical: int = 1
    stored: int = 1
    whole: bool = False
    size: int = 1
    solid: bool = False
    padded: bool = False
    measured: bool = False

    def __post_init__(self) -> None:
        if self.logical < 1 or self.stored < 1:
            raise LayoutError(
                f"a unit of the axis {self.dim or 'of fixed size'} is empty",
                expected="1 element or more, stored as 1 entry or more",
                found=f"{self.logical} stored as {self.stored}",
            )

    @property
    def is_uncut(self) -> bool:
        """Whether a rank that has anything of the axis has all of it."""
        return self.whole or self.solid

    def entries(self, count: int) -> int:
        """Stored entries of `count` elements that begin at a unit's start; the last unit may be short."""
        units, rest = divmod(count, self.logical)
        if self.padded:
            return (units + (rest > 0)) * self.stored
        return units * self.stored + -(-rest * self.stored // self.logical)

    def pack(self, count: int) -> int:
        """Stored entries of `count` elements that make whole units. Raises LayoutError where they do not."""
        units, rest = divmod(count, self.logical)
        if rest:
            raise LayoutError(
                f"{count} elements do not make whole units of the axis {self.dim or 'of fixed size'}",
                unit=self.logical,
                expected=f"multiples of {self.logical}, stored as {self.stored} each",
                found=str(count),
            )
        return units * self.stored

    def counts(self, entries: int) -> range:
        """The element counts that are stored as `entries` entries: the inverse of `entries`."""
        if self.padded:
            units, rest = divmod(entries, self.stored)
            return range(0) if rest else range(max(0, (units - 1) * self.logical + 1), units * self.logical + 1)
        first = (entries - 1) * self.logical // self.stored + 1
        return range(max(0, first), entries * self.logical // self.stored + 1)

    def admits(self, cut: Cut, length: int) -> bool:
        """Whether `cut` splits no unit of a segment of `length` elements."""
        if self.solid:
            return (cut.start, cut.stop) == (0, length)
        if self.whole or self.dim is None or cut.size == 0:
            return True
        begins = cut.start % self.logical == 0
        ends = cut.stop % self.logical == 0 or length in (cut.stop, cut.stop + cut.padding)
        return begins and ends

    def length(self, extents: Extents) -> int:
        """Stored entries of the whole axis: parts round one by one."""
        if self.dim is None:
            return self.size
        return sum(self.entries(size) for size in extents[self.dim].sizes)

    def run(self, extent: Extent, segment: int, cut: Cut) -> Interval:
        """The stored entries of `cut`, inside the segment with that index.

        Raises LayoutError if the cut splits a unit, or if interleaved segments are packed.
        """
        length = extent.sizes[segment]
        if not self.admits(cut, length):
            unit = length if self.solid else self.logical
            raise LayoutError(
                f"elements {cut.start} to {cut.stop} of {length} split a unit of the axis {self.dim}",
                unit=unit,
                expected=f"multiples of {unit}",
                found=f"{cut.start} and {cut.stop}",
            )
        if extent.interleaved:
            return self._interleaved_run(len(extent.sizes), segment, cut)
        offset = sum(self.entries(size) for size in extent.sizes[:segment])
        start = offset + cut.start // self.logical * self.stored
        return Interval(start, start + self.entries(cut.size))

    def _interleaved_run(self, segments: int, segment: int, cut: Cut) -> Interval:
        if self.logical != 1 or self.stored != 1:
            raise LayoutError(
                f"interleaved parts cannot be packed along the axis {self.dim}",
                unit=self.logical,
                expected="one entry for each row",
                found=f"{self.stored} for every {self.logical}",
            )
        start = cut.start * segments + segment
        return Interval(start, start + cut.size * segments - (segments - 1 if cut.size else 0), segments)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies: the segment of each dimension, and the cut inside it.

    A dimension without an entry means its first segment, whole.
    """

    segments: Mapping[Dim, int] = field(default_factory=dict)
    cuts: Mapping[Dim, Cut] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes of one stored tensor, in the order of its shape."""

    axes: tuple[Axis, ...]

    def shape(self, extents: Extents) -> tuple[int, ...]:
        """The whole tensor's shape in a layer with those extents."""
        return tuple(axis.length(extents) for axis in self.axes)

    def local_shape(self, extents: Extents, local: Extents) -> tuple[int, ...]:
        """A rank's shape: axes that are not cut follow the layer's `extents`, the others the rank's `local` ones."""
        return tuple(axis.length(extents if axis.is_uncut else local) for axis in self.axes)

    def region(self, extents: Extents, place: Place, whole: Extents | None = None) -> Region:
        """The entries of a tensor with those extents that hold the piece at `place`.

        `whole` are the extents that axes follow that are not cut, where they are not `extents`: those of the
        layer while `extents` are a rank's. Raises LayoutError where the piece splits a unit.
        """
        return tuple(
            _interval(axis, whole if whole is not None and axis.is_uncut else extents, place) for axis in self.axes
        )

    def pack(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The stored sizes of that many elements along each axis; also of where a share begins, instead of its size.

        Raises LayoutError where they do not fill whole entries, or are not one for each axis.
        """
        if len(sizes) != len(self.axes):
            raise LayoutError("a size is needed for each axis", expected=f"{len(self.axes)}", found=f"{len(sizes)}")
        return tuple(axis.pack(size) for axis, size in zip(self.axes, sizes, strict=True))

    def permute(self, *dims: int) -> "Layout":
        """The layout with its axes in another order, as `torch.permute` has it; negative ones count from the end.

        Raises LayoutError unless each axis is named once.
        """
        count = len(self.axes)
        order = [dim + count if dim < 0 else dim for dim in dims]
        if sorted(order) != list(range(count)):
            raise LayoutError(
                "the axes cannot be put in that order",
                expected=f"each of {count} axes once",
                found=str(list(dims)),
            )
        return Layout(tuple(self.axes[dim] for dim in order))

    @property
    def ratio(self) -> tuple[int, int]:
        """How many elements of a layer how many entries hold, all axes together."""
        return prod(axis.logical for axis in self.axes), prod(axis.stored for axis in self.axes)

    @property
    def is_matrix(self) -> bool:
        """Whether there are two axes beside one of experts, which can lie in either order."""
        return sum(axis.dim is not Dim.EXPERT for axis in self.axes) == 2

    def follows(self, dim: Dim) -> bool:
        """Whether any axis follows `dim`."""
        return any(axis.dim is dim for axis in self.axes)

    def is_solid(self, dim: Dim) -> bool:
        """Whether all elements of `dim` must stay together."""
        return any(axis.solid for axis in self.axes if axis.dim is dim)

    def unit(self, dim: Dim) -> int:
        """The number of elements of `dim` that must stay together on a rank, where they are not solid."""
        return max((axis.logical for axis in self.axes if axis.dim is dim and not axis.whole), default=1)

    def solidify(self, *dims: Dim) -> "Layout":
        """The layout with the axes along those dimensions solid."""
        return Layout(tuple(replace(axis, solid=axis.solid or axis.dim in dims) for axis in self.axes))

    @property
    def is_measured(self) -> bool:
        """Whether only what is stored says how long one of the axes is."""
        return any(axis.measured for axis in self.axes)

    def measure(self, length: int) -> "Layout":
        """The layout with that length where only what is stored has one."""
        return Layout(tuple(replace(axis, size=length) if axis.measured else axis for axis in self.axes))


def _interval(axis: Axis, extents: Extents, place: Place) -> Interval:
    if axis.dim is None:
        return Interval(0, axis.size)
    extent = extents[axis.dim]
    segment = place.segments.get(axis.dim, 0)
    whole = Cut(0, extent.sizes[segment])
    return axis.run(extent, segment, whole if axis.whole else place.cuts.get(axis.dim, whole))


def out(logical: int = 1, stored: int = 1, *, whole: bool = False, solid: bool = False) -> Axis:
    """An axis along the output features."""
    return Axis(Dim.OUT, logical, stored, whole, solid=solid)


def in_(logical: int = 1, stored: int = 1, *, whole: bool = False, solid: bool = False, padded: bool = False) -> Axis:
    """An axis along the input features."""
    return Axis(Dim.IN, logical, stored, whole, solid=solid, padded=padded)


def part() -> Axis:
    """An axis with one entry for each fused part; a layer that is not fused has one part."""
    return Axis(Dim.PART)


def expert() -> Axis:
    """An axis with one entry for each expert."""
    return Axis(Dim.EXPERT)


def fixed(size: int) -> Axis:
    """An axis that follows no dimension, whole on every rank."""
    return Axis(None, size=size)


def measured() -> Axis:
    """An axis that follows no dimension and is as long as what is stored, whole on every rank.

    Parts and experts that store less than the longest of their layer are followed by what the tensor is filled with.
    """
    return Axis(None, size=0, measured=True)


def packing(bits: int, word: int = 32, tile: int = 1) -> tuple[int, int]:
    """(logical, stored) of values of `bits` bits packed without gaps into words of `word` bits.

    4 bits in 32 give (8, 1); 3 bits give (32, 3), where values straddle words. `tile` is how many rows or columns
    of another dimension a repacked weight moves into this one: 4 bits in tiles of 16 give (8, 16). Raises LayoutError
    for a number of bits, a word or a tile that is not positive.
    """
    if min(bits, word, tile) < 1:
        raise LayoutError(
            "values cannot be packed so",
            expected="1 bit or more, in words and tiles of 1 or more",
            found=f"{bits} bits, words of {word}, tiles of {tile}",
        )
    common = gcd(bits, word)
    return word // common, bits // common * tile
