"""ModelOpt's weights in the forms that kernels know."""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.kernels import FloatWeight, Inputs, IntegerWeight, Weight, name_element
from qload_modelopt.schemes import Form


def find_weight(layer: LayerPiece, inputs: Inputs) -> Weight | str:
    """The weight for inputs to which all of `inputs` is done; or why it has no such form."""
    form, columns = layer.scheme.form, layer.in_features
    if form is Form.PLAIN:
        return "its weight is not quantized"
    stored, size = layer.weight_quantized, layer.scheme.size or columns
    match form:
        case Form.INT4 if columns % 2:
            return "it has an odd number of input features"
        case Form.INT4 if layer.scheme.double and inputs.rounding is not None:
            return "its weight is rounded to fp8 once it is dequantized"
        case Form.INT4:
            return IntegerWeight(pair_columns(stored), 4, columns, layer.weight_scale, 8, size, inputs)
        case Form.INT8:
            return IntegerWeight(stored, 8, columns, layer.weight_scale[:, None], 0, size, inputs)
    whole = layer.weight_scale_2 if form is Form.NVFP4 else None
    block, scale = _find_blocks(layer, form, size)
    return FloatWeight(stored, name_element(stored), columns, scale, block, whole, inputs=inputs)


def _find_blocks(layer: LayerPiece, form: Form, size: int) -> tuple[tuple[int, int], Tensor]:
    """The rows and columns of a block, and the scales of blocks."""
    scale = layer.weight_scale
    match form:
        case Form.FP8_TENSOR:
            return (layer.out_features, layer.in_features), scale.view(1, 1)
        case Form.FP8_BLOCK:
            return (size, size), scale
        case Form.FP8_CHANNEL:
            return (1, size), scale[:, None]
        case Form.NVFP4:
            return (1, size), scale
    return (1, size), scale.view(torch.float8_e8m0fnu)


def pair_columns(pairs: Tensor) -> Tensor:
    """Pairs of rows in two's complement, the even one low, as pairs of columns of 0 to 15, which are 8 more.

    uint8 [rows / 2, columns] into [rows, columns / 2].
    """
    even, odd = pairs[:, ::2], pairs[:, 1::2]
    paired = pairs.new_empty(len(pairs), 2, odd.shape[1])
    torch.bitwise_or(even & 15, odd << 4, out=paired[:, 0])
    torch.bitwise_or(even >> 4, odd & 0xF0, out=paired[:, 1])
    return paired.bitwise_xor_(0x88).flatten(0, 1)
