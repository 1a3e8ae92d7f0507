"""Small floating-point formats that torch computes nothing in: E2M1 and E2M3 values, and E8M0 scales.

Source: the OCP Microscaling Formats specification, 5.3.2, 5.3.3 and 5.4.1.
"""

import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of E2M1 by their three bits; the fourth is the sign."""

E2M3_MAX = 7.5
E2M3 = (*(step / 8 for step in range(8)), *((1 + step / 8) * 2**power for power in range(3) for step in range(8)))
"""The magnitudes of E2M3 by their five bits; the sixth is the sign."""


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


def decode_e2m3(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes of 0 to 63, uint8, as values of `dtype`: a sign, two bits of exponent and three of mantissa."""
    table = torch.tensor((*E2M3, *(-value for value in E2M3)), dtype=dtype, device=codes.device)
    return table[codes.int()]


def round_e2m3(x: Tensor) -> Tensor:
    """x rounded to the nearest value of E2M3, ties to even, in its own dtype; beyond 7.5 it is 7.5."""
    size = x.abs()
    fine, middle, coarse = (size * 8).round() / 8, (size * 4).round() / 4, (size * 2).round() / 2
    rounded = torch.where(size < 2, fine, torch.where(size < 4, middle, coarse))
    return rounded.clamp_max(E2M3_MAX).copysign(x)


def decode_e8m0(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Exponents of two, uint8 with 127 added, as values of `dtype`; 255 is NaN."""
    return codes.view(torch.float8_e8m0fnu).to(dtype)
