"""Inputs rounded as torchao's kernels would see them: quantized, and turned back at once.

torchao multiplies by the reciprocals of scales, which it computes in the inputs' own dtype: the arithmetic here is
its, step by step. Source: `choose_qparams_affine`, `quantize_affine`, `_choose_scale_float8`, `to_mx` and
`nvfp4_quantize`. Where it makes NaN of inputs that are all zero, zero is made of them here.
"""

import torch
from torch import Tensor

from qload.torch.floats import E2M1, decode_e8m0, round_e2m1
from qload_torchao.runtime.floats import round_float
from qload_torchao.schemes import FP4, FP6_BITS, Inputs
from qload_torchao.values import TENSOR

E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max
_DTYPES = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
_LARGEST_POWER = {"float8_e4m3fn": 8, "float8_e5m2": 15, "fp6_e2m3": 2, "fp6_e3m2": 4, FP4: 2}
_MANTISSA = {"float8_e4m3fn": 3, "float8_e5m2": 2, "fp6_e2m3": 3, "fp6_e3m2": 2, FP4: 1}
_GREATEST = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "fp6_e2m3": 7.5, "fp6_e3m2": 28.0, FP4: 6.0}


def round_int8(x: Tensor, inputs: Inputs, scale_dtype: torch.dtype, least_scale: float) -> Tensor:
    """x rounded to int8 with scales of its own, of that dtype, for each token or the whole of it."""
    low, high = _int8_range(inputs)
    least = _reduce(x, inputs, torch.amin).clamp_max(0)
    greatest = _reduce(x, inputs, torch.amax).clamp_min(0)
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


def round_float8(x: Tensor, inputs: Inputs) -> Tensor:
    """x rounded to eight-bit floats with scales of its own, for each token, group of features, or the whole."""
    dtype, columns = _DTYPES[inputs.element], inputs.block[1]
    grouped = x if columns is None else x.unflatten(-1, (-1, columns))
    size = _reduce(grouped.abs(), inputs, torch.amax)
    if inputs.bounds != (None, None):
        size = size.clamp(*inputs.bounds)
    limit = torch.finfo(dtype).max
    scale = (size / limit).float()
    scale = torch.where(scale == 0, 1.0, scale)
    rounded: Tensor = (grouped.float() / scale).clamp(-limit, limit).to(dtype).float() * scale
    return (rounded if columns is None else rounded.flatten(-2)).to(x.dtype)


def round_mx(x: Tensor, inputs: Inputs) -> Tensor:
    """x rounded to microscaled floats: for each block of features a scale that is a power of two."""
    blocks = x.float().unflatten(-1, (-1, inputs.block[1] or x.shape[-1]))
    size = blocks.abs().amax(-1, keepdim=True)
    power = _choose_power(size, inputs).clamp(-127, 127)
    scale = torch.exp2(power)
    # The least scale is no normal float; values are divided by the least that is.
    divisor = torch.where(power == -127, 1.0, scale) if inputs.rounding == "RCEIL" else scale.clamp_min(2.0**-126)
    limit = _GREATEST[inputs.element]
    rounded = _round_element((blocks / divisor).clamp(-limit, limit), inputs.element)
    powers = decode_e8m0((power + 127).to(torch.uint8), torch.float32)
    return (rounded * powers).flatten(-2).to(x.dtype)


def round_nvfp4(x: Tensor, inputs: Inputs, stored: Tensor | None) -> Tensor:
    """x rounded to four-bit floats with E4M3 scales for each block, over one for the whole or the stored one."""
    whole = x.abs().amax().float() / (E4M3_MAX * E2M1[-1]) if inputs.scaled_by_tensor else stored
    blocks = x.float().unflatten(-1, (-1, inputs.block[1] or x.shape[-1]))
    scale = blocks.abs().amax(-1, keepdim=True) / E2M1[-1]
    if whole is not None:
        whole = torch.where(whole == 0, 1.0, whole)
        scale = scale / whole
    tiny = torch.finfo(torch.float8_e4m3fn).tiny
    rounded = scale.clamp(tiny, E4M3_MAX).to(torch.float8_e4m3fn).float()
    inverse = (1.0 if whole is None else 1.0 / whole) / rounded
    values = round_e2m1((blocks * inverse).clamp(-E2M1[-1], E2M1[-1]))
    dense: Tensor = values * (rounded if whole is None else whole * rounded)
    return dense.flatten(-2).to(x.dtype)


def _int8_range(inputs: Inputs) -> tuple[int, int]:
    return (-64, 63) if inputs.reduced else (-128, 127)


def _reduce(x: Tensor, inputs: Inputs, function: object) -> Tensor:
    values: Tensor = function(x) if inputs.block == TENSOR else function(x, -1, keepdim=True)  # type: ignore[operator]
    return values


def _choose_power(size: Tensor, inputs: Inputs) -> Tensor:
    """The exponent of each block's scale, float32."""
    if inputs.rounding == "RCEIL":
        return (size / _GREATEST[inputs.element]).log2().ceil().nan_to_num(neginf=-127.0)
    bits = size.view(torch.int32)
    if inputs.rounding == "EVEN":
        # As if the block's largest value were already rounded to the values' own mantissa.
        bits = (bits + (1 << (22 - _MANTISSA[inputs.element]))) & 0x7F800000
    exponent = (bits >> 23) - 127
    if inputs.rounding == "CEIL":
        exponent = exponent + ((bits & 0x7FFFFF) > 0)
    return (exponent - _LARGEST_POWER[inputs.element]).float()


def _round_element(x: Tensor, element: str) -> Tensor:
    if element == FP4:
        return round_e2m1(x)
    if element in FP6_BITS:
        return round_float(x, *FP6_BITS[element])
    return x.to(_DTYPES[element]).float()
