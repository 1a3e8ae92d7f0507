"""Work on a weight some rows at a time, so that what is computed on the way takes little memory."""

from collections.abc import Callable

import torch
from torch import Tensor

STRIP = 1 << 20
"""The elements of a strip, about."""


def quantize_by_strips(weight: Tensor, unit: int, quantize: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `quantize` makes of strips of whole units of `unit` rows, each tensor's put together along its first axis.

    weight [rows, columns]; rows of different units must not depend on each other.
    """
    rows = max(1, STRIP // max(1, weight.shape[1]) // unit) * unit
    made = [quantize(strip) for strip in weight.split(rows)]
    return {name: torch.cat([each[name] for each in made]) for name in made[0]} if len(made) > 1 else made[0]
