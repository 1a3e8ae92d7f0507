"""What ranks that divide a layer's inputs compute together, found without other processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qload.torch import Layer


class DisagreementError(Exception):
    """Ranks that do not ask alike for what they are to agree on: real ones would wait for each other for ever."""


class _Memory:
    """Answers a rank's hook with what all ranks agreed on so far, and keeps what it asked."""

    def __init__(self, agreed: Sequence[Tensor]) -> None:
        self.agreed = agreed
        self.asked: list[Tensor] = []

    def __call__(self, greatest: Tensor) -> Tensor:
        number = len(self.asked)
        self.asked.append(greatest)
        return self.agreed[number] if number < len(self.agreed) else greatest


def sum_shares(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """The sum of what the layers of all ranks make of their shares of x [..., in_features], without a bias.

    The ranks compute one after another, and again whenever all have asked for something more to agree on. Raises
    DisagreementError where not all have, or not in the same shape.
    """
    shares, agreed = x.chunk(len(layers), -1), list[Tensor]()
    while True:
        memories = [_Memory(agreed) for _ in layers]
        outputs = [_compute(layer, share, each) for layer, share, each in zip(layers, shares, memories, strict=True)]
        if all(len(each.asked) == len(agreed) for each in memories):
            return torch.stack(outputs).sum(0)
        agreed.append(_agree([each.asked[len(agreed) :] for each in memories]))


def _compute(layer: Layer, x: Tensor, memory: _Memory) -> Tensor:
    (piece,) = layer.pieces()
    piece.agree = memory
    return layer.hooks.apply(piece, x, None)


def _agree(asked: Sequence[Sequence[Tensor]]) -> Tensor:
    """The greatest of what each rank asked next."""
    following = [each[0] for each in asked if each]
    if len(following) < len(asked) or len({each.shape for each in following}) > 1:
        raise DisagreementError("some ranks ask to agree on something that others do not ask for")
    return torch.stack(following).amax(0)
