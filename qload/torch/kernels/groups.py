"""Tokens in groups: sorted by the expert that each is for."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """How rows are divided among the experts of a stack: one expert's after another's, and last those of none of them.

    ends: int32 [experts], the number of rows up to each expert's last; experts [rows], in the dtype of the ids, which
    each row is for, of those of none that of some one.
    """

    ends: Tensor
    experts: Tensor


def sort_rows(experts: Tensor, count: int) -> tuple[Tensor, Groups]:
    """The order [rows] that sorts rows by their experts [rows], numbers below `count`, and what it makes of them.

    Rows of `count` itself are of none. Nothing waits for the device: sizes are those of `experts`.
    """
    found, order = experts.sort(stable=True)
    numbers = torch.arange(count, device=experts.device, dtype=experts.dtype)
    ends = torch.searchsorted(found, numbers, right=True, out_int32=True)
    return order, Groups(ends, found.clamp(max=count - 1))
