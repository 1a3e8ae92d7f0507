"""Look-ups in plain tensors, of which each rank of a group has a share."""

from typing import Any

import torch
from torch import Tensor

from qload.torch.lookups import divide_table, embed, embed_prompts
from qload.torch.parallel import Group


def look_shares_up(group: Group, shares: list[Tensor], ids: Tensor, options: dict[str, Any]) -> Tensor:
    """The rows of a table of which each rank is handed its share."""
    return embed(ids, divide_table(shares[group.rank], group=group, **options))


def look_scaled_up(
    group: Group, values: Tensor, scale: Tensor, ids: Tensor, stored: torch.dtype, dtype: torch.dtype, dim: int
) -> Tensor:
    """Scaled rows of a table of which each rank takes its share; 8-bit floats cannot be handed to another process."""
    own = group.take(values.to(stored), dim)
    scale = group.take(scale, 0) if dim == 0 else scale
    return embed(ids, divide_table(own, group=group, scale=scale, sharding_dim=dim), dtype=dtype)


def look_prompts_up(
    group: Group, shares: list[Tensor], ids: Tensor, tasks: Tensor, prompts: Tensor, options: dict[str, Any]
) -> Tensor:
    """Rows of a divided table, and of the prompts that every rank has."""
    return embed_prompts(ids, tasks, divide_table(shares[group.rank], group=group, **options), prompts, 2)


def train_shares(group: Group, shares: list[Tensor], ids: Tensor, weight: Tensor, dim: int) -> Tensor | None:
    """The gradient of this rank's share under a loss weighted by `weight`."""
    leaf = shares[group.rank].clone().requires_grad_()
    (embed(ids, divide_table(leaf, group=group, sharding_dim=dim)) * weight).sum().backward()
    return leaf.grad
