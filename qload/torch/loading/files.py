"""One file of weights, of which runs of bytes are read into memory."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from qload.torch.loading.gathering import gather
from qload.torch.loading.pieces import Strips

CALL_BYTES = 16 << 20
"""The most that one call to the system is asked for."""
GAP_BYTES = 8 << 10
"""Reading over so many bytes costs less than another call: 0.6 us of 1.3.

More than a 64th of what is wanted before them is not read over, but for 1 KiB, so that a rank reads no other's share.
"""
_SHORT_GAP = 1 << 10
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

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = os.open(path, os.O_RDONLY)
        self._unwanted = memoryview(bytearray(GAP_BYTES))

    def close(self) -> None:
        os.close(self._file)

    def read(self, targets: Iterable[Target]) -> int:
        """Fill the targets, which are in the order of the file; returns the bytes read, those between included."""
        buffers: list[memoryview] = []
        read = start = end = nbytes = 0
        for strips, memory, step in targets:
            if strips.rows > 1:
                read += self._read_strips(strips, memory, step)
                continue
            gap = strips.start - end
            if buffers and (not 0 <= gap <= _most_gap(nbytes) or len(buffers) + 2 > _BUFFERS or nbytes > CALL_BYTES):
                read += self._fill(buffers, start)
                buffers, nbytes = [], 0
            if not buffers:
                start = strips.start
            elif gap:
                buffers.append(self._unwanted[:gap])
            buffers.append(memory)
            end = strips.start + strips.length
            nbytes += strips.length
        return read + self._fill(buffers, start)

    def _fill(self, buffers: list[memoryview], start: int) -> int:
        """Fill buffers with what lies together from `start` on."""
        wanted = sum(map(len, buffers))
        done = 0
        while done < wanted:
            count = self._call(buffers, start + done)
            if count == 0:
                raise TruncatedError(start, wanted, done)
            done += count
            if done < wanted:
                buffers = list(_skip(buffers, count))
        return wanted

    def _call(self, buffers: Sequence[memoryview], start: int) -> int:
        return os.preadv(self._file, buffers, start)

    def _read_strips(self, strips: Strips, memory: memoryview, step: int) -> int:
        if not gather(self._file, strips, memory, step):
            for number in range(strips.rows):
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


def _most_gap(nbytes: int) -> int:
    """The bytes that are read over rather than left out, after so many that are wanted."""
    return max(_SHORT_GAP, min(GAP_BYTES, nbytes >> 6))


def _skip(buffers: Sequence[memoryview], count: int) -> Iterable[memoryview]:
    """What is left of buffers of which `count` bytes are filled."""
    for buffer in buffers:
        if count < len(buffer):
            yield buffer[count:]
        count = max(0, count - len(buffer))
