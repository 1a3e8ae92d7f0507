"""What no way of loading can beat: the same bytes, read or copied with nothing else done."""

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import torch

CHUNK = 16 << 20
SLABS = 4


def count_threads() -> int:
    """As many as can copy at once without waiting for each other: one for each core, and no more than 8."""
    return min(8, os.cpu_count() or 1)


Span = tuple[Path, int, int]
"""A file, and from where to where."""


def list_spans(files: Sequence[Path], rank: int = 0, size: int = 1) -> list[Span]:
    """A rank's share of the files' bytes, in pieces of at most `CHUNK`: one run of them in each file."""
    spans: list[Span] = []
    for path in files:
        share = path.stat().st_size // size
        end = share * (rank + 1)
        spans += [(path, start, min(start + CHUNK, end)) for start in range(share * rank, end, CHUNK)]
    return spans


def prepare_reading(files: Sequence[Path], rank: int = 0, size: int = 1, threads: int = 0) -> Callable[[], Any]:
    """Reading a share into memory that is new, with huge pages."""
    spans = list_spans(files, rank, size)

    def read() -> mmap.mmap:
        # Private: what is shared has huge pages only where the machine is set so.
        nbytes = sum(stop - start for _, start, stop in spans)
        image = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        image.madvise(mmap.MADV_HUGEPAGE)
        descriptors = {path: os.open(path, os.O_RDONLY) for path in files}
        places = zip(spans, offsets(spans), strict=True)
        with memoryview(image) as memory, ThreadPoolExecutor(threads or count_threads()) as pool:
            for _ in pool.map(lambda each: read_span(descriptors[each[0][0]], *each, memory), places):
                pass
        return image

    return read


def offsets(spans: Sequence[Span]) -> list[int]:
    """Where each span goes, one after another."""
    places, at = [], 0
    for _, start, stop in spans:
        places.append(at)
        at += stop - start
    return places


def read_span(descriptor: int, span: Span, place: int, memory: memoryview) -> None:
    _, start, stop = span
    while start < stop:
        count = os.preadv(descriptor, [memory[place : place + stop - start]], start)
        if not count:
            raise EOFError(f"{span[0]} ends at {start}")
        start, place = start + count, place + count


def prepare_disk(files: Sequence[Path], rank: int = 0, size: int = 1, threads: int = 8) -> Callable[[], Any]:
    """Reading a share past the page cache, into small buffers that are used again and again."""
    spans = list_spans(files, rank, size)

    def read() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(read_all, (spans[number::threads] for number in range(threads))):
                pass

    return read


def read_all(spans: Sequence[Span]) -> None:
    buffer = mmap.mmap(-1, CHUNK)
    for path in dict.fromkeys(path for path, _, _ in spans):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        for _, start, stop in (span for span in spans if span[0] == path):
            # Reading past the cache begins at whole pages, and goes on in whole pages.
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            room = min(CHUNK, -(-(stop - first) // mmap.PAGESIZE) * mmap.PAGESIZE)
            os.preadv(descriptor, [memoryview(buffer)[:room]], first)
        os.close(descriptor)


def prepare_pinned(nbytes: int, device: str) -> Callable[[], Any]:
    """Copying so many bytes from pinned slabs into new memory of a GPU, without reading anything."""
    slabs = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(SLABS)]

    def copy() -> torch.Tensor:
        image = torch.empty(nbytes, dtype=torch.uint8, device=device)
        turns = chain.from_iterable([slabs] * -(-nbytes // (CHUNK * SLABS)))
        for slab, part in zip(turns, image.split(CHUNK), strict=False):
            part.copy_(slab[: len(part)], non_blocking=True)
        torch.cuda.synchronize(device)
        return image

    return copy
