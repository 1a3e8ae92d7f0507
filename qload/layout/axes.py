"""Axes: how many entries hold how many elements of a dimension."""

from dataclasses import dataclass
from math import gcd

from qload.errors import LayoutError
from qload.layout.intervals import Cut, Dim, Extent, Extents, Interval


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
