"""Blocks of one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and the one-bit types."""

from collections.abc import Callable

import torch
from torch import Tensor

from qload_gguf.runtime.pieces import bits, cut, half, planes


def decode_q4_0(blocks: Tensor) -> Tensor:
    d, low = cut(blocks, 2, 16)
    return half(d) * (planes(low, 4).to(torch.int8) - 8)


def decode_q4_1(blocks: Tensor) -> Tensor:
    d, least, low = cut(blocks, 2, 2, 16)
    return half(d) * planes(low, 4) + half(least)


def decode_q5_0(blocks: Tensor) -> Tensor:
    d, high, low = cut(blocks, 2, 4, 16)
    return half(d) * ((planes(low, 4) | bits(high) << 4).to(torch.int8) - 16)


def decode_q5_1(blocks: Tensor) -> Tensor:
    d, least, high, low = cut(blocks, 2, 2, 4, 16)
    return half(d) * (planes(low, 4) | bits(high) << 4) + half(least)


def decode_q8_0(blocks: Tensor) -> Tensor:
    d, values = cut(blocks, 2, 32)
    return half(d) * values.view(torch.int8)


def decode_signs(blocks: Tensor) -> Tensor:
    """One bit for each value: the scale, or its negative where the bit is not set."""
    d, signs = cut(blocks, 2, blocks.shape[1] - 2)
    return half(d) * (2 * bits(signs).to(torch.int8) - 1)


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": decode_q4_0,
    "Q4_1": decode_q4_1,
    "Q5_0": decode_q5_0,
    "Q5_1": decode_q5_1,
    "Q8_0": decode_q8_0,
    "Q1_0": decode_signs,
    "Q1_0_g32": decode_signs,
}
