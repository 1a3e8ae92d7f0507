"""Small floats, held against the formats' definition by sign, exponent and mantissa, and against torch's own."""

import pytest
import torch
from torch import Tensor

from qload.torch.arithmetic import extend_sign
from qload.torch.floats import (
    E2M1,
    Float,
    decode_bytes,
    decode_e2m1,
    decode_e8m0,
    decode_float,
    encode_e2m1,
    encode_e8m0,
    round_float,
)

FORMATS = [(2, 1), (2, 3), (3, 2)]


def decode_code(code: int, exponent: int, mantissa: int) -> float:
    fraction, field = code % (1 << mantissa), (code >> mantissa) % (1 << exponent)
    sign, bias = (-1.0) ** (code >> (mantissa + exponent)), (1 << (exponent - 1)) - 1
    normal = sign * (1 + fraction / (1 << mantissa)) * 2.0 ** (field - bias)
    return normal if field else sign * fraction / (1 << mantissa) * 2.0 ** (1 - bias)


def all_codes(bits: int) -> Tensor:
    return torch.arange(1 << bits, dtype=torch.uint8)


@pytest.mark.parametrize(("exponent", "mantissa"), [*FORMATS, (4, 2)])
def test_codes_are_sign_exponent_and_mantissa(exponent: int, mantissa: int) -> None:
    codes = all_codes(1 + exponent + mantissa)
    expected = [decode_code(code, exponent, mantissa) for code in codes.tolist()]
    assert decode_float(codes, exponent, mantissa, torch.float32).tolist() == expected


def test_codes_of_what_is_known_elsewhere() -> None:
    assert torch.equal(decode_float(all_codes(4), 2, 1, torch.bfloat16), decode_e2m1(all_codes(4), torch.bfloat16))
    finite = all_codes(7)[:-1]
    assert torch.equal(decode_float(finite, 4, 3, torch.float32), finite.view(torch.float8_e4m3fn).float())
    assert decode_float(torch.tensor([254], dtype=torch.uint8), 5, 3, torch.float32, signed=False).item() == 114688


@pytest.mark.parametrize(("exponent", "mantissa"), FORMATS)
def test_values_go_to_the_nearest_float_and_ties_to_an_even_code(exponent: int, mantissa: int) -> None:
    sizes = decode_float(all_codes(exponent + mantissa), exponent, mantissa, torch.float32)
    assert torch.equal(round_float(sizes, exponent, mantissa), sizes)
    middles, even = (sizes[1:] + sizes[:-1]) / 2, sizes[((torch.arange(len(sizes) - 1) + 1) // 2) * 2]
    assert torch.equal(round_float(-middles, exponent, mantissa), -even)
    assert torch.equal(round_float(middles * 1.001, exponent, mantissa), sizes[1:])
    assert round_float(torch.tensor([1e4, -1e4]), exponent, mantissa).tolist() == [sizes[-1], -sizes[-1]]


@pytest.mark.parametrize(
    ("number", "greatest", "power"),
    [
        (Float(2, 1), E2M1[-1], 2),
        (Float(2, 3), 7.5, 2),
        (Float(3, 2), 28.0, 4),
        (Float(4, 3), 448.0, 8),
        (Float(5, 2), 57344.0, 15),
    ],
)
def test_a_float_ends_at_its_greatest_value(number: Float, greatest: float, power: int) -> None:
    assert (number.greatest, number.greatest_power) == (greatest, power)
    x = torch.tensor([1e9, -1e9, greatest, 0.0])
    assert number.round(x).tolist() == [greatest, -greatest, greatest, 0.0]


def test_the_exponent_is_that_of_the_rounded_mantissa() -> None:
    sizes = torch.tensor([1.0, 1.74, 1.75, 2.0, 3.4, 3.5])
    assert Float(2, 1).round_exponent(sizes).tolist() == [0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_highest_bit_is_the_sign(bits: int) -> None:
    half = 1 << (bits - 1)
    expected = [code - 2 * half if code >= half else code for code in range(2 * half)]
    assert extend_sign(all_codes(bits), bits).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_powers_of_two_are_their_exponents(dtype: torch.dtype) -> None:
    codes = all_codes(8)[:255]
    assert torch.equal(encode_e8m0(decode_e8m0(codes, dtype)).view(torch.uint8), codes)
    apart = decode_e8m0(codes.repeat(2, 1), dtype).T
    assert torch.equal(encode_e8m0(apart).view(torch.uint8), codes.repeat(2, 1).T)


def test_powers_that_are_off_by_a_last_digit_are_those_that_are_meant() -> None:
    codes = all_codes(8)[1:254]
    powers = decode_e8m0(codes, torch.float32)
    for near in (torch.nextafter(powers, torch.tensor(0.0)), torch.nextafter(powers, torch.tensor(torch.inf))):
        assert torch.equal(encode_e8m0(near).view(torch.uint8), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("exponent", "mantissa"), FORMATS)
def test_rounding_keeps_the_dtype_and_ends_at_the_greatest(exponent: int, mantissa: int, dtype: torch.dtype) -> None:
    greatest = Float(exponent, mantissa).greatest
    x = torch.tensor([1e-30, 3.4e4, -3.4e4, torch.inf, -torch.inf, 0.0, torch.nan], dtype=dtype)
    rounded = round_float(x, exponent, mantissa)
    assert rounded.dtype == dtype
    assert rounded[:-1].tolist() == [0, greatest, -greatest, greatest, -greatest, 0]
    assert rounded[-1].isnan()


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("small", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("kept", [0, 1, 127, 128, 256])
def test_bytes_become_what_torch_makes_of_them(small: torch.dtype, wide: torch.dtype, kept: int) -> None:
    """All of the codes, NaN and infinities among them; none but numbers; and none at all; whatever their strides."""
    codes = torch.arange(256, dtype=torch.uint8)
    codes = torch.cat((codes[:127], codes[128:255]))[:kept] if kept < 256 else codes
    values = torch.stack((codes, codes.flip(0)), 1).view(small)
    for each in (values, values[:, 1], values.T):
        found, expected = decode_bytes(each, wide), each.to(wide)
        assert (found.dtype, found.shape) == (wide, expected.shape)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(nan=3), expected.nan_to_num(nan=3))
        assert torch.equal(found.signbit(), expected.signbit())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_of_e2m1_are_of_what_is_rounded(dtype: torch.dtype) -> None:
    """Of all words of 16 bits that are numbers, and of those next to them in float32."""
    words = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    words = words[words.isfinite()]
    near = [torch.nextafter(words.float(), torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    for x in (words, *near):
        rounded, made = round_float(x, 2, 1), decode_e2m1(encode_e2m1(x), x.dtype)
        assert torch.equal(rounded, made)
        assert torch.equal(rounded.signbit(), made.signbit())
