"""Blocks of -1, 0 and 1: TQ1_0, five to a byte as digits to the base of three, and TQ2_0, of two bits each."""

from collections.abc import Callable

import torch
from torch import Tensor

from qload_gguf.runtime.pieces import Parts, cut, half, planes


def split_tq1_0(blocks: Tensor) -> Parts:
    first, second, last, d = cut(blocks, 32, 16, 4, 2)
    digits = [_digits(first, 5), _digits(second, 5), _digits(last, 4)]
    return Parts(torch.cat(digits, -1).to(torch.uint8), 2, half(d), 1)


def split_tq2_0(blocks: Tensor) -> Parts:
    low, d = cut(blocks, 64, 2)
    return Parts(planes(low, 2, 32), 2, half(d), 1)


def _digits(part: Tensor, count: int) -> Tensor:
    """Digits of each byte, read as a fraction of 256: the first digits of all bytes, then the second ones."""
    powers = torch.tensor([3**place for place in range(count)], dtype=torch.uint8, device=part.device)
    shifted = part.unsqueeze(1) * powers[:, None]
    return ((shifted.to(torch.int16) * 3) >> 8).flatten(1)


OTHERS: dict[str, Callable[[Tensor], Parts]] = {"TQ1_0": split_tq1_0, "TQ2_0": split_tq2_0}
