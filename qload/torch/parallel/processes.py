"""Ranks that are processes of this machine: started, joined, watched, and ended together."""

import multiprocessing as mp
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from qload.errors import ParallelError
from qload.torch.parallel.groups import Group
from qload.torch.parallel.mesh import BACKENDS

_HOST = "127.0.0.1"
_GRACE = 5.0
"""The seconds that ranks have to say what happened to them once one has failed, or to end once all are done."""
_LINGERING = 1.0
"""The seconds for which a rank that is done stays: what others read of it shall reach them."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What a rank needs to know: whom to join, and what to do, as `work`, the pickle of a function and arguments."""

    size: int
    port: int
    device: str
    work: bytes


@dataclass(slots=True)
class _Rank:
    """A rank's process, and both ends of the connection on which it answers: ours and its own."""

    process: BaseProcess
    connection: Connection
    theirs: Connection

    def start(self) -> None:
        """Start the process with Ctrl-C blocked, which comes to it, too, and is the parent's alone to act on."""
        # Started with the first process otherwise, it unblocks what is blocked here.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self.process.start()
        finally:
            self.theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def end(self, seconds: float) -> None:
        """Wait that long for the process to end, and kill it then; it need not have been started."""
        if self.process.pid is not None:
            self.process.join(max(0.0, seconds))
            self.process.kill()
            self.process.join()
            self.process.close()


