"""The heap of the system's malloc, which keeps what is freed in it."""

import ctypes
import sys


def trim_heap() -> None:
    """Give back to the system what malloc keeps, where it is glibc's.

    Each thread has a heap of its own there, and what stays lies between what was freed: after quantizing in strips that
    was a third of what the process held.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
