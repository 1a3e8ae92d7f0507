"""The roundings that methods share: what kernels multiply is what the reference computes with."""

import pickle

import pytest
import torch
from torch import Tensor

from qload.torch.activations import fake_quantize, fake_quantize_dynamic, keep
from qload.torch.floats import decode_e2m1
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DYNAMIC = [
    DynamicRounding(8, False),
    DynamicRounding(8, True),
    DynamicRounding(4, False),
    DynamicRounding(8, False, symmetric=False),
    DynamicRounding(8, True, symmetric=False),
    DynamicRounding(8, False, by_tensor=True),
    DynamicRounding(8, True, by_tensor=True),
    DynamicRounding(8, False, group=32),
    DynamicRounding(8, True, group=128),
    DynamicRounding(8, True, group=40),
    DynamicRounding(8, True, scale_dtype=torch.bfloat16),
    DynamicRounding(4, True, group=32, scale_dtype=torch.float8_e8m0fnu),
    DynamicRounding(6, True, group=32, scale_dtype=torch.float8_e8m0fnu, rounds_up=True),
    DynamicRounding(8, True, group=32, scale_dtype=torch.float8_e8m0fnu),
    DynamicRounding(12, False),
]


def make_inputs(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    x = (torch.randn(7, 256) * torch.exp(torch.randn(7, 1)) + 0.1).to(dtype)
    x[3] = 0
    return x


def multiply(codes: Tensor, scales: Tensor, group: int | None = None) -> Tensor:
    """Codes times their scales, in float64."""
    if codes.dtype is torch.uint8:
        codes = decode_e2m1(torch.stack((codes & 15, codes >> 4), -1).flatten(-2), torch.float32)
    spread = scales if group is None else scales.repeat_interleave(group, -1)[..., : codes.shape[-1]]
    return codes.double() * spread.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", DYNAMIC, ids=str)
def test_dynamic_codes_times_their_scales_are_the_fake_values(rounding: DynamicRounding, dtype: torch.dtype) -> None:
    x = make_inputs(dtype)
    codes, scales = rounding(x, None, keep)
    fake = rounding.fake(x, None, keep)
    assert codes.dtype == rounding.dtype
    assert fake.dtype == dtype
    expected = fake_quantize_dynamic(
        x, rounding.bits, rounding.is_float, symmetric=rounding.symmetric, group=rounding.group,
        by_tensor=rounding.by_tensor, scale_dtype=rounding.scale_dtype, rounds_up=rounding.rounds_up)  # fmt: skip
    assert torch.equal(fake, expected)
    product = multiply(codes, scales, rounding.group)
    assert torch.equal(product.to(scales.dtype).to(dtype), fake)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stored_scale_of_scales_is_a_dynamic_roundings(dtype: torch.dtype) -> None:
    x, over = make_inputs(dtype), torch.tensor(448 * 6 / 20.0)
    rounding = DynamicRounding(4, True, group=16)
    codes, scales = rounding(x, over, keep)
    fake = rounding.fake(x, over, keep)
    assert torch.equal(fake, fake_quantize_dynamic(x, 4, True, group=16, global_scale=over))
    product = multiply(codes, scales, 16)
    assert torch.equal(product.float().to(dtype), fake)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize(("is_float", "zero"), [(False, None), (True, None), (False, 3), (False, -128)])
def test_static_codes_times_their_scale_are_the_fake_values(
    dtype: torch.dtype, scale_dtype: torch.dtype, is_float: bool, zero: int | None
) -> None:
    x, scale = make_inputs(dtype), torch.tensor(0.0233, dtype=scale_dtype)
    point = None if zero is None else torch.tensor(zero, dtype=torch.int8)
    stored = scale if point is None else torch.stack((scale, point.to(scale_dtype)))
    rounding = StaticRounding(8, is_float, has_zero=zero is not None)
    codes, scales = rounding(x, stored, keep)
    fake = rounding.fake(x, stored, keep)
    assert codes.dtype == rounding.dtype
    assert torch.equal(fake, fake_quantize(x, scale, point, 8, is_float))
    assert torch.equal(multiply(codes, scales).to(scale_dtype).to(dtype), fake)


def test_a_static_rounding_needs_its_scale() -> None:
    with pytest.raises(ValueError, match="there is none"):
        StaticRounding(8, False).fake(make_inputs(torch.float32), None, keep)


@pytest.mark.parametrize("rounding", [*DYNAMIC, StaticRounding(8, True), StaticRounding(8, False, True)], ids=str)
def test_roundings_can_be_pickled(rounding: DynamicRounding | StaticRounding) -> None:
    assert pickle.loads(pickle.dumps(rounding)) == rounding
    assert hash(rounding) == hash(rounding)


@pytest.mark.parametrize("by_tensor", [False, True])
def test_ranks_that_share_the_features_agree_on_the_scales_of_codes(by_tensor: bool) -> None:
    x = make_inputs(torch.float32)
    rounding = DynamicRounding(8, False, by_tensor=by_tensor)
    expected, scales = rounding(x, None, keep)
    whole = x.abs().amax() if by_tensor else x.abs().amax(-1, keepdim=True)
    codes, found = rounding(x[:, :64], None, lambda greatest: whole.expand_as(greatest))
    assert torch.equal(found, scales)
    assert torch.equal(codes, expected[:, :64])
