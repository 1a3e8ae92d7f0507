"""Real processes joined by gloo, which wait for work: tests hand functions to all of them at once.

The functions stand in the package `jobs`, for another process must be able to import them.
"""

import multiprocessing as mp
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from qload.torch.parallel import Group

PRELOADED = ["torch", "transformers", "qload.torch", "qload.torch.models", "torch.distributed.tensor", "jobs"]
SECONDS = 120.0
"""How long a rank may take for one piece of work."""

Job = Callable[..., Any]


class World:
    """`size` processes. After a failure they are ended, and started anew when there is work again."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranks: list[tuple[Any, Connection]] = []

    def run(self, job: Job, *arguments: Any) -> list[Any]:
        """What `job(group, *arguments)` returns on each rank.

        Raises ChildProcessError for a rank that died, or else what the first failing rank raised, with a note of ranks
        that did not answer then.
        """
        self._start()
        for _, connection in self._ranks:
            connection.send_bytes(pickle.dumps((job, arguments)))
        answers = self._collect()
        failures = {rank: answer for rank, answer in answers.items() if isinstance(answer, BaseException)}
        if len(answers) < self.size or failures:
            self.close()
        silent = f"ranks {sorted(set(range(self.size)) - answers.keys())} did not answer"
        if failures:
            # Who loses a rank that died may say so before its end is seen.
            cause = min(failures.values(), key=lambda error: not isinstance(error, ChildProcessError))
            if len(answers) < self.size:
                cause.add_note(silent)
            raise cause
        if len(answers) < self.size:
            raise TimeoutError(silent)
        return [answers[rank] for rank in range(self.size)]

    def close(self) -> None:
        for process, connection in self._ranks:
            connection.close()
            process.kill()
            process.join()
        self._ranks = []

    def _start(self) -> None:
        if self._ranks:
            return
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        # Kept by its ranks' connections: the port is free again once all are gone.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, self._store.port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def _collect(self) -> dict[int, Any]:
        """The ranks' answers in the order in which they come, as far as they come in time."""
        answers: dict[int, Any] = {}
        waiting = {connection: rank for rank, (_, connection) in enumerate(self._ranks)}
        end = time.monotonic() + SECONDS
        while waiting and time.monotonic() < end:
            for connection in wait(list(waiting), timeout=max(0.0, end - time.monotonic())):
                rank = waiting.pop(connection)  # type: ignore[call-overload]
                answers[rank] = _receive(connection, rank)  # type: ignore[arg-type]
                if isinstance(answers[rank], BaseException):
                    # The others may wait for this one: a little more time is for their own words.
                    end = min(end, time.monotonic() + 5)
        return answers


def _receive(connection: Connection, rank: int) -> Any:
    try:
        return pickle.loads(connection.recv_bytes())
    except EOFError:
        return ChildProcessError(f"rank {rank} is gone")


def _serve(rank: int, size: int, port: int, connection: Connection) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS))
    group = Group(rank, size, dist.group.WORLD)
    for job, arguments in _requests(connection):
        with _strictly():
            answer = _attempt(job, group, arguments)
        connection.send_bytes(answer)


def _requests(connection: Connection) -> Iterator[tuple[Job, tuple[Any, ...]]]:
    while True:
        try:
            yield pickle.loads(connection.recv_bytes())
        except EOFError:
            return


@contextmanager
def _strictly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _attempt(job: Job, group: Group, arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps(job(group, *arguments))
    except Exception as error:
        return pickle.dumps(error)
