"""Reads through Run:ai's Model Streamer, which asks a file system for many ranges of a file at once."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qload.errors import QloadError
from qload.torch.loading.files import Target, TruncatedError
from qload.torch.loading.gathering import Gatherer
from qload.torch.loading.pieces import Strips

RING_BYTES = 32 << 20
"""What the streamer's buffers hold at a time, of one task; more where one range is larger."""
SPAN_BYTES = 4 << 20
SHORTEST_RANGE = 64 << 10
"""The bytes of a row from which on each is a range of its own.

For a range the streamer takes 20 microseconds, in which it reads as many bytes: shorter rows are read with what lies
between them.
"""
Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


class Part(NamedTuple):
    """Rows of a target that are read as one range of the file, from `start` on, and the memory they go to."""

    start: int
    nbytes: int
    strips: Strips
    memory: memoryview
    step: int

    def fill(self, found: Bytes) -> None:
        into, (_, length, rows, pitch) = np.frombuffer(self.memory, dtype=np.uint8), self.strips
        if rows == 1:
            np.copyto(into, found)
        else:
            stride = np.lib.stride_tricks.as_strided
            np.copyto(stride(into, (rows, length), (self.step, 1)), stride(found, (rows, length), (pitch, 1)))


class StreamedFile:
    """A file of which ranges come through the streamer's buffers (`module` is runai_model_streamer).

    Every task has a streamer of its own, so that the buffers of one are emptied while another's are filled; each has
    as many threads as RUNAI_STREAMER_CONCURRENCY says. RUNAI_STREAMER_MEMORY_LIMIT is not asked: the buffers of a task
    hold RING_BYTES. Source: runai_model_streamer/file_streamer/file_streamer.py, version 0.17.
    """

    def __init__(self, module: Any, path: Path, gatherer: Gatherer) -> None:  # noqa: ARG002
        self.name = path.name
        self._path = path
        self._module = module

    def close(self) -> None:
        pass

    def read(self, targets: Iterable[Target]) -> int:
        """Fill the targets; returns the bytes read, with what lay between short rows.

        Raises TruncatedError where the file ends too early, and QloadError for whatever else the streamer finds.
        """
        parts = [part for target in targets for part in _part(target)]
        ranges = self._module.FileChunks(
            0, str(self._path), [part.start for part in parts], [part.nbytes for part in parts]
        )
        try:
            with self._module.FileStreamer() as streamer:
                limit = max(RING_BYTES, *(part.nbytes for part in parts))
                streamer.stream_files([ranges], memory_limit=limit, owned=False)
                for _, number, found in streamer.get_chunks():
                    parts[number].fill(found[0].numpy())
        except ValueError as error:
            raise self._explain(error, parts) from error
        return sum(part.nbytes for part in parts)

    def _explain(self, error: ValueError, parts: list[Part]) -> Exception:
        size = self._path.stat().st_size
        for part in parts:
            if part.start + part.nbytes > size:
                return TruncatedError(part.start, part.nbytes, max(0, size - part.start))
        remedy = "reader='buffered' reads with the system's calls"
        return QloadError("runai-model-streamer cannot read it", where=self.name, found=str(error), remedy=remedy)


def _part(target: Target) -> Iterator[Part]:
    """A target's ranges: its strips, or runs of rows with what lies between them."""
    (start, length, rows, pitch), memory, step = target
    count = 1 if length >= SHORTEST_RANGE or rows == 1 else max(1, SPAN_BYTES // pitch)
    for row in range(0, rows, count):
        strips = Strips(start + row * pitch, length, min(count, rows - row), pitch)
        span = (strips.rows - 1) * pitch + length
        place = memory[row * step : row * step + (strips.rows - 1) * step + length]
        yield Part(strips.start, span, strips, place, step)
