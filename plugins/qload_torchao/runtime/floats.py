"""Six-bit floats, a byte each, and rounding to any small float.

Source: the OCP Microscaling Formats specification, 5.3.2; torchao keeps the codes in the low six bits of a byte.
"""

import torch
from torch import Tensor


def decode_fp6(codes: Tensor, exponent_bits: int, mantissa_bits: int, dtype: torch.dtype) -> Tensor:
    """Codes of 0 to 63, uint8, as values of `dtype`; any float holds them exactly."""
    values = [_decode(code, exponent_bits, mantissa_bits) for code in range(32)]
    table = torch.tensor([*values, *(-value for value in values)], dtype=dtype, device=codes.device)
    return table[(codes & 63).int()]


def round_float(x: Tensor, exponent_bits: int, mantissa_bits: int) -> Tensor:
    """x rounded to the nearest value of a float with those bits, ties to even; beyond the greatest it is that."""
    least = 2 - (1 << (exponent_bits - 1))
    _, exponent = torch.frexp(x)
    step = torch.exp2((exponent - 1).clamp_min(least).to(x.dtype) - mantissa_bits)
    greatest = _decode(31, exponent_bits, mantissa_bits)
    return ((x / step).round() * step).clamp(-greatest, greatest)


def _decode(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    exponent, mantissa = code >> mantissa_bits, (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    # Without an implied one below the least exponent.
    power = max(exponent, 1) - bias
    return float((mantissa + (exponent > 0)) * 2.0**power)
