"""Strips of rows out of a file in few calls, without reading what lies between them.

Copying out of a map of the file is the quickest way, but where the file then turns out to be shorter the process is
killed. So the system is asked to copy: `process_vm_readv` of the process itself takes a thousand strips in a call, and
answers with an error where there is nothing to read.
"""

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from qload.torch.loading.pieces import Strips

_ROWS = 1024
Vectors = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def _find_call() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    call: Any = getattr(ctypes.CDLL(None), "process_vm_readv", None)
    if call is not None:
        call.restype = ctypes.c_ssize_t
    found: Callable[..., int] | None = call
    return found


_READ = _find_call()


def gather(file: int, strips: Strips, memory: memoryview, step: int) -> bool:
    """Fill memory with strips, `step` bytes from one to the next; whether it could be done."""
    if _READ is None:
        return False
    below = strips.start % mmap.ALLOCATIONGRANULARITY
    span = (strips.rows - 1) * strips.pitch + strips.length
    with suppress(OSError):
        os.posix_fadvise(file, strips.start, span, os.POSIX_FADV_WILLNEED)
    try:
        window = mmap.mmap(file, below + span, mmap.MAP_SHARED, mmap.PROT_READ, offset=strips.start - below)
    except (OSError, ValueError):
        return False
    with window:
        stored = np.frombuffer(window, dtype=np.uint8)
        filled = np.frombuffer(memory, dtype=np.uint8)
        done = _gather_rows(strips, stored.ctypes.data + below, filled.ctypes.data, step)
        del stored
    return done


def _gather_rows(strips: Strips, stored: int, filled: int, step: int) -> bool:
    """Copy from one address to another within the process, through the system."""
    for first in range(0, strips.rows, _ROWS):
        rows = np.arange(first, min(first + _ROWS, strips.rows), dtype=np.int64)
        sources = _make_vectors(stored + rows * strips.pitch, strips.length)
        targets = _make_vectors(filled + rows * step, strips.length)
        if step == strips.length:
            targets = _make_vectors(filled + rows[:1] * step, strips.length * len(rows))
        if not _copy(targets, sources, strips.length * len(rows)):
            return False
    return True


def _copy(targets: Vectors, sources: Vectors, nbytes: int) -> bool:
    into, out = (ctypes.c_void_p(each.ctypes.data) for each in (targets, sources))
    counts = [ctypes.c_ulong(len(each)) for each in (targets, sources)]
    return _READ is not None and _READ(os.getpid(), into, counts[0], out, counts[1], ctypes.c_ulong(0)) == nbytes


def _make_vectors(addresses: Vectors, length: int) -> Vectors:
    """What the system calls vectors: pairs of an address and a length."""
    vectors = np.empty((len(addresses), 2), dtype=np.int64)
    vectors[:, 0] = addresses
    vectors[:, 1] = length
    return vectors
