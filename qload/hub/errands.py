"""Work that nobody waits for longer than it may take."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Errand(Generic[T]):
    """Work in a thread of its own, begun at once, which is to be done within so many seconds.

    No client bounds the time of a server that sends its headers byte by byte, so that a thread may have to be left
    behind: it does not keep the process from ending.
    """

    def __init__(self, work: Callable[[float], T], seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._outcome = Future[T]()
        Thread(target=self._do, args=(work,), name="qload-errand", daemon=True).start()

    def _do(self, work: Callable[[float], T]) -> None:
        try:
            self._outcome.set_result(work(self._deadline))
        except BaseException as error:  # whoever waits for it raises it
            self._outcome.set_exception(error)

    def wait(self) -> T:
        """What the work gives, or raises. Raises TimeoutError where it is not done in time."""
        return self._outcome.result(max(0.0, self._deadline - time.monotonic()))
