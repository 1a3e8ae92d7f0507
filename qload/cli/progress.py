"""The bar of a load: of this process alone, or one of all ranks."""

import threading
from collections.abc import Callable
from typing import Any, Protocol

import qload
from qload.cli.bars import ByteBar

_LABEL = "loading"
_STEP = 4 << 20
"""The bytes that a rank keeps to itself before it tells."""
_INTERVAL = 0.1
"""Seconds between looks at what ranks have told."""

Show = Callable[["qload.Progress"], None]


class Count(Protocol):
    """A number that all ranks add to."""

    def add(self, number: int) -> int: ...

    def read(self) -> int: ...


class OwnBar:
    """A bar of bytes on the terminal, for as long as a checkpoint is being loaded."""

    def __init__(self) -> None:
        self._bar = ByteBar(_LABEL)

    def __enter__(self) -> Show:
        self._bar.__enter__()
        return lambda progress: self._bar.show(progress.done, progress.total)

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)


class RanksBar:
    """What all ranks have loaded, of what all of them are to load, on the terminal of the one that `shows` it."""

    def __init__(self, done: Count, total: Count, *, shows: bool) -> None:
        self._done, self._total = done, total
        self._told = 0
        self._is_known = False
        self._left = threading.Event()
        self._bar = ByteBar(_LABEL) if shows else None
        self._thread = threading.Thread(target=self._watch, daemon=True) if shows else None

    def __enter__(self) -> Show:
        if self._bar is not None and self._thread is not None:
            self._bar.__enter__()
            self._thread.start()
        return self._tell

    def __exit__(self, *error: Any) -> None:
        self._left.set()
        if self._bar is not None and self._thread is not None:
            self._thread.join()
            self._bar.__exit__(*error)

    def _tell(self, progress: "qload.Progress") -> None:
        if not self._is_known:
            self._is_known = True
            self._total.add(progress.total)
        if progress.done - self._told >= _STEP or progress.done == progress.total:
            self._done.add(progress.done - self._told)
            self._told = progress.done

    def _watch(self) -> None:
        """Show what ranks tell, until the bar is left, or they are gone."""
        while self._bar is not None and not self._left.wait(_INTERVAL):
            try:
                self._bar.show(self._done.read(), self._total.read())
            except RuntimeError:
                return
