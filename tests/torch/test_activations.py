"""Quantized activations, held against the compressed-tensors package's own forward."""

from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize as their_fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

from qload.torch.activations import choose_power, fake_quantize, fake_quantize_dynamic, value_range
from qload.torch.floats import E2M1, decode_e2m1, decode_e8m0, round_float

DTYPES = [torch.float32, torch.bfloat16]


def theirs(x: torch.Tensor, **args: Any) -> torch.Tensor:
    parsed = QuantizationArgs(dynamic=True, **args)
    scale, zero = compute_dynamic_scales_and_zp(x, parsed, torch.nn.Module())
    quantized: torch.Tensor = their_fake_quantize(x, scale, zero, parsed)
    return quantized


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["token", "tensor", "group"])
def test_dynamic_is_what_the_package_computes(dtype: torch.dtype, kind: str, symmetric: bool, strategy: str) -> None:
    if kind == "float" and not symmetric:
        return
    torch.manual_seed(0)
    x = (torch.randn(2, 5, 64) * 3).to(dtype)
    x[0, 0] = 0
    group = 16 if strategy == "group" else None
    expected = theirs(x, num_bits=8, type=kind, symmetric=symmetric, strategy=strategy, group_size=group)
    found = fake_quantize_dynamic(
        x, 8, kind == "float", symmetric=symmetric, group=group, by_tensor=strategy == "tensor"
    )
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("zero", [None, 3])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_static_is_what_the_package_computes(
    dtype: torch.dtype, kind: str, zero: int | None, scale_dtype: torch.dtype
) -> None:
    """With the package's scales of one entry, which a layer's hooks see as scalars."""
    if kind == "float" and zero is not None:
        return
    torch.manual_seed(0)
    x = (torch.randn(2, 5, 64) * 3).to(dtype)
    scale = torch.tensor([0.0233], dtype=scale_dtype)
    point = None if zero is None else torch.tensor([zero], dtype=torch.int8)
    args = QuantizationArgs(num_bits=8, type=kind, strategy="tensor", symmetric=zero is None)
    expected = their_fake_quantize(x, scale, point, args)
    for own_scale in (scale, scale[0]):
        assert torch.equal(fake_quantize(x, own_scale, point, 8, kind == "float"), expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_with_a_scale_of_scales_are_what_the_package_computes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 5, 64) * torch.exp(3 * torch.randn(2, 5, 1))).to(dtype)
    x[0, 0] = 0
    args = QuantizationArgs.model_validate({
        "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local",
        "scale_dtype": "torch.float8_e4m3fn"})  # fmt: skip
    over = torch.tensor([448 * 6 / 20.0])
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module(), over)
    expected = their_fake_quantize(x, scale, zero, args, over)
    found = fake_quantize_dynamic(x, 4, True, group=16, global_scale=over[0])
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_scales_that_are_powers_of_two_are_what_the_package_computes(dtype: torch.dtype, bits: int) -> None:
    torch.manual_seed(0)
    x = (torch.randn(4, 50, 64) * torch.exp(2 * torch.randn(4, 50, 1))).to(dtype)
    # What is rounded up to the next power, and what only just is not.
    x[0, :4, :32] = torch.tensor([1.74, 1.75, 1.93, 1.94], dtype=dtype)[:, None]
    x[1, 0] = 0
    options = {"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    expected = theirs(x, **options)
    found = fake_quantize_dynamic(x, bits, True, group=32, scale_dtype=torch.float8_e8m0fnu, rounds_up=True)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("bits", "greatest"), [(4, 2), (6, 2), (8, 8)])
def test_the_specification_does_not_round_the_greatest_value_up(bits: int, greatest: int) -> None:
    sizes = torch.tensor([1.0, 1.74, 1.75, 1.93, 1.94, 1.99, 2.0, 0.0])
    powers = torch.tensor([0, 0, 0, 0, 0, 0, 1]) - greatest
    assert torch.equal(choose_power(sizes, bits)[:-1], 2.0**powers)
    edge = 4 if bits == 6 else 2
    assert torch.equal(
        choose_power(sizes, bits, rounds_up=True)[:-1],
        2.0 ** (powers + (torch.arange(7) >= edge) * (torch.arange(7) < 6)),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale_dtype", [torch.float8_e4m3fn, torch.float16, torch.bfloat16])
def test_scales_are_rounded_to_their_dtype(dtype: torch.dtype, scale_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(2, 50, 64) * torch.exp(3 * torch.randn(2, 50, 1))).to(dtype)
    expected = theirs(x, num_bits=8, strategy="token", scale_dtype=str(scale_dtype))
    assert torch.equal(fake_quantize_dynamic(x, 8, False, scale_dtype=scale_dtype), expected)


def test_zero_points_of_floats_are_floats() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 50, 64) + 1
    expected = theirs(x, num_bits=8, type="float", strategy="token", symmetric=False)
    assert torch.equal(fake_quantize_dynamic(x, 8, True, symmetric=False), expected)


def test_e2m1_rounds_to_the_nearest_and_ties_to_even() -> None:
    x = torch.tensor([0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 9.0, 0.0])
    expected = torch.tensor([0.0, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, 0.0])
    assert torch.equal(round_float(x, 2, 1), expected)
    assert torch.equal(round_float(-x, 2, 1), -expected)
    codes = torch.arange(16, dtype=torch.uint8)
    values = decode_e2m1(codes, torch.float16)
    assert torch.equal(round_float(values, 2, 1), values)
    assert sorted(set(values.tolist())) == sorted({*E2M1, *(-value for value in E2M1)})


def test_e8m0_is_a_power_of_two() -> None:
    codes = torch.tensor([0, 1, 126, 127, 128, 254], dtype=torch.uint8)
    assert torch.equal(decode_e8m0(codes, torch.float32), 2.0 ** (codes.float() - 127))
    assert decode_e8m0(torch.tensor([255], dtype=torch.uint8), torch.bfloat16).isnan().all()


def test_two_dimensional_inputs_are_tokens_too() -> None:
    x = torch.randn(5, 64)
    assert torch.equal(fake_quantize_dynamic(x, 8, False), fake_quantize_dynamic(x[None], 8, False)[0])


@pytest.mark.parametrize(
    ("bits", "is_float", "expected"), [(8, False, (-128, 127)), (4, False, (-8, 7)), (8, True, (-448, 448))]
)
def test_ranges(bits: int, is_float: bool, expected: tuple[float, float]) -> None:
    assert value_range(bits, is_float) == expected
