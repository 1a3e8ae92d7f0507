"""Collectives and their gradients."""

import torch
from torch import Tensor

from qload.torch import parallel
from qload.torch.parallel import Group


def compute_pair(group: Group, name: str, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a pair makes of a leaf, its gradient under a loss weighted by `weight`, and the leaf afterwards."""
    leaf = x.clone().requires_grad_()
    made = getattr(parallel, name)(leaf, group)
    (made * weight).sum().backward()
    if leaf.grad is None:
        raise ValueError("no gradient came back")
    return made.detach(), leaf.grad, leaf.detach()


def maximize_row(group: Group, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`compute_pair` of this rank's row."""
    return compute_pair(group, "maximize", rows[group.rank], weight)


def hang(group: Group) -> None:
    """Wait for a rank that never comes."""
    if group.rank:
        group.sum(torch.ones(1))


def fail(group: Group) -> None:
    """Fail on one rank, while the others wait for it."""
    if group.rank == 1:
        raise ValueError("rank 1 is not well")
    group.sum(torch.ones(1))
