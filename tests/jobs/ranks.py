"""Ranks that are well, fail, are killed, leave, and wait."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed as dist

from qload.errors import LayoutError, ParallelError
from qload.torch.parallel import Group, agree, agreeing


class UnreadableError(Exception):
    """An error that another process cannot read."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def describe(group: Group, value: torch.Tensor) -> tuple[int, dict[str, str], torch.Tensor]:
    """What a rank knows of itself, and the sum of what all have."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return dist.get_rank(), {name: os.environ[name] for name in names}, group.sum(value + group.rank)


def misbehave(group: Group, how: str) -> None:
    """Rank 1 does not stay; the others wait for it."""
    if group.rank == 1:
        _ENDINGS[how]()
        return
    group.sum(torch.ones(1))


def _raise_own() -> None:
    raise LayoutError("rank 1 is not well", unit=7)


def _raise_unreadable() -> None:
    raise UnreadableError("un", "readable")


_ENDINGS: dict[str, Callable[[], object]] = {
    "raise": _raise_own,
    "unreadable": _raise_unreadable,
    "exit": sys.exit,
    "vanish": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "return": lambda: None,
}


def stay(group: Group, port: int) -> None:
    """Tell who listens on a port that this rank is there, and wait: rank 0 asleep, the others for rank 0."""
    with socket.create_connection(("127.0.0.1", port)):
        if group.rank:
            group.sum(torch.ones(1))
        time.sleep(600)


def return_early(group: Group) -> int:
    """Rank 0 goes on long after the others have returned."""
    total = group.sum(torch.ones(1))
    if group.rank == 0:
        time.sleep(3)
    return int(total)


def return_unpicklable(group: Group) -> object:  # noqa: ARG001
    """A value that no other process can have."""
    return threading.Lock()


def come_this_far(group: Group, failing: dict[int, str]) -> str:
    """What an agreement says to a rank, of which those in `failing` fail with these words."""
    try:
        with agreeing(group):
            if group.rank in failing:
                raise LayoutError(failing[group.rank])
    except ParallelError as error:
        return f"{sorted(error.failures.items())} {error}"
    except LayoutError as error:
        return f"own: {error}"
    return "agreed"


def come_late(group: Group) -> float:
    """The seconds for which rank 0 waited for rank 1, in a group whose collectives may take one."""
    patient = Group(group.rank, group.size, dist.new_group(timeout=timedelta(seconds=1)))
    if group.rank == 1:
        time.sleep(3)
    begin = time.monotonic()
    agree(patient)
    return time.monotonic() - begin


def lose_another(group: Group) -> tuple[str, float]:
    """What an agreement says of a rank that is gone, and after how many seconds."""
    if group.rank == 1:
        os._exit(0)
    begin = time.monotonic()
    with contextlib.suppress(ParallelError):
        agree(group)
        return "agreed", 0.0
    try:
        agree(group, LayoutError("my own"))
    except LayoutError as error:
        raise LayoutError(f"{error} after {time.monotonic() - begin:.0f} s") from None
    return "nothing", 0.0
