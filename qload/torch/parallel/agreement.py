"""Whether all ranks of a group came as far as one of them: a failure of any becomes an error on each."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from qload.errors import ParallelError, one_line
from qload.torch.parallel.groups import Group

_TEXT = 4096
"""The bytes that a rank's words may have."""
_PATIENCE = timedelta(days=365)
"""Longer than any rank takes: that one is gone is told by its connection, which is closed, and not by a clock."""


@contextmanager
def agreeing(group: Group) -> Iterator[None]:
    """A block that every rank of a group runs, after which all of them go on or none does, as `agree` says.

    A rank that fails inside leaves the block at once: what the ranks do together belongs outside.
    """
    try:
        yield
    except Exception as error:
        agree(group, error)
        raise
    agree(group)


def agree(group: Group, error: Exception | None = None) -> None:
    """Tell the group's other ranks that this one came this far, or failed with `error`, and hear the same of them.

    Takes as long as the slowest rank needs. Raises `error` itself where there is one, and ParallelError where other
    ranks have one: their words are its `failures`. Raises ParallelError within seconds where another rank is gone.
    """
    try:
        failures = _exchange(group, "" if error is None else _describe(error))
    except ParallelError:
        if error is None:
            raise
        failures = {}
    if error is not None:
        raise error
    if failures:
        raise _fail(group, failures)


def _exchange(group: Group, words: str) -> Mapping[int, str]:
    """What the ranks say that say anything, by rank."""
    if group.size == 1:
        return {}
    table = torch.zeros(group.size, _TEXT, dtype=torch.uint8, device=_choose_device(group))
    encoded = words.encode(errors="replace")[:_TEXT]
    table[group.rank, : len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    options = dist.AllreduceOptions()
    options.timeout = _PATIENCE
    group.communicate(lambda handle: handle.allreduce([table], options).wait())
    texts = {rank: _decode(row) for rank, row in enumerate(table.cpu())}
    return {rank: text for rank, text in texts.items() if text}


def _choose_device(group: Group) -> torch.device:
    """A device whose tensors the group's backend takes: the CPU where it can."""
    types = group.handle._device_types if group.handle is not None else []
    cpu = torch.device("cpu")
    return cpu if cpu in types or not types else types[0]


def _decode(row: Tensor) -> str:
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore")


def _describe(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


def _fail(group: Group, failures: Mapping[int, str]) -> ParallelError:
    return ParallelError(
        f"{len(failures)} of the other ranks failed" if len(failures) > 1 else "another rank failed",
        where=f"rank {group.rank} of {group.size}",
        found="; ".join(f"rank {rank}: {text}" for rank, text in failures.items()),
        failures=failures,
    )
