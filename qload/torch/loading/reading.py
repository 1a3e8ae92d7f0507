"""Reads files with several threads, in the order of their bytes, while the caller goes on with what has landed."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from qload.torch.loading.files import DataFile
from qload.torch.loading.gathering import Gatherer
from qload.torch.loading.orders import Order
from qload.torch.loading.pieces import Cutter, Piece
from qload.torch.loading.staging import Staging
from qload.torch.loading.tasks import TASK_BYTES, Source, Task, make_tasks

AHEAD_BYTES = 192 << 20
"""The most that may have been read, and not yet been yielded: two tasks for each thread, up to this."""
WINDOW_BYTES = 32 << 20
_WINDOW_ORDERS = 4096


class FileReader:
    """Reads from the files of a folder with `preadv`, straight into parameters where these have the stored bytes.

    Orders are taken a window at a time, and what lies together in a file is read together. `threads` is 2 to 8
    by the number of cores; `ahead` the bytes that may have been read before what precedes them was yielded,
    by default two tasks for each thread; `open_file` chooses how a file is read. Raises QloadError, with the tensor and
    the file, where a file is shorter than its header said.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        threads: int | None = None,
        ahead: int | None = None,
        slab_bytes: int | None = None,
        open_file: Callable[[Path, Gatherer], Source] = DataFile,
    ) -> None:
        self._folder = folder
        self._open_file = open_file
        self._threads = choose_threads(device) if threads is None else threads
        self._ahead = min(AHEAD_BYTES, 2 * TASK_BYTES * max(1, self._threads)) if ahead is None else ahead
        self._window = min(WINDOW_BYTES, max(1, self._ahead))
        self._staging = Staging(device, slab_bytes, max(1, self._threads) if device.type == "cpu" else None)
        self._cutter = Cutter(self._staging.size)
        self._gatherer = Gatherer()
        self._sources: dict[str, Source] = {}
        self.bytes_read = 0

    def read(self, orders: Iterable[Order]) -> Iterator[Order]:
        waiting, flight = iter(orders), _Flight(self._threads, self._staging)
        # The first window is small, so that there is something to read soon.
        limit = self._window // 8
        try:
            while True:
                # Before anything is yielded: the threads are to have work for as long as the caller is busy with it.
                while flight.nbytes <= self._ahead and (window := _take(waiting, limit)):
                    yield from self._start(flight, window)
                    limit = self._window
                if flight.is_empty:
                    return
                yield from self._land(flight)
        finally:
            flight.stop()

    def _start(self, flight: "_Flight", window: list[Order]) -> Iterator[Order]:
        """Have a window's orders read, and yield those of nothing."""
        self._staging.catch_up()
        flight.start(make_tasks(self._cut(window)))
        empty = [order for order in window if not order.destination.numel()]
        # What has landed may be freed by whoever takes it, if nothing here holds it.
        window.clear()
        yield from empty

    def _land(self, flight: "_Flight") -> Iterator[Order]:
        """The orders that are done with the next task."""
        landed, event, read = flight.land()
        self.bytes_read += read
        self._staging.await_event(event)
        while landed:
            yield landed.popleft()

    def close(self) -> None:
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        self._gatherer.close()

    def _cut(self, window: list[Order]) -> list[tuple[Source, Piece]]:
        pieces: list[tuple[Source, Piece]] = []
        for order in window:
            source = self._open(order.copy.entry.file)
            pieces += [(source, piece) for piece in self._cutter.cut(order)]
        return pieces

    def _open(self, name: str) -> Source:
        if name not in self._sources:
            self._sources[name] = self._open_file(self._folder / name, self._gatherer)
        return self._sources[name]


class _Flight:
    """Tasks that threads are at, or that wait for one, in the order in which they land.

    Without threads, each is done when it is started.
    """

    def __init__(self, threads: int, staging: Staging) -> None:
        self._pool = ThreadPoolExecutor(threads, "qload-read") if threads else None
        self._staging = staging
        self._tasks = deque[tuple[Task, Future[int]]]()
        self.nbytes = 0

    @property
    def is_empty(self) -> bool:
        return not self._tasks

    def start(self, tasks: Iterable[Task]) -> None:
        for task in tasks:
            self._tasks.append((task, self._submit(task)))
            self.nbytes += task.nbytes

    def land(self) -> "tuple[deque[Order], torch.cuda.Event | None, int]":
        """Of the next task, once it is done: what has landed, after which event, and the bytes that were read.

        Raises what it raised.
        """
        task, future = self._tasks.popleft()
        self.nbytes -= task.nbytes
        read = future.result()
        return deque(task.landed), task.event, read

    def stop(self) -> None:
        """Start nothing more, and wait for what is under way."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._tasks.clear()
        self._staging.finish()

    def _submit(self, task: Task) -> Future[int]:
        if self._pool is not None:
            return self._pool.submit(task.run, self._staging)
        done = Future[int]()
        done.set_result(task.run(self._staging))
        return done


def _take(orders: Iterator[Order], limit: int) -> list[Order]:
    """The next orders, of `limit` bytes about."""
    window: list[Order] = []
    nbytes = 0
    for order in orders:
        window.append(order)
        nbytes += order.destination.nbytes
        if nbytes >= limit or len(window) >= _WINDOW_ORDERS:
            break
    return window


def choose_threads(device: torch.device) -> int:
    """As many as read faster than one; none for devices to which only the caller's thread may send."""
    if device.type not in ("cpu", "cuda"):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(2, min(8, cores or 2))
