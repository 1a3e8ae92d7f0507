"""Cuts orders into pieces: bytes of a file that go into memory as they lie, or over a slab to where they belong."""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from qload.checkpoint import Interleaving
from qload.layout import Interval
from qload.plan import Copy
from qload.torch.copying import shape_as
from qload.torch.dtypes import torch_dtype
from qload.torch.loading.blocks import Block
from qload.torch.loading.orders import Order

LEAST_STRIP, LEAST_GAP = 4096, 6144
"""The bytes of a row that are wanted, or those that are not, from which on only what is wanted is read.

Else whole rows are read, and cut. That takes a core 0.2 us and 0.09 us for each KiB of a row, and a strip by itself
0.65 us and 0.13 us for each KiB of the strip, so that what is left out has to be 6 KiB. A rank that leaves out less
than a strip of a page reads little more than it has to without, but leaves the bandwidth to the others.
"""
LONGEST_PIECE = 8 << 20
"""The bytes that one thread reads of a tensor before another may read the rest."""


class Strips(NamedTuple):
    """Runs of `length` bytes in a file, of which `rows` are `pitch` apart, from `start` on."""

    start: int
    length: int
    rows: int = 1
    pitch: int = 0

    @property
    def nbytes(self) -> int:
        return self.length * self.rows


class Piece(NamedTuple):
    """Strips, and where they go: one after another, `step` bytes apart, into `memory`; or packed into a slab's bytes.

    What is then to be done with those `finish` does.
    """

    order: Order
    strips: Strips
    memory: memoryview | None
    step: int
    finish: Callable[[Tensor], None] | None = None


