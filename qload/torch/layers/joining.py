"""What the parts of a layer become together."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def join_biases(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The biases of parts that are held apart, one after another; None where they have none."""
    present = [part for part in parts if part is not None]
    return torch.cat(present, -1) if present else None


def pad(tensor: Tensor, dim: int, count: int) -> Tensor:
    """The tensor with `count` zeros after it along `dim`."""
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1 - dim) + (0, count)) if count else tensor
