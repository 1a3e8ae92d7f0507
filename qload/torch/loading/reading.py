"""Reads the regions that a plan names, straight from files into parameters.

A region whose bytes lie together in the file and in the parameter is read in place, and strips of rows likewise.
Everything else goes through a staging buffer of fixed size: short strips, casts, rows in another order, and other
devices, to which whole runs of bytes are sent and where they are cut and cast.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from qload.checkpoint import Interleaving
from qload.errors import QloadError
from qload.layout import Interval, Region, volume
from qload.plan import Copy
from qload.torch.copying import copy_region, shape_as
from qload.torch.dtypes import torch_dtype
from qload.torch.loading.staging import Staging

SHORTEST_STRIP = 128
"""The bytes of a row from which on only what is wanted is read: for fewer, a call costs more than what lies between."""


class Reader(Protocol):
    """Whatever can fill a region of a parameter with what a copy names."""

    def read(self, copy: Copy, destination: Tensor) -> int:
        """Fill `destination`, the copy's region of the parameter; returns the bytes read from storage."""

    def close(self) -> None:
        """Wait for what is under way, and give everything back."""


class FileReader:
    """Reads from the files of a folder with `preadv`.

    Raises QloadError, with the tensor and the file, where a file is shorter than its header said.
    """

    def __init__(self, folder: Path, staging: Staging) -> None:
        self._folder = folder
        self._staging = staging
        self._files: dict[str, int] = {}

    def read(self, copy: Copy, destination: Tensor) -> int:
        if not copy.entry.shift:
            return self._read(copy, destination)
        stored = torch.empty(destination.shape, dtype=torch_dtype(copy.entry.dtype), device=destination.device)
        read = self._read(copy, stored)
        destination.copy_(stored.to(torch.promote_types(stored.dtype, torch.float32)) + copy.entry.shift)
        return read

    def _read(self, copy: Copy, destination: Tensor) -> int:
        dtype = torch_dtype(copy.entry.dtype)
        block = _Block(copy, dtype, copy.view or (1,), copy.source or (Interval(0, 1),), copy.entry.start)
        destination = shape_as(destination, block.region, copy.turned)
        if copy.entry.interleaving is not None:
            return self._read_interleaved(block, copy.entry.interleaving, destination)
        in_place = destination.device.type == "cpu" and destination.dtype == dtype
        if in_place and destination.is_contiguous() and block.is_contiguous:
            self._fill(copy, destination, block.start + block.offset)
            return destination.nbytes
        is_direct = in_place and destination.is_contiguous()
        if block.strip_bytes >= SHORTEST_STRIP and (is_direct or block.strip_bytes <= self._staging.size):
            return self._read_strips(block, destination, in_place=is_direct)
        return self._read_rows(block, destination)

    def close(self) -> None:
        self._staging.finish()
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _read_rows(self, block: "_Block", destination: Tensor) -> int:
        """Read whole rows of the first axis, as many as fit the buffer; what is too long, or a stack, row by row."""
        if block.has_parted_rows or (block.row_bytes > self._staging.size and len(block.shape) > 1):
            rows = block.rows
            return sum(self._read_rows(row, part) for row, part in zip(rows, destination, strict=True))
        fit = max(1, self._staging.size // max(1, block.row_bytes))
        return sum(self._read_run(block, run, destination[done : done + run.size]) for done, run in block.runs(fit))

    def _read_strips(self, block: "_Block", destination: Tensor, *, in_place: bool) -> int:
        """Read of every row what is wanted of it, and nothing between."""
        strip, rows = block.strip_bytes, block.region[0]
        if in_place:
            self._fill_strips(block, rows, _as_bytes(destination))
            return destination.nbytes
        for done, run in block.runs(max(1, self._staging.size // strip) * rows.step):
            with self._staging.borrow(run.size * strip) as buffer:
                self._fill_strips(block, run, _as_bytes(buffer))
                landed = buffer.to(destination.device, non_blocking=self._staging.is_pinned)
                part = destination[done : done + run.size]
                part.copy_(landed.view(block.dtype).view(part.shape))
        return rows.size * strip

    def _fill_strips(self, block: "_Block", rows: Interval, memory: memoryview) -> None:
        strip, first = block.strip_bytes, block.start + block.strip_offset
        for number, row in enumerate(range(rows.start, rows.stop, rows.step)):
            place = first + row * block.row_bytes
            self._fill_memory(block.copy, memory[number * strip : (number + 1) * strip], place)

    def _read_interleaved(self, block: "_Block", order: Interleaving, destination: Tensor) -> int:
        """Read runs of stored rows that hold the wanted ones, as many as fit the buffer, and put them in order."""
        first = block.region[0]
        rows = range(first.start, first.stop, first.step)
        fit = max(1, self._staging.size // max(1, order.size * block.row_bytes)) * order.size
        read = done = 0
        for start in range(first.start // order.size * order.size, first.stop, fit):
            places = [order.place(row) for row in rows if start <= row < start + fit]
            if places:
                read += self._read_places(block, places, destination[done : done + len(places)])
                done += len(places)
        return read

    def _read_places(self, block: "_Block", places: list[int], destination: Tensor) -> int:
        run = Interval(min(places), max(places) + 1)
        if run.size * block.row_bytes > self._staging.size:
            singles = [replace(block, region=(Interval(place, place + 1), *block.region[1:])) for place in places]
            return sum(self._read_rows(one, row[None]) for one, row in zip(singles, destination, strict=True))
        return self._read_run(block, run, destination, [place - run.start for place in places])

    def _read_run(self, block: "_Block", run: Interval, destination: Tensor, places: list[int] | None = None) -> int:
        """Read a run of rows, and of these every one that the run steps on, or those at `places`."""
        nbytes = (run.stop - run.start) * block.row_bytes
        with self._staging.borrow(nbytes) as buffer:
            self._fill(block.copy, buffer, block.start + run.start * block.row_bytes)
            landed = buffer.to(destination.device, non_blocking=self._staging.is_pinned)
            rows = landed.view(block.dtype).view(-1, *block.shape[1:])
            if places is not None:
                rows = rows[torch.tensor(places, device=rows.device)]
            inner = (interval.slice for interval in block.region[1:])
            destination.copy_(rows[(slice(None, None, run.step), *inner)])
        return nbytes

    def _fill(self, copy: Copy, target: Tensor, start: int) -> None:
        self._fill_memory(copy, _as_bytes(target), start)

    def _fill_memory(self, copy: Copy, memory: memoryview, start: int) -> None:
        done = 0
        while done < len(memory):
            count = os.preadv(self._open(copy.entry.file), [memory[done:]], start + done)
            if count == 0:
                raise QloadError(
                    "the file ends before the tensor does",
                    where=f"{copy.entry.name} in {copy.entry.file}",
                    expected=f"{len(memory)} bytes at {start}",
                    found=str(done),
                    remedy="the file changed while it was read: download it again",
                )
            done += count

    def _open(self, name: str) -> int:
        if name not in self._files:
            self._files[name] = os.open(self._folder / name, os.O_RDONLY)
        return self._files[name]


def _as_bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


class MemoryReader:
    """Copies from tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, copy: Copy, destination: Tensor) -> int:
        stored = self._tensors[copy.entry.name]
        dtype = torch_dtype(copy.entry.dtype)
        if stored.dtype != dtype:
            stored = stored.contiguous().view(dtype)
        return copy_region(stored.reshape(copy.view), copy.source, destination, turned=copy.turned)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Block:
    """A region of a stored tensor of `shape`, or of one of its rows; its bytes begin at `start` in the file."""

    copy: Copy
    dtype: torch.dtype
    shape: tuple[int, ...]
    region: Region
    start: int

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def strip_bytes(self) -> int:
        """The bytes that are wanted of each row, where they lie together and are not all of it; else 0."""
        inner = _Block(self.copy, self.dtype, self.shape[1:], self.region[1:], 0)
        wanted = volume(self.region[1:])
        is_strip = len(self.shape) > 1 and wanted < prod(self.shape[1:]) and inner.is_contiguous
        return wanted * self.dtype.itemsize if is_strip else 0

    @property
    def strip_offset(self) -> int:
        """The bytes of each row before what is wanted of it."""
        return _Block(self.copy, self.dtype, self.shape[1:], self.region[1:], 0).offset

    @property
    def has_parted_rows(self) -> bool:
        """Whether a row is a matrix of which whole rows are left out, as in a shard of a stack of experts."""
        return len(self.shape) > 2 and self.region[1].size < self.shape[1]

    @property
    def rows(self) -> Iterator["_Block"]:
        """The region's rows along its first axis."""
        first = self.region[0]
        for row in range(first.start, first.stop, first.step):
            start = self.start + row * self.row_bytes
            yield _Block(self.copy, self.dtype, self.shape[1:], self.region[1:], start)

    def runs(self, rows: int) -> Iterator[tuple[int, Interval]]:
        """Intervals of the first axis that span at most `rows` rows, with the number of rows before each."""
        first = self.region[0]
        count = max(1, (rows - 1) // first.step + 1)
        for done in range(0, first.size, count):
            start = first.start + done * first.step
            size = min(count, first.size - done)
            yield done, Interval(start, start + (size - 1) * first.step + 1, first.step)

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
