"""Runs of elements and entries: intervals, regions, cuts, and the lengths of dimensions."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


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
        size = self.stop - self.start
        if self.step != 1:
            size = -(-size // self.step)
        return size if size > 0 else 0

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop, self.step)


Region = tuple[Interval, ...]
"""One interval for each axis of a tensor."""


def volume(region: Region) -> int:
    """The number of entries in `region`."""
    count = 1
    # A loop, for it runs for every copy of a plan.
    for interval in region:
        count *= interval.size
    return count


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
