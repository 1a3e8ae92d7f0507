"""A tensor's bits, for the watches that look at its numbers."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qload.declare import Facts, ParameterKind
from qload.findings import Finding
from qload.torch.dtypes import dtype_code
from qload.values import Watch, find_width, make_watches

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_values(
    kind: ParameterKind, bounds: tuple[int, int] | None, facts: Facts, tensor: Tensor, where: str, file: str
) -> Iterator[Finding]:
    """What is wrong with the values of a tensor of that kind; bounds and facts are those of its declaration."""
    for watch in watch_values(kind, bounds, facts, tensor):
        yield from watch.judge(where, file)


def watch_values(
    kind: ParameterKind, bounds: tuple[int, int] | None, facts: Facts, tensor: Tensor
) -> tuple[Watch, ...]:
    """The watches of such a tensor, which have seen it."""
    if not tensor.numel():
        return ()
    code = dtype_code(tensor.dtype)
    watches = make_watches(kind, bounds, facts, code)
    if watches:
        width = find_width(facts, code)
        bits = tensor if width is None else tensor.view(_INTEGERS[width])
        for watch in watches:
            watch.see(bits)
    return watches
