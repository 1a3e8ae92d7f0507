"""Files that are not in the page cache, read past it: straight from the disk, by blocks, and copied from there."""

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from qload.torch.loading.caching import is_cold
from qload.torch.loading.files import DataFile, TruncatedError
from qload.torch.loading.gathering import Gatherer
from qload.torch.memory import Arena

BLOCK_BYTES = 4096
"""What places and sizes of such reads are multiples of: the largest block of the disks that there are."""
SCRATCH_BYTES = 4 << 20
THREADS = 6
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP)
Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class DirectFile(DataFile):
    """A file that is read past the page cache, as long as its file system lets it be; else as any other."""

    def __init__(self, path: Path, gatherer: Gatherer) -> None:
        super().__init__(path, gatherer)
        self._direct = _open_direct(path)
        self._scratch = threading.local()

    def close(self) -> None:
        if self._direct is not None:
            os.close(self._direct)
        super().close()

    def _fill(self, buffers: list[memoryview], start: int) -> int:
        if self._direct is not None:
            try:
                return self._fill_past_cache(self._direct, buffers, start)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
        return super()._fill(buffers, start)

    def _fill_past_cache(self, file: int, buffers: Sequence[memoryview], start: int) -> int:
        wanted = sum(map(len, buffers))
        blocks = self._take_scratch()
        parts = [np.frombuffer(buffer, dtype=np.uint8) for buffer in reversed(buffers)]
        place, stop = start // BLOCK_BYTES * BLOCK_BYTES, start + wanted
        done = first = place
        while done < stop:
            size = min(SCRATCH_BYTES, -(-(stop - place) // BLOCK_BYTES) * BLOCK_BYTES)
            count = os.preadv(file, [blocks[:size].data], place)
            done = place + count
            if not count or (done < stop and count % BLOCK_BYTES):
                raise TruncatedError(start, wanted, max(0, done - start))
            _pour(blocks[max(0, start - place) : min(count, stop - place)], parts)
            place = done
        return place - first

    def _take_scratch(self) -> Bytes:
        """This thread's own memory, which is aligned as pages are."""
        if not hasattr(self._scratch, "memory"):
            arena = Arena(torch.device("cpu"), SCRATCH_BYTES)
            self._scratch.memory = arena.take((SCRATCH_BYTES,), torch.uint8).numpy()
        found: Bytes = self._scratch.memory
        return found


def open_file(path: Path, gatherer: Gatherer) -> DataFile:
    """A file to be read past the page cache if most of it is not there."""
    return DirectFile(path, gatherer) if is_cold(path) else DataFile(path, gatherer)


def _open_direct(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError):
        return None


def _pour(found: Bytes, parts: list[Bytes]) -> None:
    """Fill buffers with what was found, in turn; `parts` is what is left of them, the next one last."""
    while len(found):
        part = parts.pop()
        size = min(len(part), len(found))
        np.copyto(part[:size], found[:size])
        found = found[size:]
        if size < len(part):
            parts.append(part[size:])
