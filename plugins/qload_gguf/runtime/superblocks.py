"""The K types: blocks of 256 values, whose groups of 16 or 32 have quantized scales of their own."""

from collections.abc import Callable

import torch
from torch import Tensor

from qload_gguf.runtime.pieces import Lay, Parts, cut, half, planes


def split_q2_k(blocks: Tensor) -> Parts:
    scales, low, d, least = cut(blocks, 16, 64, 2, 2)
    return Parts(planes(low, 2, 32), 2, half(d) * (scales & 15), 0, -(half(least) * (scales >> 4)))


def split_q3_k(blocks: Tensor) -> Parts:
    high, low, scales, d = cut(blocks, 32, 64, 12, 2)
    four, two = cut(scales, 8, 4)
    scale = half(d) * ((planes(four, 4) | planes(two, 2) << 4).to(torch.int8) - 32)
    return Parts(planes(low, 2, 32) | planes(high, 1) << 2, 3, scale, 4)


def split_q4_k(blocks: Tensor, lay: Lay) -> Parts:
    d, least, scales, low = cut(blocks, 2, 2, 12, 128)
    scale, offset = _scale(d, least, scales)
    return Parts(lay(low, 32), 4, scale, 0, offset)


def split_q5_k(blocks: Tensor) -> Parts:
    d, least, scales, high, low = cut(blocks, 2, 2, 12, 32, 128)
    scale, offset = _scale(d, least, scales)
    return Parts(planes(low, 4, 32) | planes(high, 1) << 4, 5, scale, 0, offset)


def split_q6_k(blocks: Tensor) -> Parts:
    low, high, scales, d = cut(blocks, 128, 64, 16, 2)
    values = planes(low, 4, 64) | planes(high, 2, 32) << 4
    return Parts(values, 6, half(d) * scales.contiguous().view(torch.int8), 32)


def _scale(d: Tensor, least: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Of eight groups, a scale and an offset of six bits each, packed into twelve bytes.

    The first four of each are the low six bits of a byte; of the last four the low bits are in the last bytes, and
    the high ones above the first.
    """
    first, second, rest = cut(scales, 4, 4, 4)
    scale = torch.cat([first & 63, (rest & 15) | (first >> 2 & 48)], -1)
    offset = torch.cat([second & 63, (rest >> 4) | (second >> 2 & 48)], -1)
    return half(d) * scale, -(half(least) * offset)


FOUR_BITS: dict[str, Callable[[Tensor, Lay], Parts]] = {"Q4_K": split_q4_k}
OTHERS: dict[str, Callable[[Tensor], Parts]] = {
    "Q2_K": split_q2_k,
    "Q3_K": split_q3_k,
    "Q5_K": split_q5_k,
    "Q6_K": split_q6_k,
}
