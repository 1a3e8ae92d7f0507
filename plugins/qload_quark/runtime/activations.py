"""Inputs rounded to what Quark's kernels would see.

Source: Quark's observers (`calculate_int_quant_params`, `get_scale`, `even_round`) and `DynamicScaledQuantizer`.
A dynamic scale for each channel of the inputs is one for each token, as vLLM reads it.
"""

from typing import cast

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.activations import by_groups, fake_quantize, fake_quantize_dynamic
from qload.torch.floats import Float
from qload_quark.numbers import Number
from qload_quark.schemes import Extent, Quantizer

_KNOWN_FLOATS = ("fp8_e4m3", "fp4")
"""Those that the shared arithmetic rounds to."""


def quantize_activations(layer: LayerPiece, name: str, inputs: Quantizer, x: Tensor) -> Tensor:
    """x rounded as the scheme of the inputs says, or whatever the name of their scale says it is, in its own dtype."""
    if not inputs.dynamic:
        return _quantize_static(layer, name, inputs, x)
    if inputs.scales is not None:
        return _quantize_microscaled(inputs, x)
    if inputs.number.is_float and inputs.dtype not in _KNOWN_FLOATS:
        return _quantize_float(layer, inputs, x)
    is_scaled = name == "input" and layer.scheme.inputs_scaled
    global_scale = 1 / layer.input_scale_2.float() if is_scaled else None
    return fake_quantize_dynamic(
        x,
        inputs.number.bits,
        inputs.number.is_float,
        symmetric=inputs.symmetric,
        group=inputs.group,
        by_tensor=inputs.extent is Extent.TENSOR,
        global_scale=global_scale,
        agree=layer.agree,
    )


def _quantize_static(layer: LayerPiece, name: str, inputs: Quantizer, x: Tensor) -> Tensor:
    number, scale = inputs.number, cast("Tensor", getattr(layer, f"{name}_scale"))
    if number.is_float:
        if inputs.dtype in _KNOWN_FLOATS:
            return fake_quantize(x, scale, None, number.bits, is_float=True)
        return (_float(number).round(x.float() / scale.float()) * scale.float()).to(x.dtype)
    zero = cast("Tensor | None", getattr(layer, f"{name}_zero_point"))
    if zero is not None:
        # Unsigned values are signed ones half their range higher.
        zero = zero.to(scale.dtype) - (0 if number.signed else 1 << (number.bits - 1))
    return fake_quantize(x, scale, zero, number.bits, is_float=False)


def _quantize_microscaled(inputs: Quantizer, x: Tensor) -> Tensor:
    """With powers of two for scales, one for each group of columns."""

    def quantize(values: Tensor) -> Tensor:
        scale = choose_power(values.abs().amax(-1, keepdim=True), inputs.number, inputs.mode)
        return _float(inputs.number).round(values / scale) * scale

    return by_groups(x.float(), inputs.group or 1, quantize).to(x.dtype)


def choose_power(greatest: Tensor, number: Number, mode: str) -> Tensor:
    """The power of two by which values of up to `greatest`, float32, are divided before they are rounded.

    `even` rounds `greatest` to the mantissa's bits before it takes its exponent, `floor` and `ceil` its logarithm.
    """
    if mode == "even":
        exponent = _float(number).round_exponent(greatest).float()
    else:
        logarithm = greatest.clamp_min(torch.finfo(torch.float32).tiny).log2()
        exponent = logarithm.floor() if mode == "floor" else logarithm.ceil()
    return torch.exp2((exponent - _float(number).greatest_power).clamp(-127, 127))


def _quantize_float(layer: LayerPiece, inputs: Quantizer, x: Tensor) -> Tensor:
    """With a scale for each group, token or tensor that takes the greatest value to the greatest float."""
    number = _float(inputs.number)

    def quantize(values: Tensor) -> Tensor:
        sizes = values.abs()
        size = sizes.amax() if inputs.extent is Extent.TENSOR else sizes.amax(-1, keepdim=True)
        size = size if inputs.group is not None else layer.agree(size)
        scale = size / number.greatest
        scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
        return number.round(values / scale) * scale

    return by_groups(x.float(), inputs.group or x.shape[-1], quantize).to(x.dtype)


def _float(number: Number) -> Float:
    return Float(number.exponent, number.mantissa)
