"""Python's collector of garbage, whose full rounds find none in what a load makes."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 1 << 30


@contextmanager
def putting_off_collections() -> Iterator[None]:
    """Inside, or in a function that it decorates, only young objects are looked through for garbage.

    A plan's values and a reader's pieces are many, and stay: each time they have become a quarter of all there is, all
    would be looked through, which takes 0.3 s with torch and transformers imported.
    """
    young, middle, old = gc.get_threshold()
    if old == _NEVER:
        # Whoever began this, maybe another thread's load, also ends it.
        yield
        return
    gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        gc.set_threshold(young, middle, old)
