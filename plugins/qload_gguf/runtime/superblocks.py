"""The K types: blocks of 256 values, whose groups of 16 or 32 have quantized scales of their own."""

from collections.abc import Callable

import torch
from torch import Tensor

from qload_gguf.runtime.pieces import cut, half, planes, spread


def decode_q2_k(blocks: Tensor) -> Tensor:
    scales, low, d, least = cut(blocks, 16, 64, 2, 2)
    scale, offset = half(d) * (scales & 15), half(least) * (scales >> 4)
    return _subtract(spread(scale, planes(low, 2, 32)), offset)


def decode_q3_k(blocks: Tensor) -> Tensor:
    high, low, scales, d = cut(blocks, 32, 64, 12, 2)
    four, two = cut(scales, 8, 4)
    scale = half(d) * ((planes(four, 4) | planes(two, 2) << 4).to(torch.int8) - 32)
    # A bit that is set takes nothing away.
    values = planes(low, 2, 32).to(torch.int8) - ((planes(high, 1) ^ 1) << 2).to(torch.int8)
    return spread(scale, values)


def decode_q4_k(blocks: Tensor) -> Tensor:
    d, least, scales, low = cut(blocks, 2, 2, 12, 128)
    return _decode_with_offsets(d, least, scales, planes(low, 4, 32))


def decode_q5_k(blocks: Tensor) -> Tensor:
    d, least, scales, high, low = cut(blocks, 2, 2, 12, 32, 128)
    return _decode_with_offsets(d, least, scales, planes(low, 4, 32) | planes(high, 1) << 4)


def decode_q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, d = cut(blocks, 128, 64, 16, 2)
    values = (planes(low, 4, 64) | planes(high, 2, 32) << 4).to(torch.int8) - 32
    return spread(half(d) * scales.contiguous().view(torch.int8), values)


def _decode_with_offsets(d: Tensor, least: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """Eight groups, with a scale and an offset of six bits each, packed into twelve bytes.

    The first four of each are the low six bits of a byte; of the last four the low bits are in the last bytes, and
    the high ones above the first.
    """
    first, second, rest = cut(scales, 4, 4, 4)
    scale = torch.cat([first & 63, (rest & 15) | (first >> 2 & 48)], -1)
    offset = torch.cat([second & 63, (rest >> 4) | (second >> 2 & 48)], -1)
    return _subtract(spread(half(d) * scale, values), half(least) * offset)


def _subtract(values: Tensor, offset: Tensor) -> Tensor:
    """values - offset, with an offset [n, groups] for each of the values' groups."""
    grouped: Tensor = values.unflatten(1, (offset.shape[1], -1))
    return grouped.sub_(offset.unsqueeze(-1)).flatten(1)


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q2_K": decode_q2_k,
    "Q3_K": decode_q3_k,
    "Q4_K": decode_q4_k,
    "Q5_K": decode_q5_k,
    "Q6_K": decode_q6_k,
}
