"""One file of weights, of which runs of bytes are read into memory."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from qload.torch.loading.gathering import Gatherer
from qload.torch.loading.pieces import Strips

CALL_BYTES = 16 << 20
"""The most that one call to the system is asked for."""
_BUFFERS = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16


class Target(NamedTuple):
    """Strips of a file, and the memory that they go to, `step` bytes from one to the next."""

    strips: Strips
    memory: memoryview
    step: int


class DataFile:
    """A file of which any number of threads read. Raises OSError where it cannot be opened.

    A file that ends too early is a TruncatedError.
    """

    def __init__(self, path: Path, gatherer: Gatherer) -> None:
        self._gatherer = gatherer
        self.name = path.name
        self._file = os.open(path, os.O_RDONLY)

    def close(self) -> None:
        os.close(self._file)

    def read(self, targets: Iterable[Target]) -> int:
        """Fill the targets, which are in the order of the file; returns the bytes read."""
        buffers: list[memoryview] = []
        read = start = nbytes = 0
        for strips, memory, step in targets:
            if strips.rows > 1:
                read += self._read_strips(strips, memory, step)
                continue
            is_next = strips.start == start + nbytes and nbytes < CALL_BYTES and len(buffers) < _BUFFERS
            if buffers and not is_next:
                read += self._fill(buffers, start)
            if not is_next:
                buffers, start, nbytes = [], strips.start, 0
            buffers.append(memory)
            nbytes += strips.length
        return read + (self._fill(buffers, start) if buffers else 0)

    def _fill(self, buffers: list[memoryview], start: int) -> int:
        """Fill buffers with what lies together from `start` on."""
        wanted = sum(map(len, buffers))
        done = 0
        while done < wanted:
            count = os.preadv(self._file, buffers, start + done)
            if count == 0:
                raise TruncatedError(start, wanted, done)
            done += count
            if done < wanted:
                buffers = list(_skip(buffers, count))
        return wanted

    def _read_strips(self, strips: Strips, memory: memoryview, step: int) -> int:
        for number in self._gatherer.gather(self._file, strips, memory, step):
            part = memory[number * step : number * step + strips.length]
            self._fill([part], strips.start + number * strips.pitch)
        return strips.nbytes


class TruncatedError(Exception):
    """A file ends at `place`, inside of the `expected` bytes from `start` on."""

    def __init__(self, start: int, expected: int, found: int) -> None:
        super().__init__(start, expected, found)
        self.start, self.expected, self.found = start, expected, found

    @property
    def place(self) -> int:
        return self.start + self.found


def _skip(buffers: Sequence[memoryview], count: int) -> Iterable[memoryview]:
    """What is left of buffers of which `count` bytes are filled."""
    for buffer in buffers:
        if count < len(buffer):
            yield buffer[count:]
        count = max(0, count - len(buffer))
