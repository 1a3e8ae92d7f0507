"""Activations rounded to what a quantized kernel would see: quantized, and turned back at once."""

import torch
from torch import Tensor

FP8_MAX = 448.0
"""The greatest value of E4M3 without infinities."""


def value_range(bits: int, is_float: bool) -> tuple[float, float]:
    """The least and greatest value of signed integers of `bits` bits, or of 8-bit floats."""
    if is_float:
        return -FP8_MAX, FP8_MAX
    return -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1)


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor | None, bits: int, is_float: bool) -> Tensor:
    """x rounded to multiples of `scale` away from `zero`, clamped to the range, in x's dtype.

    scale and zero broadcast against x. It is divided in the wider dtype of the two, also where the scale is a
    scalar, to which torch would not widen.
    """
    low, high = value_range(bits, is_float)
    dtype = torch.promote_types(x.dtype, scale.dtype)
    scaled = x.to(dtype) / scale.to(dtype)
    if zero is not None:
        scaled = scaled + zero.to(dtype)
    clamped = scaled.clamp(low, high)
    rounded = clamped.to(torch.float8_e4m3fn).to(scale.dtype) if is_float else clamped.round().to(scale.dtype)
    if zero is not None:
        rounded = rounded - zero.to(scale.dtype)
    return (rounded * scale).to(x.dtype)


def fake_quantize_dynamic(
    x: Tensor,
    bits: int,
    is_float: bool,
    *,
    symmetric: bool = True,
    group: int | None = None,
    by_tensor: bool = False,
) -> Tensor:
    """x rounded with scales of its own: for each token, each group of its features, or the whole tensor.

    x [..., features]. Zero is always inside the range.
    """
    values = x if group is None else x.unflatten(-1, (-1, group))
    low = values.amin() if by_tensor else values.amin(-1, keepdim=True)
    high = values.amax() if by_tensor else values.amax(-1, keepdim=True)
    scale, zero = choose_scale(low.clamp_max(0), high.clamp_min(0), bits, is_float, symmetric)
    rounded = fake_quantize(values, scale, zero, bits, is_float)
    return rounded if group is None else rounded.flatten(-2)


def choose_scale(low: Tensor, high: Tensor, bits: int, is_float: bool, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Scale and zero-point that cover [low, high]; a scale of zero becomes the dtype's epsilon."""
    least, greatest = value_range(bits, is_float)
    if symmetric:
        scale = torch.maximum(-low, high) / ((greatest - least) / 2)
    else:
        scale = (high - low) / (greatest - least)
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).eps, scale)
    if symmetric:
        return scale, None
    return scale, (least - low / scale).clamp(least, greatest).round()
