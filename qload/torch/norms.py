"""Rows of trainable tables that are kept from growing, as `torch.nn.Embedding` does with `max_norm`."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qload.torch.parallel import Group

_EPSILON = 1e-7
"""What torch adds to a norm before it divides by it."""


@dataclass(frozen=True, slots=True)
class NormBound:
    """The greatest norm that a row may have which is looked up, and the norm's power."""

    greatest: float
    power: float = 2.0

    @torch.no_grad()
    def impose(self, weight: Tensor, rows: Tensor, group: Group | None = None) -> None:
        """Scale rows [n] of a table down in place that have a greater norm.

        Of rows whose columns a `group` divides, the norm is that of all columns.
        """
        if group is None:
            torch.embedding_renorm_(weight.detach(), rows, self.greatest, self.power)
            return
        chosen = rows.unique()
        share = weight[chosen].float()
        norms = self._measure(share, group)
        factors = torch.where(norms > self.greatest, self.greatest / (norms + _EPSILON), torch.ones_like(norms))
        weight.index_copy_(0, chosen, (share * factors[:, None]).to(weight.dtype))

    def _measure(self, share: Tensor, group: Group) -> Tensor:
        if math.isinf(self.power):
            return group.max(share.abs().amax(1))
        return group.sum((share.abs() ** self.power).sum(1)) ** (1 / self.power)
