"""Quark's weights in the forms that kernels know."""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.kernels import FloatWeight, Inputs, IntegerWeight, Weight, name_element
from qload_quark import is_transposed
from qload_quark.runtime.pairs import pair_columns, pair_transposed
from qload_quark.runtime.reading import read_scales, read_values, read_zeros
from qload_quark.schemes import E8M0, EXPONENT, Extent, Quantizer


def find_weight(layer: LayerPiece, inputs: Inputs) -> Weight | str:
    """The weight, for inputs to which all of `inputs` is done; or why it has no such form."""
    weights: Quantizer | None = layer.scheme.weights
    if weights is None:
        return "its weight is not quantized"
    if layer.scheme.outputs is not None and layer.quantize_activations:
        return "its outputs are rounded, too"
    return (_find_floats if weights.number.is_float else _find_integers)(layer, weights, inputs)


def _find_floats(layer: LayerPiece, weights: Quantizer, inputs: Inputs) -> Weight | str:
    if weights.number.bits == 6:
        return "its values are floats of 6 bits"
    values, columns = layer.weight_quantized, layer.in_features
    whole = layer.weight_scale_2.float() if layer.scheme.scales_scaled else None
    scale, block = _shape(read_scales(layer, weights, None), weights), _find_block(layer, weights)
    if weights.extent is Extent.GROUP and whole is None:
        scale = _find_powers(layer, weights, scale)
    elif whole is not None:
        scale = layer.weight_scale
    return FloatWeight(values, name_element(values), columns, scale, block, whole, inputs=inputs)


def _find_block(layer: LayerPiece, weights: Quantizer) -> tuple[int, int]:
    match weights.extent:
        case Extent.TENSOR:
            return layer.out_features, layer.in_features
        case Extent.CHANNEL:
            return (layer.out_features, 1) if weights.by_columns else (1, layer.in_features)
        case Extent.BLOCK:
            return weights.block or (1, 1)
        case Extent.GROUP:
            return 1, weights.group or 1


def _find_powers(layer: LayerPiece, weights: Quantizer, scale: Tensor) -> Tensor:
    """The scales of groups as e8m0, where they are powers of two that it has."""
    if weights.scales == E8M0:
        return layer.weight_scale.view(torch.float8_e8m0fnu)
    if weights.scales == EXPONENT and not bool((layer.weight_scale == 128).any()):
        return (layer.weight_scale ^ 128).sub_(1).view(torch.float8_e8m0fnu)
    return scale


def _find_integers(layer: LayerPiece, weights: Quantizer, inputs: Inputs) -> Weight | str:
    number, columns = weights.number, layer.in_features
    zeros, scale = read_zeros(layer, weights, None), _shape(read_scales(layer, weights, None), weights)
    zeros = _shape(zeros, weights) if isinstance(zeros, Tensor) else zeros
    is_wide = weights.has_float_zero and isinstance(zeros, Tensor)
    if is_wide and number.signed:
        return "its values are signed, around zero-points that are no whole numbers"
    values = _pair(layer, weights)
    if values is None:
        values = read_values(layer, weights, None)
        values = values if values.itemsize == 1 else values.to(torch.int8 if number.signed else torch.uint8)
    elif number.signed:
        values, zeros = values ^ 0x88, zeros + 8
    group = (weights.group or 1) if weights.extent is Extent.GROUP else 1 if weights.by_columns else columns
    whole = layer.weight_scale.float() if layer.scheme.progressive else None
    return IntegerWeight(values, number.bits, columns, scale, zeros, group, inputs, whole=whole, wide=is_wide)


def _pair(layer: LayerPiece, weights: Quantizer) -> Tensor | None:
    """The values in pairs of columns; None where they are not of four bits, or of columns that make no pairs."""
    if weights.number.unit != (8, 1) or weights.number.bits != 4 or layer.in_features % 2:
        return None
    if is_transposed(weights):
        return pair_transposed(layer.weight_quantized, layer.out_features, reorder=layer.scheme.reorder)
    return pair_columns(layer.weight_quantized, layer.in_features, reorder=layer.scheme.reorder)


def _shape(each: Tensor, weights: Quantizer) -> Tensor:
    """Scales or zero-points with an axis of rows and one of columns."""
    return each.reshape(1, -1) if weights.extent is Extent.TENSOR or weights.by_columns else each
