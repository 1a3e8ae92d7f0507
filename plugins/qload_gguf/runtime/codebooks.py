"""The IQ types: indices into codebooks of four or eight values, with signs and scales; and IQ4, of sixteen levels.

The codebooks are gguf-py's, which has them from ggml-common.h.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from qload.torch.arithmetic import write_out
from qload_gguf.runtime.pieces import bits, cut, half, nibbles, planes, spread, words

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of IQ4's codes."""
_DELTA = 0.125


def decode_iq2_xxs(blocks: Tensor) -> Tensor:
    d, rest = cut(blocks, 2, 64)
    pairs = rest.reshape(-1, 8, 8)
    settings = words(pairs[..., 4:], 4)[..., 0]
    scale = half(d) * (0.5 + (settings >> 28).float()) * 0.25
    values = _look_up("IQ2_XXS", pairs[..., :4]) * _expand_signs(settings)
    return spread(scale, values.flatten(1))


def decode_iq2_xs(blocks: Tensor) -> Tensor:
    d, rest, scales = cut(blocks, 2, 64, 8)
    codes = words(rest, 2)
    values = _look_up("IQ2_XS", codes & 511) * _signs(_with_parity(codes >> 9))
    return spread(_quarter(d, scales), values.flatten(1))


def decode_iq2_s(blocks: Tensor) -> Tensor:
    d, low, signs, high, scales = cut(blocks, 2, 32, 32, 8, 8)
    codes = low.long() | _each_byte(high, 2).long() << 8
    values = _look_up("IQ2_S", codes) * _signs(signs)
    return spread(_quarter(d, scales), values.flatten(1))


def decode_iq3_xxs(blocks: Tensor) -> Tensor:
    d, codes, rest = cut(blocks, 2, 64, 32)
    settings = words(rest, 4)
    scale = half(d) * (0.5 + (settings >> 28).float()) * 0.5
    values = _look_up("IQ3_XXS", codes).flatten(1) * _expand_signs(settings).flatten(1)
    return spread(scale, values)


def decode_iq3_s(blocks: Tensor) -> Tensor:
    d, low, high, signs, scales = cut(blocks, 2, 64, 8, 32, 4)
    codes = low.long() | bits(high).long() << 8
    values = _look_up("IQ3_S", codes).flatten(1) * _signs(signs).flatten(1)
    return spread(half(d) * (1 + 2 * nibbles(scales)), values)


def decode_iq1_s(blocks: Tensor) -> Tensor:
    d, low, rest = cut(blocks, 2, 32, 16)
    high = words(rest, 2)
    scale = half(d) * (2 * (high >> 12 & 7) + 1)
    shifts = torch.arange(0, 12, 3, device=blocks.device)
    codes = low.long() | (high.unsqueeze(-1) >> shifts & 7).flatten(1) << 8
    delta = torch.where(high & 0x8000 == 0, _DELTA, -_DELTA).repeat_interleave(4, -1)
    return spread(scale, (_look_up("IQ1_S", codes) + delta.unsqueeze(-1)).flatten(1))


def decode_iq1_m(blocks: Tensor) -> Tensor:
    """The one type whose float16 scale is stored in parts: four bits above each word of scales."""
    low, rest, scales = cut(blocks, 32, 16, 8)
    high, packed = nibbles(rest), words(scales, 2)
    tops = (packed >> 12) << torch.arange(0, 16, 4, device=blocks.device)
    d = tops.sum(-1, keepdim=True).to(torch.int32).to(torch.int16).view(torch.float16).float()
    shifts = torch.arange(0, 12, 3, device=blocks.device)
    scale = d * (2 * (packed.unsqueeze(-1) >> shifts & 7).flatten(1) + 1)
    codes = low.long() | (high & 7).long() << 8
    delta = torch.where(high & 8 == 0, _DELTA, -_DELTA)
    return spread(scale, (_look_up("IQ1_M", codes) + delta.unsqueeze(-1)).flatten(1))


def decode_iq4_nl(blocks: Tensor) -> Tensor:
    d, low = cut(blocks, 2, 16)
    return half(d) * _level(planes(low, 4))


def decode_iq4_xs(blocks: Tensor) -> Tensor:
    d, high, four, low = cut(blocks, 2, 2, 4, 128)
    shifts = torch.arange(0, 16, 2, device=blocks.device)
    two = (words(high, 2) >> shifts & 3).to(torch.uint8)
    scale = half(d) * ((nibbles(four) | two << 4).to(torch.int8) - 32)
    return spread(scale, _level(planes(low, 4, 16)))


def _quarter(d: Tensor, scales: Tensor) -> Tensor:
    return half(d) * (0.5 + nibbles(scales).float()) * 0.25


def _each_byte(part: Tensor, width: int) -> Tensor:
    """The values of `width` bits of each byte, low ones first, byte by byte."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=part.device)
    return (part.unsqueeze(-1) >> shifts & ((1 << width) - 1)).flatten(-2)


def _expand_signs(settings: Tensor) -> Tensor:
    """Signs of four times eight values, of seven bits each in a word: [n, words] into [n, words * 4, 8]."""
    shifts = torch.arange(0, 28, 7, device=settings.device)
    return _signs(_with_parity((settings.unsqueeze(-1) >> shifts & 127).flatten(1)))


def _with_parity(seven: Tensor) -> Tensor:
    """Seven bits with the eighth that makes their number even."""
    parity = seven ^ seven >> 4
    parity = parity ^ parity >> 2
    parity = (parity ^ parity >> 1) & 1
    return (seven | parity << 7).to(torch.uint8)


def _signs(part: Tensor) -> Tensor:
    """1, or -1 where a bit is set: bytes [n, bytes] into [n, bytes, 8]."""
    each: Tensor = bits(part).unflatten(-1, (-1, 8))
    return 1 - 2 * each.float()


def _look_up(name: str, codes: Tensor) -> Tensor:
    """Entries of a codebook: codes [n, ...] into [n, k, 4 or 8]."""
    return _codebook(name, codes.device)[codes.flatten(1).long()]


def _level(codes: Tensor) -> Tensor:
    levels = write_out([level - LEVELS[0] for level in LEVELS], codes.device) + LEVELS[0]
    return levels.float()[codes.long()]


@cache
def _codebook(name: str, device: torch.device) -> Tensor:
    quants = import_module("gguf.quants")
    kind = getattr(quants, name)
    kind.init_grid()
    return torch.from_numpy(kind.grid.copy()).reshape(kind.grid_shape).to(device)


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "IQ1_M": decode_iq1_m,
    "IQ1_S": decode_iq1_s,
    "IQ2_S": decode_iq2_s,
    "IQ2_XS": decode_iq2_xs,
    "IQ2_XXS": decode_iq2_xxs,
    "IQ3_S": decode_iq3_s,
    "IQ3_XXS": decode_iq3_xxs,
    "IQ4_NL": decode_iq4_nl,
    "IQ4_XS": decode_iq4_xs,
}
