"""What one thread does at a time: pieces of one file, read in few calls, and put where they belong."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import torch

from qload.errors import QloadError
from qload.torch.loading.files import Target, TruncatedError
from qload.torch.loading.orders import Order
from qload.torch.loading.pieces import Piece
from qload.torch.loading.staging import Staging

TASK_BYTES = 16 << 20
_PIECES = 1024


class Source(Protocol):
    """A file that is read."""

    name: str

    def read(self, targets: Iterable[Target]) -> int:
        """Fill the targets, which are in the order of the file; returns the bytes read."""

    def close(self) -> None:
        """Give it back."""


@dataclass(slots=True)
class Task:
    """Pieces of a file in their order there; `landed` are the orders that need nothing after it."""

    source: Source
    pieces: list[Piece] = field(default_factory=list)
    nbytes: int = 0
    landed: list[Order] = field(default_factory=list)
    event: "torch.cuda.Event | None" = None

    def has_room(self, nbytes: int) -> bool:
        return self.nbytes + nbytes <= TASK_BYTES and len(self.pieces) < _PIECES

    def run(self, staging: Staging) -> int:
        """Read the pieces; returns the bytes read. What is queued on a GPU is done after `event`.

        Raises QloadError with the tensor where the file ends too early.
        """
        read = 0
        try:
            for group in _group(self.pieces, staging.size):
                read += self._read_direct(group) if group[0].memory is not None else self._read_staged(group, staging)
        except TruncatedError as error:
            raise self._explain(error) from error
        return read

    def _read_direct(self, pieces: Sequence[Piece]) -> int:
        return self.source.read([Target(each.strips, each.memory, each.step) for each in pieces if each.memory])

    def _read_staged(self, pieces: Sequence[Piece], staging: Staging) -> int:
        sizes = [piece.strips.nbytes for piece in pieces]
        places = list(accumulate(sizes, initial=0))
        with staging.borrow() as slab:
            parts = [slab.memory[start : start + size] for start, size in zip(places, sizes, strict=False)]
            read = self.source.read(
                [Target(piece.strips, part, piece.step) for piece, part in zip(pieces, parts, strict=True)]
            )
            with torch.inference_mode(), slab.queueing():
                for piece, start, size in zip(pieces, places, sizes, strict=False):
                    if piece.finish is not None:
                        piece.finish(slab.buffer[start : start + size])
            self.event = slab.event
        return read

    def _explain(self, error: TruncatedError) -> QloadError:
        """Say which tensor the file lacks: the first one whose pieces are past its end."""
        past = (each for each in self.pieces if each.strips.start + _span(each) > error.place)
        name = next(past, self.pieces[-1]).order.copy.entry.name
        return QloadError(
            "the file ends before the tensor does",
            where=f"{name} in {self.source.name}",
            expected=f"{error.expected} bytes at {error.start}",
            found=str(error.found),
            remedy="the file changed while it was read: download it again",
        )


def make_tasks(pieces: Iterable[tuple[Source, Piece]]) -> list[Task]:
    """Put pieces together that lie next to each other in a file, in as many tasks as threads can share."""
    tasks: list[Task] = []
    task: Task | None = None
    last: dict[int, tuple[Task, Order]] = {}
    for source, piece in sorted(pieces, key=lambda each: (each[0].name, each[1].strips.start)):
        nbytes = piece.strips.nbytes
        if task is None or task.source is not source or not task.has_room(nbytes):
            task = Task(source)
            tasks.append(task)
        task.pieces.append(piece)
        task.nbytes += nbytes
        last[id(piece.order)] = task, piece.order
    for task, order in last.values():
        task.landed.append(order)
    return tasks


def _span(piece: Piece) -> int:
    return (piece.strips.rows - 1) * piece.strips.pitch + piece.strips.length


def _group(pieces: Sequence[Piece], slab_bytes: int) -> Iterator[list[Piece]]:
    """Pieces that go straight into memory, and those that together fit a slab."""
    group: list[Piece] = []
    nbytes = 0
    for piece in pieces:
        is_staged = piece.memory is None
        if group and (
            is_staged != (group[0].memory is None) or (is_staged and nbytes + piece.strips.nbytes > slab_bytes)
        ):
            yield group
            group, nbytes = [], 0
        group.append(piece)
        nbytes += piece.strips.nbytes
    if group:
        yield group