class Cutter:
    """Cuts orders; no piece that goes over a slab is larger than one, of `slab_bytes`."""

    def __init__(self, slab_bytes: int) -> None:
        self._slab_bytes = slab_bytes

    def cut(self, order: Order) -> Iterable[Piece]:
        """The pieces of an order, in the order of the file. Of nothing, there are none."""
        copy, destination = order.copy, order.destination
        if not destination.numel():
            return ()
        if _is_whole(copy, destination) and _is_in_place(copy, destination):
            return _cut_memory(order, Strips(copy.entry.start, copy.entry.nbytes), as_bytes(destination))
        block = Block.of(copy)
        destination = shape_as(destination, block.region, copy.turned)
        if copy.entry.interleaving is not None:
            return self._cut_interleaved(order, block, copy.entry.interleaving, destination)
        return self._cut_block(order, block, destination)

    def _cut_block(self, order: Order, block: Block, destination: Tensor) -> Iterator[Piece]:
        while len(block.shape) > 1 and destination.shape[0] == 1:
            block, destination = next(block.rows), destination[0]
        direct = _is_in_place(order.copy, destination, laid_out=False)
        if block.is_contiguous and destination.is_contiguous():
            start, nbytes = block.start + block.offset, destination.numel() * block.dtype.itemsize
            if direct:
                yield from _cut_memory(order, Strips(start, nbytes), as_bytes(destination))
            else:
                yield from self._cut_run(order, block, start, destination.view(-1))
        elif self._is_of_strips(block, direct := direct and _has_whole_rows(destination)):
            yield from self._cut_strips(order, block, destination, direct=direct)
        elif block.has_parted_rows or (block.row_bytes > self._slab_bytes and len(block.shape) > 1):
            for row, part in zip(block.rows, destination, strict=True):
                yield from self._cut_block(order, row, part)
        else:
            yield from self._cut_rows(order, block, destination)

    def _is_of_strips(self, block: Block, direct: bool) -> bool:
        length = block.strip_bytes
        is_worth_it = length >= LEAST_STRIP or block.row_bytes - length >= LEAST_GAP
        return length > 0 and is_worth_it and (direct or length <= self._slab_bytes)

    def _cut_run(self, order: Order, block: Block, start: int, destination: Tensor) -> Iterator[Piece]:
        """Elements that lie together here and there, and are not the same bytes or not on the same device."""
        size = block.dtype.itemsize
        fit = max(1, self._slab_bytes // size)
        for done in range(0, len(destination), fit):
            part = destination[done : done + fit]
            yield _stage(order, Strips(start + done * size, len(part) * size), partial(_put, order.copy, part))

    def _cut_strips(self, order: Order, block: Block, destination: Tensor, *, direct: bool) -> Iterator[Piece]:
        """Of every row what is wanted of it."""
        length, first, pitch = block.strip_bytes, block.start + block.inner.offset, block.row_bytes
        fit = max(1, (LONGEST_PIECE if direct else self._slab_bytes) // length)
        for done, run in block.runs((fit - 1) * block.region[0].step + 1):
            strips = Strips(first + run.start * pitch, length, run.size, pitch * run.step)
            part = destination[done : done + run.size]
            if direct:
                yield Piece(order, strips, as_bytes(part), part.stride(0) * part.itemsize)
            else:
                yield _stage(order, strips, partial(_put, order.copy, part))

    def _cut_rows(self, order: Order, block: Block, destination: Tensor) -> Iterator[Piece]:
        """Whole rows, as many as fit the slab, of which what is wanted is taken then."""
        for done, run in block.runs(max(1, self._slab_bytes // max(1, block.row_bytes))):
            yield _stage_rows(order, block, run, destination[done : done + run.size])

    def _cut_interleaved(self, order: Order, block: Block, rule: Interleaving, destination: Tensor) -> Iterator[Piece]:
        """Runs of stored rows that hold the wanted ones, as many as fit the slab, to be put in order."""
        first = block.region[0]
        rows = range(first.start, first.stop, first.step)
        fit = max(1, self._slab_bytes // max(1, rule.size * block.row_bytes)) * rule.size
        done = 0
        for start in range(first.start // rule.size * rule.size, first.stop, fit):
            places = [rule.place(row) for row in rows if start <= row < start + fit]
            if places:
                yield from self._cut_places(order, block, places, destination[done : done + len(places)])
                done += len(places)

    def _cut_places(self, order: Order, block: Block, places: list[int], destination: Tensor) -> Iterator[Piece]:
        run = Interval(min(places), max(places) + 1)
        if run.size * block.row_bytes > self._slab_bytes:
            for place, row in zip(places, destination, strict=True):
                single = replace(block, region=(Interval(place, place + 1), *block.region[1:]))
                yield from self._cut_block(order, single, row[None])
        else:
            yield _stage_rows(order, block, run, destination, [place - run.start for place in places])


def _is_whole(copy: Copy, destination: Tensor) -> bool:
    """Whether a destination of the stored dtype wants all of the stored bytes, as they lie."""
    return destination.nbytes == copy.entry.nbytes and not copy.turned and copy.entry.interleaving is None


def as_bytes(tensor: Tensor) -> memoryview:
    """The host's memory from a tensor's first byte to its last, what it steps over included; it ends with the tensor.

    Asking torch for it takes four times as long, and there are thousands of small tensors.
    """
    nbytes = tensor.nbytes
    if not tensor.is_contiguous():
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        nbytes = (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.itemsize
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")


def _is_in_place(copy: Copy, destination: Tensor, *, laid_out: bool = True) -> bool:
    """Whether the stored bytes are those of the destination, which is on the host, and there lie together."""
    if not destination.is_cpu or destination.dtype != torch_dtype(copy.entry.dtype) or copy.entry.shift:
        return False
    return not laid_out or destination.is_contiguous()


def _has_whole_rows(destination: Tensor) -> bool:
    return destination.dim() > 1 and destination[0].is_contiguous()


def _cut_memory(order: Order, run: Strips, memory: memoryview) -> list[Piece]:
    if run.length <= LONGEST_PIECE:
        return [Piece(order, run, memory, run.length)]
    parts = [(start, memory[start : start + LONGEST_PIECE]) for start in range(0, run.length, LONGEST_PIECE)]
    return [Piece(order, Strips(run.start + start, len(part)), part, len(part)) for start, part in parts]


def _stage(order: Order, strips: Strips, finish: Callable[[Tensor], None]) -> Piece:
    return Piece(order, strips, None, strips.length, finish)


def _stage_rows(
    order: Order, block: Block, run: Interval, destination: Tensor, places: list[int] | None = None
) -> Piece:
    """A run of whole rows, of which every one is wanted that the run steps on, or those at `places`."""
    size = block.row_bytes
    strips = Strips(block.start + run.start * size, (run.stop - run.start) * size)
    return _stage(order, strips, partial(_put_rows, order.copy, block, run, destination, places))


def _put(copy: Copy, destination: Tensor, landed: Tensor) -> None:
    """Put bytes that are on the host in their places."""
    stored = landed.view(torch_dtype(copy.entry.dtype)).view(destination.shape)
    if stored.dtype != destination.dtype or not destination.is_contiguous() or copy.entry.shift:
        stored = _shift(_send(stored, destination.device), copy)
    destination.copy_(stored, non_blocking=destination.is_cuda)


def _put_rows(
    copy: Copy, block: Block, run: Interval, destination: Tensor, places: list[int] | None, landed: Tensor
) -> None:
    rows = _send(landed, destination.device).view(block.dtype).view(-1, *block.shape[1:])
    if places is not None:
        rows = rows[torch.tensor(places, device=rows.device)]
    inner = (interval.slice for interval in block.region[1:])
    destination.copy_(_shift(rows[(slice(None, None, run.step), *inner)], copy))


def _send(stored: Tensor, device: torch.device) -> Tensor:
    """The bytes as they are, on the device, where they are then cut and cast; a slab waits until a GPU has them."""
    return stored.to(device, non_blocking=device.type == "cuda")


def _shift(stored: Tensor, copy: Copy) -> Tensor:
    """Undo what a producer added to the values."""
    if not copy.entry.shift:
        return stored
    return stored.to(torch.promote_types(stored.dtype, torch.float32)) + copy.entry.shift
