"""Activations rounded to what a quantized kernel would see: quantized, and turned back at once."""

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.floats import E2M1, round_e2m1

E4M3_MAX = 448.0
"""The greatest value of E4M3 without infinities."""


def value_range(bits: int, is_float: bool) -> tuple[float, float]:
    """The least and greatest value of signed integers of `bits` bits, or of floats of 4 (E2M1) or 8 (E4M3)."""
    if is_float:
        greatest = E4M3_MAX if bits == 8 else E2M1[-1]
        return -greatest, greatest
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
    rounded = _round(clamped, bits, is_float).to(scale.dtype)
    if zero is not None:
        rounded = rounded - zero.to(scale.dtype)
    return (rounded * scale).to(x.dtype)


def _round(x: Tensor, bits: int, is_float: bool) -> Tensor:
    if not is_float:
        return x.round()
    return x.to(torch.float8_e4m3fn) if bits == 8 else round_e2m1(x)


def fake_quantize_dynamic(
    x: Tensor,
    bits: int,
    is_float: bool,
    *,
    symmetric: bool = True,
    group: int | None = None,
    by_tensor: bool = False,
    global_scale: Tensor | None = None,
) -> Tensor:
    """x rounded with scales of its own: for each token, each group of its features, or the whole tensor.

    x [..., features]; the last group may be short. Zero is always inside the range. With a `global_scale` [],
    the scales are rounded to E4M3 once they are multiplied by it.
    """
    columns = x.shape[-1]
    values = x if group is None else F.pad(x, (0, -columns % group)).unflatten(-1, (-1, group))
    low = values.amin() if by_tensor else values.amin(-1, keepdim=True)
    high = values.amax() if by_tensor else values.amax(-1, keepdim=True)
    scale, zero = choose_scale(low.clamp_max(0), high.clamp_min(0), bits, is_float, symmetric)
    if global_scale is not None:
        scale = round_scale(scale.to(global_scale.dtype) * global_scale) / global_scale
    rounded = fake_quantize(values, scale, zero, bits, is_float)
    return rounded if group is None else rounded.flatten(-2)[..., :columns]


def round_scale(scale: Tensor) -> Tensor:
    """Scales rounded to E4M3, in their own dtype; zero becomes its epsilon."""
    rounded = scale.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(scale.dtype)
    return torch.where(rounded == 0, torch.finfo(torch.float8_e4m3fn).eps, rounded)


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
