"""Reads files in pieces of bounded size, and shows each tensor's pieces to what watches its numbers."""

import importlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from qload.checkpoint import Folder, Storage, TensorEntry
from qload.findings import Finding, report
from qload.values import Bits, Watch

CHUNK = 1 << 24
"""The most bytes that are read at once."""
_GAP, _FAR_GAP = 1 << 16, 1 << 20
"""Bytes between two tensors that are read and dropped, for asking twice takes as long: of a folder, and elsewhere."""

Range = tuple[int, int]
Progress = Callable[[int, int], None]
"""Is told how many bytes have been read, and how many there are to read."""


class _FaultError(Exception):
    """What reading a file ends with, if not with the file."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(slots=True)
class Task:
    """A tensor to be looked at: in pieces of any number of `unit` bytes, as integers of `width` bytes.

    Without a width they are the stored integers. Where there is `kept`, all of it is put there by its name.
    """

    entry: TensorEntry
    watches: tuple[Watch, ...]
    unit: int
    kept: dict[str, bytes] | None = None
    width: int | None = None

    @property
    def start(self) -> int:
        return self.entry.start

    @property
    def stop(self) -> int:
        return self.entry.stop

    def see(self, data: bytes, start: int) -> None:
        """Look at what `data`, which begins at byte `start` of the file, has of the tensor."""
        first, last = max(self.start, start) - start, min(self.stop, start + len(data)) - start
        if first >= last:
            return
        if self.watches:
            bits = read_bits(data, first, last, self.entry.dtype, self.width)
            for watch in self.watches:
                watch.see(bits)
        if self.kept is not None:
            self.kept[self.entry.name] = self.kept.get(self.entry.name, b"") + data[first:last]

    def judge(self) -> Iterator[Finding]:
        for watch in self.watches:
            yield from watch.judge(self.entry.name, self.entry.file)


@dataclass(slots=True)
class Scan:
    """Where pieces are read, and how many bytes have been, of so many."""

    storage: Storage
    total: int = 0
    progress: Progress | None = None
    done: int = field(default=0, init=False)

    def count(self, nbytes: int) -> None:
        self.done += nbytes
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def read_file(
    scan: Scan, file: str, tasks: Sequence[Task], ranges: Iterable[Range] | None, digest: Digest | None = None
) -> Generator[Finding, None, bool]:
    """Show the tasks of one file, in order, what lies in the ranges, or all of it; returns whether that was read.

    The next piece is read, and the last one hashed, while one is looked at.
    """
    first, hashed = 0, None
    try:
        pieces = list(cut_ranges(_choose_ranges(scan.storage, file, ranges), tasks))
        with ThreadPoolExecutor(2) as threads:
            for start, data in _read_ahead(scan.storage, file, pieces, threads):
                if hashed is not None:
                    hashed.result()
                hashed = threads.submit(digest.update, data) if digest is not None else None
                first = yield from _show(tasks, first, data, start)
                scan.count(len(data))
    except _FaultError as fault:
        yield fault.finding
        return False
    return True


def _choose_ranges(storage: Storage, file: str, ranges: Iterable[Range] | None) -> list[Range]:
    if ranges is not None:
        return merge_ranges(ranges, _GAP if isinstance(storage, Folder) else _FAR_GAP)
    try:
        return [(0, storage.size(file))]
    except OSError as error:
        raise _FaultError(_unreadable(file, error)) from error


def _read_ahead(
    storage: Storage, file: str, pieces: Sequence[Range], threads: ThreadPoolExecutor
) -> Iterator[tuple[int, bytes]]:
    """Each piece with the place where it begins; the next one is read meanwhile. Raises _FaultError."""
    coming: deque[Future[bytes]] = deque()
    for number, (start, stop) in enumerate(pieces):
        for after, end in pieces[number + len(coming) : number + 2]:
            coming.append(threads.submit(storage.read, file, after, end - after))
        try:
            data = coming.popleft().result()
        except OSError as error:
            raise _FaultError(_unreadable(file, error)) from error
        if len(data) < stop - start:
            raise _FaultError(_truncated(file, stop, start + len(data)))
        yield start, data


def _show(tasks: Sequence[Task], first: int, data: bytes, start: int) -> Generator[Finding, None, int]:
    """Show a piece to the tasks from `first` on; returns the first one that may see more."""
    stop, number = start + len(data), first
    while number < len(tasks) and tasks[number].start < stop:
        task = tasks[number]
        task.see(data, start)
        if start < task.stop <= stop:
            yield from task.judge()
        number += 1
    while first < number and tasks[first].stop <= stop:
        first += 1
    return first


def merge_ranges(ranges: Iterable[Range], gap: int) -> list[Range]:
    """The ranges, in order, those as one that have no more than `gap` bytes between them."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1] + gap:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def cut_ranges(ranges: Iterable[Range], tasks: Sequence[Task]) -> Iterator[Range]:
    """Pieces of the ranges, none of which ends inside a unit of a task; tasks are in order."""
    number = 0
    for start, stop in ranges:
        while start < stop:
            end = min(start + CHUNK, stop)
            while number < len(tasks) and tasks[number].stop <= end:
                number += 1
            # What a truncated file has of a unit is all that there is.
            if end < stop and number < len(tasks) and tasks[number].start < end < tasks[number].stop:
                end -= (end - tasks[number].start) % tasks[number].unit
            yield start, end
            start = end


def read_bits(data: bytes, start: int, stop: int, dtype: str, width: int | None) -> Bits:
    """Bytes of a tensor as an array of integers: signed ones of `width` bytes, or else those of the dtype."""
    kind = _INTEGERS.get(dtype, "u1") if width is None else f"<i{width}"
    numpy = importlib.import_module("numpy")
    size = numpy.dtype(kind).itemsize
    bits: Bits = numpy.frombuffer(data, kind, (stop - start) // size, start)
    return bits


_INTEGERS = {
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "<u1",
    "U16": "<u2",
    "U32": "<u4",
    "U64": "<u8",
    "BOOL": "<u1",
}


def _unreadable(file: str, error: OSError) -> Finding:
    return report(
        "QL013",
        f"cannot be read: {error.strerror or error}",
        file=file,
        remedy="see to it that the file can be read, and try again",
    )


def _truncated(file: str, expected: int, found: int) -> Finding:
    return report(
        "QL004",
        "ends before all of it was read",
        file=file,
        expected=f"{expected} bytes or more",
        found=found,
        remedy="download it again",
    )
