"""Inputs rounded as torchao's kernels would see them: quantized, and turned back at once.

torchao multiplies by the reciprocals of scales, which it computes in the inputs' own dtype: the arithmetic here is
its, step by step. Source: `choose_qparams_affine`, `quantize_affine`, `_choose_scale_float8`, `to_mx` and
`nvfp4_quantize`. Where it makes NaN of inputs that are all zero, zero is made of them here.
"""

import torch
from torch import Tensor

from qload.torch.activations import E4M3_MAX, Agree, agree_on_range, by_groups, keep
from qload.torch.floats import Float, decode_e8m0
from qload_torchao.schemes import FP4, FP6_BITS, Inputs
from qload_torchao.values import TENSOR

_E2M1 = Float(2, 1)
_FLOATS = {
    "float8_e4m3fn": Float(4, 3),
    "float8_e5m2": Float(5, 2),
    **{name: Float(*bits) for name, bits in FP6_BITS.items()},
    FP4: _E2M1,
}


def round_int8(x: Tensor, inputs: Inputs, scale_dtype: torch.dtype, least_scale: float, agree: Agree = keep) -> Tensor:
    """x rounded to int8 with scales of its own, of that dtype, for each token or the whole of it."""
    low, high = _int8_range(inputs)
    least, greatest = _reduce(x, inputs, torch.amin), _reduce(x, inputs, torch.amax)
    least, greatest = agree_on_range(least, greatest, inputs.symmetric, agree)
    least, greatest = least.clamp_max(0), greatest.clamp_min(0)
    if inputs.symmetric:
        scale = (torch.maximum(-least, greatest) / ((high - low) / 2)).clamp_min(least_scale)
        zero = torch.zeros_like(scale)
    else:
        scale = ((greatest - least) / (high - low)).clamp_min(least_scale)
        zero = (low - (least / scale).round()).clamp(low, high)
    return fake_quantize_int8(x, inputs, scale.to(scale_dtype), zero)


def fake_quantize_int8(x: Tensor, inputs: Inputs, scale: Tensor, zero: Tensor | None) -> Tensor:
    """x rounded to multiples of a scale away from zero, which is in whole steps; in x's dtype."""
    low, high = _int8_range(inputs)
    offset: Tensor | int = 0 if zero is None else zero.to(scale.dtype)
    # In the wider dtype of the two, also where the scale is a scalar, to which torch would not widen.
    wide = x.to(torch.promote_types(x.dtype, scale.dtype))
    steps = ((wide * (1.0 / scale)).round() + offset).clamp(low, high)
    return ((steps.to(scale.dtype) - offset) * scale).to(x.dtype)


def round_float8(x: Tensor, inputs: Inputs, agree: Agree = keep) -> Tensor:
    """x rounded to eight-bit floats with scales of its own, for each token, group of features, or the whole."""
    number = _FLOATS[inputs.element]

    def quantize(values: Tensor) -> Tensor:
        size = _reduce(values.abs(), inputs, torch.amax)
        size = agree(size) if inputs.block[1] is None else size
        if inputs.bounds != (None, None):
            size = size.clamp(*inputs.bounds)
        scale = (size / number.greatest).float()
        scale = torch.where(scale == 0, 1.0, scale)
        return number.round(values.float() / scale) * scale

    return by_groups(x, inputs.block[1] or x.shape[-1], quantize).to(x.dtype)


def round_mx(x: Tensor, inputs: Inputs) -> Tensor:
    """x rounded to microscaled floats: for each block of features a scale that is a power of two."""
    number = _FLOATS[inputs.element]

    def quantize(blocks: Tensor) -> Tensor:
        power = _choose_power(blocks.abs().amax(-1, keepdim=True), number, inputs.rounding).clamp(-127, 127)
        scale = torch.exp2(power)
        # The least scale is no normal float; values are divided by the least that is.
        divisor = torch.where(power == -127, 1.0, scale) if inputs.rounding == "RCEIL" else scale.clamp_min(2.0**-126)
        powers = decode_e8m0((power + 127).to(torch.uint8), torch.float32)
        return number.round(blocks / divisor) * powers

    return by_groups(x.float(), inputs.block[1] or x.shape[-1], quantize).to(x.dtype)


def round_nvfp4(x: Tensor, inputs: Inputs, stored: Tensor | None, agree: Agree = keep) -> Tensor:
    """x rounded to four-bit floats with E4M3 scales for each block, over one for the whole or the stored one."""
    whole = agree(x.abs().amax()).float() / (E4M3_MAX * _E2M1.greatest) if inputs.scaled_by_tensor else stored
    whole = None if whole is None else torch.where(whole == 0, 1.0, whole)

    def quantize(blocks: Tensor) -> Tensor:
        scale = blocks.abs().amax(-1, keepdim=True) / _E2M1.greatest
        scale = scale if whole is None else scale / whole
        tiny = torch.finfo(torch.float8_e4m3fn).tiny
        rounded = scale.clamp(tiny, E4M3_MAX).to(torch.float8_e4m3fn).float()
        inverse = (1.0 if whole is None else 1.0 / whole) / rounded
        return _E2M1.round(blocks * inverse) * (rounded if whole is None else whole * rounded)

    return by_groups(x.float(), inputs.block[1] or x.shape[-1], quantize).to(x.dtype)


def _int8_range(inputs: Inputs) -> tuple[int, int]:
    return (-64, 63) if inputs.reduced else (-128, 127)


def _reduce(x: Tensor, inputs: Inputs, function: object) -> Tensor:
    values: Tensor = function(x) if inputs.block == TENSOR else function(x, -1, keepdim=True)  # type: ignore[operator]
    return values


def _choose_power(size: Tensor, number: Float, rounding: str) -> Tensor:
    """The exponent of each block's scale, float32."""
    if rounding == "RCEIL":
        return (size / number.greatest).log2().ceil().nan_to_num(neginf=-127.0)
    if rounding == "EVEN":
        exponent = number.round_exponent(size)
    else:
        bits = size.view(torch.int32)
        exponent = (bits >> 23) - 127
        if rounding == "CEIL":
            exponent = exponent + ((bits & 0x7FFFFF) > 0)
    return (exponent - number.greatest_power).float()
