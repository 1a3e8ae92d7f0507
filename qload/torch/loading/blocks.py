"""Where in a file the bytes of a region lie: of a stored tensor, or of one of its rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch

from qload.layout import Interval, Region, volume
from qload.plan import Copy
from qload.torch.dtypes import torch_dtype


@dataclass(frozen=True, slots=True)
class Block:
    """A region of a stored tensor of `shape`, or of one of its rows; its bytes begin at `start` in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    region: Region
    start: int

    @classmethod
    def of(cls, copy: Copy) -> "Block":
        """What a copy reads; a scalar is a row of one."""
        dtype = torch_dtype(copy.entry.dtype)
        return cls(dtype, copy.view or (1,), copy.source or (Interval(0, 1),), copy.entry.start)

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def inner(self) -> "Block":
        """What is wanted of the tensor's first row, as if it began at 0."""
        return Block(self.dtype, self.shape[1:], self.region[1:], 0)

    @property
    def strip_bytes(self) -> int:
        """The bytes that are wanted of each row, where they lie together and are not all of it; else 0."""
        if len(self.shape) == 1:
            return 0
        wanted = volume(self.region[1:])
        is_strip = wanted < prod(self.shape[1:]) and self.inner.is_contiguous
        return wanted * self.dtype.itemsize if is_strip else 0

    @property
    def has_parted_rows(self) -> bool:
        """Whether a row is a matrix of which whole rows are left out, as in a shard of a stack of experts."""
        return len(self.shape) > 2 and self.region[1].size < self.shape[1]

    @property
    def rows(self) -> Iterator["Block"]:
        """The region's rows along its first axis."""
        first, row_bytes = self.region[0], self.row_bytes
        for row in range(first.start, first.stop, first.step):
            yield Block(self.dtype, self.shape[1:], self.region[1:], self.start + row * row_bytes)

    def runs(self, rows: int) -> Iterator[tuple[int, Interval]]:
        """Intervals of the first axis that span at most `rows` rows, with the number of rows before each."""
        first = self.region[0]
        count = max(1, (rows - 1) // first.step + 1)
        size = first.size
        for done in range(0, size, count):
            start = first.start + done * first.step
            stop = start + (min(count, size - done) - 1) * first.step + 1
            yield done, Interval(start, stop, first.step)

    @property
    def is_contiguous(self) -> bool:
        """Whether the region's bytes lie together: before the last axis that is cut, it has one entry."""
        cut = [axis for axis, interval in enumerate(self.region) if interval.size != self.shape[axis]]
        single = all(self.region[axis].size == 1 for axis in range(cut[-1] if cut else 0))
        return single and all(interval.step == 1 for interval in self.region)

    @property
    def offset(self) -> int:
        """The bytes before the region's first entry."""
        place = 0
        for size, interval in zip(self.shape, self.region, strict=True):
            place = place * size + interval.start
        return place * self.dtype.itemsize
