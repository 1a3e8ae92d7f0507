"""Files in the page cache: brought into it, taken out of it, and found to be there."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_CHUNK = 16 << 20


def warm(files: Iterable[Path]) -> None:
    """Read the files, so that they are in the page cache."""
    buffer = bytearray(_CHUNK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def evict(files: Iterable[Path]) -> int:
    """Take the files out of the page cache; returns the bytes of them that are in it all the same."""
    stayed = 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            # A page that is not on the disk yet does not go.
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        stayed += count_cached(path)
    return stayed


def count_cached(path: Path) -> int:
    """The bytes of a file that are in the page cache."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        marks = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), marks)
        del start
    if failed:
        raise OSError(ctypes.get_errno(), "mincore", str(path))
    return sum(mark & 1 for mark in bytes(marks)) * mmap.PAGESIZE
