"""What of a file is in the page cache, as far as the system tells."""

import os
from collections.abc import Sequence
from pathlib import Path

_PROBES = 32


def is_cold(path: Path) -> bool:
    """Whether most of some pages of a file would have to be fetched. False where the system does not say.

    Nor does it say so of a file that nobody may read: it lies in the folder, and is not asked for.
    """
    if not hasattr(os, "RWF_NOWAIT") or not hasattr(os, "O_DIRECT"):
        return False
    try:
        size, file = path.stat().st_size, os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Asking is not to fetch anything. The first bytes are a header, which has just been read.
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        places = [size * (2 * number + 1) // (2 * _PROBES) for number in range(_PROBES)] if size else []
        return count_waits(file, places) * 2 > _PROBES
    finally:
        os.close(file)


def fetch(file: int, start: int, nbytes: int) -> None:
    """Have the system fetch what is about to be read, if its ends are not there: asking for all costs more."""
    if hasattr(os, "RWF_NOWAIT") and count_waits(file, [start, start + nbytes - 1]):
        os.posix_fadvise(file, start, nbytes, os.POSIX_FADV_WILLNEED)


def count_waits(file: int, places: Sequence[int]) -> int:
    """At how many places a read would have to wait."""
    page = memoryview(bytearray(1))
    return sum([_would_wait(file, place, page) for place in places])


def _would_wait(file: int, place: int, page: memoryview) -> bool:
    try:
        os.preadv(file, [page], place, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:  # the file system does not answer
        return False
    return False
