"""Small floating-point formats that torch computes nothing in: E2M1, E2M3 and E3M2 values, and E8M0 scales.

Source: the OCP Microscaling Formats specification, 5.3.2, 5.3.3 and 5.4.1.
"""

import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of E2M1 by their three bits; the fourth is the sign."""


def decode_e2m1(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes of 0 to 15, uint8, as values of `dtype`; any float holds them exactly."""
    table = torch.tensor((*E2M1, *(-value for value in E2M1)), dtype=dtype, device=codes.device)
    return table[codes.int()]


def round_e2m1(x: Tensor) -> Tensor:
    """x rounded to the nearest value of E2M1, ties to even, in its own dtype; beyond 6 it is 6."""
    size = x.abs()
    fine, middle, coarse = (size * 2).round() / 2, size.round(), (size / 2).round() * 2
    rounded = torch.where(size < 2, fine, torch.where(size < 4, middle, coarse))
    return rounded.clamp_max(E2M1[-1]).copysign(x)


def encode_e2m1(x: Tensor) -> Tensor:
    """The codes, uint8, of x rounded as by `round_e2m1`."""
    rounded = round_e2m1(x)
    size = rounded.abs()
    codes = torch.where(size < 2, size * 2, torch.where(size < 4, size + 2, size / 2 + 4)).to(torch.uint8)
    return codes + 8 * torch.signbit(rounded)


def decode_float(codes: Tensor, exponent: int, mantissa: int, dtype: torch.dtype, *, signed: bool = True) -> Tensor:
    """Codes, uint8, of floats of that many bits of exponent and mantissa, without infinities, as values of `dtype`."""
    bias, fractions = (1 << (exponent - 1)) - 1, 1 << mantissa
    small = [fraction / fractions * 2.0 ** (1 - bias) for fraction in range(fractions)]
    normal = [(1 + f / fractions) * 2.0 ** (e - bias) for e in range(1, 1 << exponent) for f in range(fractions)]
    sizes = small + normal
    table = torch.tensor(sizes + [-size for size in sizes] * signed, dtype=dtype, device=codes.device)
    return table[codes.int()]


def round_float(x: Tensor, exponent: int, mantissa: int) -> Tensor:
    """x rounded to the nearest float of that many bits, without infinities, ties to even, in its own dtype.

    Beyond the greatest it is the greatest.
    """
    bias = (1 << (exponent - 1)) - 1
    greatest = (2 - 2.0**-mantissa) * 2.0 ** ((1 << exponent) - 1 - bias)
    step = torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent.sub(1).clamp_min(1 - bias) - mantissa)
    return ((x / step).round() * step).clamp(-greatest, greatest)


def decode_e8m0(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Exponents of two, uint8 with 127 added, as values of `dtype`; 255 is NaN."""
    return codes.view(torch.float8_e8m0fnu).to(dtype)
