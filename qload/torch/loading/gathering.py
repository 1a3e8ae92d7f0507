"""Strips of rows out of a file in few calls, without reading what lies between them.

Linux takes many reads in one call (io_submit(2), libaio.h), and does those that go through the page cache before it
returns. One of 4 KiB costs a core 1.3 us, half of what copying it out of a map of the file costs a system that is
not to be killed where the file turns out to be shorter, and threads do not wait for Python's lock after each.
"""

import ctypes
import os
import platform
import sys
import threading
from contextlib import suppress
from typing import Any

import numpy as np

from qload.torch.loading.caching import fetch
from qload.torch.loading.pieces import Strips

_BATCH = 256
"""Reads in a call. All processes together may have 65,536 of them under way, if nobody has said otherwise."""
_CALLS = {
    "x86_64": {"setup": 206, "destroy": 207, "receive": 208, "submit": 209},
    "aarch64": {"setup": 0, "destroy": 1, "submit": 2, "receive": 4},
}
"""The numbers of the calls, for which the C library has no functions."""
_REQUEST = np.dtype(
    {
        "names": ["number", "key", "operation", "file", "memory", "nbytes", "start", "flags"],
        "formats": ["u8", "u8", "u4", "u4", "u8", "u8", "u8", "2u8"],
    }
)
"""A `struct iocb`, in which the operation is 0, to read."""
_RESULT = np.dtype([("number", "u8"), ("request", "u8"), ("nbytes", "i8"), ("more", "i8")])
"""A `struct io_event`."""
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Gatherer:
    """Reads strips for any number of threads at a time."""

    def __init__(self) -> None:
        self._free: list[_Queue] = []
        self._is_refused = not _has_calls()

    def gather(self, file: int, strips: Strips, memory: memoryview, step: int) -> list[int]:
        """Fill memory with strips, `step` bytes from one to the next; those that are still to be read.

        These are the ones past the end of the file or in a bad place, or all of them where the system cannot do it.
        """
        if (queue := self._borrow()) is None:
            return list(range(strips.rows))
        fetch(file, strips.start, (strips.rows - 1) * strips.pitch + strips.length)
        filled = np.frombuffer(memory, dtype=np.uint8).ctypes.data
        left: list[int] = []
        try:
            for first in range(0, strips.rows, _BATCH):
                rows = np.arange(first, min(first + _BATCH, strips.rows), dtype=np.int64)
                starts, places = strips.start + rows * strips.pitch, filled + rows * step
                left += rows[queue.read(file, starts, places, strips.length)].tolist()
        except BaseException:
            # What it still has to tell is not for the next one.
            queue.close()
            raise
        self._free.append(queue)
        return left

    def close(self) -> None:
        """Give the queues back. The system takes tens of milliseconds for that, which nobody waits for."""
        queues, self._free = self._free, []
        for queue in queues:
            threading.Thread(target=queue.close, name="qload-close").start()

    def _borrow(self) -> "_Queue | None":
        if self._is_refused:
            return None
        try:
            return self._free.pop()
        except IndexError:
            pass
        try:
            return _Queue()
        except OSError:
            self._is_refused = True
            return None


class _Queue:
    """Reads that the system was asked for. Raises OSError where it has no room for another queue."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._library.syscall.restype = ctypes.c_long
        self._requests = np.zeros(_BATCH, _REQUEST)
        self._requests["number"] = np.arange(_BATCH)
        self._places = self._requests.ctypes.data + np.arange(_BATCH, dtype=np.int64) * _REQUEST.itemsize
        self._results = np.zeros(_BATCH, _RESULT)
        self._queue = ctypes.c_ulong(0)
        self._call("setup", _BATCH, ctypes.addressof(self._queue))

    def close(self) -> None:
        # A fork has none of its parent's.
        with suppress(OSError):
            self._call("destroy", self._queue.value)

    def read(self, file: int, starts: Numbers, places: Numbers, nbytes: int) -> Numbers:
        """Read so many bytes from each start in a file to a place in memory; the numbers of those that failed."""
        requests = self._requests[: len(starts)]
        requests["file"], requests["nbytes"] = file, nbytes
        requests["start"], requests["memory"] = starts, places
        submitted = self._submit(len(starts))
        results = self._receive(submitted)
        short = results["number"][results["nbytes"] != nbytes].astype(np.int64)
        return np.concatenate([np.sort(short), np.arange(submitted, len(starts))])

    def _submit(self, count: int) -> int:
        """Ask for the first `count` requests; how many the system took."""
        done = 0
        while done < count:
            try:
                done += self._call("submit", self._queue.value, count - done, self._places[done:].ctypes.data)
            except OSError:
                break
        return done

    def _receive(self, count: int) -> Any:
        done = 0
        while done < count:
            results = self._results[done:].ctypes.data
            try:
                done += self._call("receive", self._queue.value, count - done, count - done, results, 0)
            except InterruptedError:
                continue
        return self._results[:count]

    def _call(self, name: str, *arguments: int) -> int:
        """Call the system, without Python's lock. Raises OSError for what it answers."""
        number = _CALLS[platform.machine()][name]
        found: int = self._library.syscall(*map(ctypes.c_long, (number, *arguments)))
        if found < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return found


def _has_calls() -> bool:
    is_known = sys.platform == "linux" and platform.machine() in _CALLS
    return is_known and sys.byteorder == "little" and ctypes.sizeof(ctypes.c_void_p) == 8
