"""Blocks of one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and the one-bit types."""

from collections.abc import Callable

import torch
from torch import Tensor

from qload_gguf.runtime.pieces import Lay, Parts, bits, cut, half, planes


def split_q4_0(blocks: Tensor, lay: Lay) -> Parts:
    d, low = cut(blocks, 2, 16)
    return Parts(lay(low, 16), 4, half(d), 8)


def split_q4_1(blocks: Tensor, lay: Lay) -> Parts:
    d, least, low = cut(blocks, 2, 2, 16)
    return Parts(lay(low, 16), 4, half(d), 0, half(least))


def split_q5_0(blocks: Tensor) -> Parts:
    d, high, low = cut(blocks, 2, 4, 16)
    return Parts(planes(low, 4) | bits(high) << 4, 5, half(d), 16)


def split_q5_1(blocks: Tensor) -> Parts:
    d, least, high, low = cut(blocks, 2, 2, 4, 16)
    return Parts(planes(low, 4) | bits(high) << 4, 5, half(d), 0, half(least))


def split_q8_0(blocks: Tensor) -> Parts:
    d, values = cut(blocks, 2, 32)
    return Parts(values.view(torch.int8), 8, half(d))


def split_signs(blocks: Tensor) -> Parts:
    """One bit for each value: the scale, or its negative where the bit is not set."""
    d, signs = cut(blocks, 2, blocks.shape[1] - 2)
    return Parts(bits(signs) << 1, 2, half(d), 1)


FOUR_BITS: dict[str, Callable[[Tensor, Lay], Parts]] = {"Q4_0": split_q4_0, "Q4_1": split_q4_1}
OTHERS: dict[str, Callable[[Tensor], Parts]] = {
    "Q5_0": split_q5_0,
    "Q5_1": split_q5_1,
    "Q8_0": split_q8_0,
    "Q1_0": split_signs,
    "Q1_0_g32": split_signs,
}