@dataclass(slots=True)
class _Answers:
    """What the ranks returned or raised, by rank, in the order in which it came."""

    value: Any = None
    done: set[int] = field(default_factory=set)
    errors: dict[int, Exception] = field(default_factory=dict)
    deaths: dict[int, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return bool(self.errors or self.deaths)


def run_ranks(function: Callable[..., Any], size: int, *arguments: Any, device: str = "cpu") -> Any:
    """Call `function(group, *arguments)` in `size` processes of this machine, and return what rank 0 returns.

    `group` has all of them, joined also as torch's default group: by gloo, and on `device="cuda"` by nccl too, with
    the GPU of the rank's number current. The environment has RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE.
    Function, arguments and result are pickled, and the module that runs as `__main__` is imported anew in each process.

    When a rank fails the others have seconds left. Raises what it raised, with its traceback as a note, and
    ParallelError for a rank that was killed or left without returning, and where there are not so many GPUs.
    """
    _check(size, device)
    work = _pack(function, arguments)
    listening = socket.create_server((_HOST, 0))
    port = listening.getsockname()[1]
    store = TCPStore(_HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    ranks: list[_Rank] = []
    try:
        for rank in range(size):
            # Listed before it is started: an interrupt between the two must find it.
            ranks.append(_prepare(rank, _Task(size, port, device, work)))
            ranks[-1].start()
        answers = _collect(ranks)
        if answers.failed:
            raise _choose_cause(answers, size)
        _end(ranks, _GRACE)
        return answers.value
    finally:
        _end(ranks, 0.0)
        del store


def _check(size: int, device: str) -> None:
    if size < 1:
        raise ParallelError("there are no ranks to start", expected="1 or more", found=str(size))
    if device not in BACKENDS:
        raise ParallelError("ranks cannot be joined there", expected=" or ".join(BACKENDS), found=device)
    if device == "cuda" and torch.cuda.device_count() < size:
        count = torch.cuda.device_count()
        raise ParallelError("there is no GPU for each rank", expected=f"{size} GPUs", found=str(count))


def _pack(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((function, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ParallelError(
            "what the ranks are to do cannot be handed to other processes",
            found=str(error),
            remedy="use a function of a module, and arguments that can be pickled",
        ) from error


def _prepare(rank: int, task: _Task) -> _Rank:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    return _Rank(context.Process(target=_serve, args=(rank, task, theirs), name=f"rank {rank}"), ours, theirs)


def _collect(ranks: list[_Rank]) -> _Answers:
    """Wait for every rank's answer; once one has failed, for `_GRACE` seconds."""
    answers, end = _Answers(), None
    waiting = dict(enumerate(ranks))
    while waiting and (end is None or time.monotonic() < end):
        watched = {each: rank for rank, it in waiting.items() for each in (it.connection, it.process.sentinel)}
        left = None if end is None else max(0.0, end - time.monotonic())
        for rank in {watched[ready] for ready in wait(list(watched), left)}:  # type: ignore[index]
            _receive(rank, waiting.pop(rank), answers)
        if answers.failed and end is None:
            end = time.monotonic() + _GRACE
    return answers


def _receive(rank: int, source: _Rank, answers: _Answers) -> None:
    try:
        error, value = pickle.loads(source.connection.recv_bytes())
    except (EOFError, OSError):
        source.process.join()
        answers.deaths[rank] = _describe_end(source.process.exitcode)
        return
    answers.done.add(rank)
    if error is not None:
        answers.errors[rank] = error
    elif rank == 0:
        answers.value = value


def _end(ranks: list[_Rank], seconds: float) -> None:
    """Let go of the ranks, which end by themselves where they are done, and kill those that have not in that time."""
    end = time.monotonic() + seconds
    for rank in ranks:
        rank.connection.close()
    while ranks:
        ranks[-1].end(end - time.monotonic())
        ranks.pop()


def _describe_end(code: int | None) -> str:
    if code is None or code >= 0:
        return f"left with exit code {code} before it had returned"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}"


def _choose_cause(answers: _Answers, size: int) -> Exception:
    """The failure that the others follow from: ranks die by themselves, and lose others when these are gone."""
    failures = {rank: f"{type(error).__name__}: {error}" for rank, error in answers.errors.items()} | answers.deaths
    for rank, end in answers.deaths.items():
        return ParallelError(
            f"a rank was {end}" if end.startswith("killed") else f"a rank {end}",
            where=f"rank {rank} of {size}",
            failures=dict(sorted(failures.items())),
        )
    own = [error for error in answers.errors.values() if not isinstance(error, ParallelError)]
    return (own or list(answers.errors.values()))[0]


def _serve(rank: int, task: _Task, connection: Connection) -> None:
    """One rank's process: join the others, do the work, answer, and stay until the others are done or soon after."""
    _leave_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    answer = _attempt(rank, task)
    sys.stdout.flush()
    connection.send_bytes(answer)
    if connection.poll(_LINGERING) and dist.is_initialized():
        dist.destroy_process_group()


def _leave_with_parent() -> None:
    """End this process as soon as the one that started it is gone, even while it waits for other ranks."""
    parent = mp.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _attempt(rank: int, task: _Task) -> bytes:
    try:
        group = _join(rank, task)
        function, arguments = pickle.loads(task.work)
        value = function(group, *arguments)
        return pickle.dumps((None, value if rank == 0 else None))
    except Exception as error:
        error.add_note(f"on rank {rank} of {task.size}:\n{traceback.format_exc()}")
        return _pack_error(error, rank, task.size)


def _pack_error(error: Exception, rank: int, size: int) -> bytes:
    """The error, or one of ours with its words where another process could not read it."""
    try:
        packed = pickle.dumps((error, None))
        pickle.loads(packed)
    except Exception:
        told = ParallelError("a rank failed", where=f"rank {rank} of {size}", found=f"{type(error).__name__}: {error}")
        return pickle.dumps((told, None))
    return packed


def _join(rank: int, task: _Task) -> Group:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": task.size, "LOCAL_WORLD_SIZE": task.size}
    os.environ.update({name: str(number) for name, number in places.items()})
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // task.size))
    if task.device == "cuda":
        torch.cuda.set_device(rank)
    store = TCPStore(_HOST, task.port, is_master=False)
    dist.init_process_group(BACKENDS[task.device], store=store, rank=rank, world_size=task.size)
    return Group(rank, task.size, dist.group.WORLD)
