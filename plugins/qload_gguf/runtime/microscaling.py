"""Blocks of four-bit floats: MXFP4, whose scales are powers of two, and NVFP4, whose scales are eight-bit floats.

ggml keeps the doubles of E2M1's values, and so its scales are halves.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from qload.torch.floats import decode_e2m1
from qload_gguf.runtime.pieces import cut, planes, spread


def decode_mxfp4(blocks: Tensor) -> Tensor:
    exponent, low = cut(blocks, 1, 16)
    return _half_power(exponent) * _doubles(planes(low, 4))


def decode_nvfp4(blocks: Tensor) -> Tensor:
    scales, low = cut(blocks, 4, 32)
    return spread(_half_e4m3(scales), _doubles(planes(low, 4, 8)))


def _doubles(codes: Tensor) -> Tensor:
    # Adding zero leaves one zero of the two, as ggml's whole numbers have.
    return decode_e2m1(codes, torch.float32) * 2 + 0.0


def _half_power(exponent: Tensor) -> Tensor:
    """2 ** (exponent - 128), whose least two are not normal numbers; ggml has no NaN among them."""
    stored = exponent.to(torch.int32)
    bits = torch.where(stored < 2, 0x00200000 << stored.clamp_max(1), (stored - 1) << 23)
    return bits.view(torch.float32)


def _half_e4m3(codes: Tensor) -> Tensor:
    """Half of an E4M3 value without its sign; where that would be NaN, ggml has zero for 0x7F, and 480 for 0xFF."""
    value = (codes & 0x7F).view(torch.float8_e4m3fn).float() * 0.5
    beyond = torch.where(codes == 0x7F, 0.0, 240.0)
    return torch.where(value.isnan(), beyond, value)


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {"MXFP4": decode_mxfp4, "NVFP4": decode_nvfp4}
