"""Activations rounded to what a quantized kernel would see: quantized, and turned back at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.floats import Float

Agree = Callable[[Tensor], Tensor]
"""What makes the greatest of all ranks out of this rank's: `LayerPiece.agree`."""
E4M3_MAX = 448.0
"""The greatest value of E4M3 without infinities."""
_FLOATS = {4: Float(2, 1), 6: Float(2, 3), 8: Float(4, 3)}
"""The floats by their bits."""


def value_range(bits: int, is_float: bool) -> tuple[float, float]:
    """The least and greatest value of signed integers of `bits` bits, or of floats: E2M1, E2M3, E4M3."""
    if is_float:
        return -_FLOATS[bits].greatest, _FLOATS[bits].greatest
    return -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1)


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor | None, bits: int, is_float: bool) -> Tensor:
    """x rounded to multiples of `scale` away from `zero`, clamped to the range, in x's dtype.

    scale and zero broadcast against x. It is divided in the wider dtype of the two, also where the scale is a
    scalar, to which torch would not widen.
    """
    return (count_steps(x, scale, zero, bits, is_float) * scale).to(x.dtype)


def count_steps(x: Tensor, scale: Tensor, zero: Tensor | None, bits: int, is_float: bool) -> Tensor:
    """How many times `scale` it is that `fake_quantize` makes of x: the codes less the zero-point, in scale's dtype."""
    low, high = value_range(bits, is_float)
    dtype = torch.promote_types(x.dtype, scale.dtype)
    scaled = x.to(dtype) / scale.to(dtype)
    if zero is not None:
        scaled = scaled + zero.to(dtype)
    clamped = scaled.clamp(low, high)
    rounded = (_FLOATS[bits].round(clamped) if is_float else clamped.round()).to(scale.dtype)
    return rounded if zero is None else rounded - zero.to(scale.dtype)


def keep(greatest: Tensor) -> Tensor:
    """What is found alone: for callers that have all of x."""
    return greatest


def fake_quantize_dynamic(
    x: Tensor,
    bits: int,
    is_float: bool,
    *,
    symmetric: bool = True,
    group: int | None = None,
    by_tensor: bool = False,
    global_scale: Tensor | None = None,
    scale_dtype: torch.dtype | None = None,
    rounds_up: bool = False,
    agree: Agree = keep,
) -> Tensor:
    """x rounded with scales of its own: for each token, each group of its features, or the whole tensor.

    x [..., features]; the last group may be short. Zero is always inside the range. With a `global_scale` [],
    the scales are rounded to E4M3 once they are multiplied by it. Without, they are rounded to `scale_dtype`; those
    of E8M0 are powers of two, as `choose_power` has them. Where x is a rank's share of its features, `agree` is the
    layer's own, for scales of tokens and tensors; groups must lie inside the share.
    """
    way = Way(bits, is_float, symmetric, group, by_tensor, scale_dtype, rounds_up)
    return way.fake(x, global_scale, agree)


@dataclass(frozen=True, slots=True)
class Way:
    """How x is rounded with scales of its own; see `fake_quantize_dynamic`."""

    bits: int
    is_float: bool
    symmetric: bool = True
    group: int | None = None
    by_tensor: bool = False
    scale_dtype: torch.dtype | None = None
    rounds_up: bool = False

    def fake(self, x: Tensor, global_scale: Tensor | None, agree: Agree) -> Tensor:
        """x rounded, in its dtype."""
        steps, scale = self.count(split_groups(x, self.group), global_scale, agree)
        return join_groups((steps * scale).to(x.dtype), self.group, x.shape[-1])

    def count(self, x: Tensor, global_scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:
        """The scales, and how many times these x is, in their dtype. x [..., groups, group] where there are groups."""
        low, high = self._find_range(x, agree)
        scale, zero = choose_scale(low, high, self.bits, self.is_float, self.symmetric)
        if global_scale is not None:
            scale = round_scale(scale.to(global_scale.dtype) * global_scale) / global_scale
        elif self.scale_dtype is torch.float8_e8m0fnu:
            scale = choose_power(torch.maximum(-low, high), self.bits, rounds_up=self.rounds_up)
        elif self.scale_dtype is not None:
            scale = round_scale(scale, self.scale_dtype)
        return count_steps(x, scale, zero, self.bits, self.is_float), scale

    def _find_range(self, x: Tensor, agree: Agree) -> tuple[Tensor, Tensor]:
        low = x.amin() if self.by_tensor else x.amin(-1, keepdim=True)
        high = x.amax() if self.by_tensor else x.amax(-1, keepdim=True)
        if self.by_tensor or self.group is None:
            low, high = agree_on_range(low, high, self.symmetric, agree)
        return low.clamp_max(0), high.clamp_min(0)


def agree_on_range(low: Tensor, high: Tensor, symmetric: bool, agree: Agree) -> tuple[Tensor, Tensor]:
    """The least and greatest values of all ranks, as far as scales are made of them: their size, where symmetric."""
    if symmetric:
        size = agree(torch.maximum(-low, high))
        return -size, size
    negated, high = agree(torch.stack((-low, high))).unbind()
    return -negated, high


def by_groups(x: Tensor, group: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """What `function` makes of x [..., features] in groups of features, [..., groups, group]; zeros fill the last."""
    return join_groups(function(split_groups(x, group)), group, x.shape[-1])


def split_groups(x: Tensor, group: int | None) -> Tensor:
    """x [..., features] in groups of features, [..., groups, group], of which zeros fill the last; or as it is."""
    if group is None:
        return x
    whole = F.pad(x, (0, -x.shape[-1] % group))
    grouped: Tensor = whole.unflatten(-1, (whole.shape[-1] // group, group))
    return grouped


def join_groups(grouped: Tensor, group: int | None, features: int) -> Tensor:
    """The inverse of `split_groups`, which leaves out what it filled up."""
    return grouped if group is None else grouped.flatten(-2)[..., :features]


def round_scale(scale: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Scales rounded to `dtype`, in their own; zero becomes its epsilon."""
    greatest = min(torch.finfo(dtype).max, torch.finfo(scale.dtype).max)
    rounded = scale.clamp(-greatest, greatest).to(dtype).to(scale.dtype)
    return torch.where(rounded == 0, torch.finfo(dtype).eps, rounded)


def choose_power(greatest: Tensor, bits: int, *, rounds_up: bool = False) -> Tensor:
    """The scale, a power of two, of floats of 4, 6 or 8 bits whose greatest size is `greatest`, in its dtype.

    The greatest power of two of the format stands for the greatest one in `greatest`. With `rounds_up`, for the next
    one where the mantissa is beyond what the format's greatest value has: from 1.75 on, or 1.9375 with 6 bits.
    Source: the OCP Microscaling Formats specification, 6.3; of rounding up, vLLM's reference of it.
    """
    mantissa, exponent = torch.frexp(greatest.to(torch.float32))
    edge = 2 - 2.0 ** (-4 if bits == 6 else -2) if rounds_up else 2
    power = exponent - 1 + (mantissa * 2 >= edge) - _FLOATS[bits].greatest_power
    power = torch.where(greatest == 0, -127, power.clamp(-127, 128))
    scale = torch.exp2(power.to(torch.float32)).to(greatest.dtype)
    return torch.where(scale == 0, 1, scale)


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
    zero = (least - low / scale).clamp(least, greatest)
    return scale, zero.to(torch.float8_e4m3fn).to(zero.dtype) if is_float and bits == 8 else zero.round()
