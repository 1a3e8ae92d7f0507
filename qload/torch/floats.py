"""Small floating-point formats: E2M1, E2M3 and E3M2, which torch has not, E4M3 and E5M2, and E8M0 scales.

Source: the OCP Microscaling Formats specification, 5.3.2, 5.3.3 and 5.4.1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_DTYPES = {(4, 3): torch.float8_e4m3fn, (5, 2): torch.float8_e5m2}
_MAGNITUDE, _SIGN, _EXPONENT = 0x7F, -0x8000, 0x7F800000
"""The bits of an E4M3 value but for its sign; the sign of a word of 16 bits; the exponent of a float32."""
_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The magnitudes of E2M1 by their three bits; the fourth is the sign."""


def decode_e2m1(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes of 0 to 15, uint8, as values of `dtype`; any float holds them exactly."""
    return decode_float(codes, 2, 1, dtype)


def decode_e2m1_pairs(pairs: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes [..., n] of two codes, the first one low, as values of `dtype`, of 16 or 32 bits, [..., 2 n]."""
    codes = torch.arange(256, dtype=torch.uint8, device=pairs.device)
    table = decode_e2m1(torch.stack((codes & 15, codes >> 4), -1), dtype)
    return _look_up(table.view(_WORDS[2 * dtype.itemsize]).flatten(), pairs).view(dtype)


def decode_bytes(values: Tensor, dtype: torch.dtype) -> Tensor:
    """8-bit floats as a wider `dtype`, which holds them; by bits, or by a table, where torch converts them slowly."""
    if values.device.type != "cpu" or dtype.itemsize < 2:
        return values.to(dtype)
    # What compilers are given must not depend on values.
    if values.dtype == torch.float8_e4m3fn and not torch.compiler.is_compiling() and _are_numbers(values):
        return _move_bits(values).to(dtype)
    table = torch.arange(256, dtype=torch.uint8).view(values.dtype).to(dtype)
    return _look_up(table.view(_WORDS[dtype.itemsize]), values.view(torch.uint8)).view(dtype)


def _are_numbers(values: Tensor) -> bool:
    """Whether none of E4M3 is NaN, which all ones are, whatever the sign."""
    return not values.numel() or int(values.view(torch.uint8).bitwise_and(_MAGNITUDE).amax()) < _MAGNITUDE


def _move_bits(values: Tensor) -> Tensor:
    """Numbers of E4M3 as bfloat16, bit by bit: to its places, and times what its exponents count from, over E4M3's.

    Torch converts one value after another, and looks them up on one core; this takes vectors, and all cores.
    """
    words = values.view(torch.int8).to(torch.int16).bitwise_left_shift_(4).bitwise_and_(_SIGN | _MAGNITUDE << 4)
    return words.view(torch.bfloat16).mul_(2.0 ** (127 - 7))


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """table [256] at each byte. As words, for floats are no faster; contiguous, so that it can be viewed as others."""
    return table.index_select(0, index.flatten().int()).view(index.shape)


def encode_e2m1(x: Tensor) -> Tensor:
    """The codes of E2M1, uint8, of x rounded to the nearest, ties to even; beyond 6 it is 6.

    Magnitudes are a half apart up to 2, one up to 4, and two up to 6: a code counts the steps in each stretch, of which
    the last two begin at 2 steps of theirs. Ties are even in the code where they are in steps.
    """
    size = x.abs()
    steps = (size.clamp(max=2) * 2).round_()
    steps += size.clamp(2, 4).round_()
    steps += (size.clamp(4, 6) / 2).round_()
    return steps.to(torch.uint8).sub_(4) | torch.signbit(x).to(torch.uint8) << 3


def decode_float(codes: Tensor, exponent: int, mantissa: int, dtype: torch.dtype, *, signed: bool = True) -> Tensor:
    """Codes, uint8, of floats of that many bits of exponent and mantissa, without infinities, as values of `dtype`."""
    return _list_values(exponent, mantissa, signed, codes.device).to(dtype)[codes.int()]


def _list_values(exponent: int, mantissa: int, signed: bool, device: torch.device) -> Tensor:
    """The values of all codes, float32, computed where they are wanted: a copy from the host would be waited for."""
    bias, fractions = (1 << (exponent - 1)) - 1, 1 << mantissa
    codes = torch.arange(fractions << exponent, dtype=torch.int32, device=device)
    power, whole = codes // fractions, codes % fractions
    whole = torch.where(power > 0, whole + fractions, whole)
    sizes = whole * _raise_two(power.clamp_min(1) - bias - mantissa)
    return torch.cat((sizes, -sizes)) if signed else sizes


def _raise_two(power: Tensor) -> Tensor:
    """Two to the power of int32 from -126 to 127, float32: exact, as a GPU's functions need not be."""
    return (power + 127).bitwise_left_shift(23).view(torch.float32)


def round_float(x: Tensor, exponent: int, mantissa: int) -> Tensor:
    """x rounded to the nearest float of that many bits, without infinities, ties to even, in its own dtype.

    Beyond the greatest it is the greatest.
    """
    bias = (1 << (exponent - 1)) - 1
    greatest = _find_greatest(exponent, mantissa)
    inside = x.clamp(-greatest, greatest)
    # A float32 of its exponent alone is the power of two below; by bits, for frexp is slow.
    power = inside.float().view(torch.int32).bitwise_and(_EXPONENT).view(torch.float32)
    step = (power.clamp_min(2.0 ** (1 - bias)) * 2.0**-mantissa).to(x.dtype)
    return (inside / step).round_().mul_(step)


def decode_e8m0(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Exponents of two, uint8 with 127 added, as values of `dtype`; 255 is NaN."""
    return codes.view(torch.float8_e8m0fnu).to(dtype)


def encode_e8m0(scale: Tensor) -> Tensor:
    """Powers of two of at least 2^-127, in any float, as float8_e8m0fnu: their exponents as float32 has them.

    What a GPU's functions make of an exponent may be off by a last digit, and is the power that is meant.
    """
    bits = scale.float().view(torch.int32) + (1 << 21)
    return torch.bitwise_right_shift(bits, 23).to(torch.uint8).view(torch.float8_e8m0fnu)


@dataclass(frozen=True, slots=True)
class Float:
    """A format by its bits of exponent and mantissa; torch's own are E4M3 without infinities, and E5M2."""

    exponent: int
    mantissa: int

    @property
    def dtype(self) -> torch.dtype | None:
        """Torch's own, if it has one."""
        return _DTYPES.get((self.exponent, self.mantissa))

    @property
    def greatest(self) -> float:
        if self.dtype is not None:
            return torch.finfo(self.dtype).max
        return _find_greatest(self.exponent, self.mantissa)

    @property
    def greatest_power(self) -> int:
        """The exponent of the greatest value."""
        return math.floor(math.log2(self.greatest))

    def round(self, x: Tensor) -> Tensor:
        """x rounded to the nearest value, ties to even, in its own dtype; beyond the greatest it is the greatest."""
        if self.dtype is None:
            return round_float(x, self.exponent, self.mantissa)
        return x.clamp(-self.greatest, self.greatest).to(self.dtype).to(x.dtype)

    def round_exponent(self, size: Tensor) -> Tensor:
        """The exponent of sizes, float32, once their mantissas are rounded to so many bits; ties go up."""
        bits = size.contiguous().view(torch.int32) + (1 << (22 - self.mantissa))
        return torch.bitwise_right_shift(bits, 23) - 127


def _find_greatest(exponent: int, mantissa: int) -> float:
    """Where no code is given away to infinity or NaN."""
    bias = (1 << (exponent - 1)) - 1
    return float((2 - 2.0**-mantissa) * 2.0 ** ((1 << exponent) - 1 - bias))
