"""Computes with Quark's tensors."""

from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import pick, scale_blocks, scale_groups
from qload.torch.kernels import Inputs, Weight
from qload_quark.runtime.activations import find_rounding, quantize_activations
from qload_quark.runtime.reading import read_scales, read_values, read_zeros
from qload_quark.runtime.weights import find_weight
from qload_quark.schemes import CacheScheme, Extent, Quantizer


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return _dequantize(layer, None)


def qload_weight(layer: LayerPiece) -> Weight | str:
    return find_weight(layer, _inputs(layer))


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _dequantize(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    outputs: Quantizer | None = layer.scheme.outputs if layer.quantize_activations else None
    y = F.linear(_inputs(layer).round(x, layer.agree), qload_dequantize(layer).to(x.dtype), bias)
    return y if outputs is None else quantize_activations(layer, "output", outputs, y)


def qload_cache(layer: LayerPiece, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Source: Quark's `QuarkQuantizedCache`, which is used where keys are quantized with their positions in them."""
    scheme: CacheScheme = layer.scheme
    keys = keys if scheme.keys is None else quantize_activations(layer, "k", scheme.keys, keys)
    return keys, values if scheme.values is None else quantize_activations(layer, "v", scheme.values, values)


def _inputs(layer: LayerPiece) -> Inputs:
    inputs: Quantizer | None = layer.scheme.inputs
    if inputs is None or not layer.quantize_activations:
        return Inputs()
    rounding, scale = find_rounding(layer, "input", inputs)
    return Inputs(rounding=rounding, scale=scale)


def _dequantize(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    """The rows `ids` of the weight, or all of them."""
    weights: Quantizer | None = layer.scheme.weights
    if weights is None:
        return pick(layer.weight, ids)
    values, scale = read_values(layer, weights, ids), read_scales(layer, weights, ids)
    zeros = read_zeros(layer, weights, ids)
    if weights.has_float_zero and isinstance(zeros, Tensor):
        # Differences from a zero-point that is no integer would be rounded in a narrow dtype.
        dense = _scale(weights, values, scale.float(), zeros.float(), ids).to(scale.dtype)
    else:
        dense = _scale(weights, values, scale, zeros, ids)
    return dense * layer.weight_scale.float() if layer.scheme.progressive else dense


def _scale(weights: Quantizer, values: Tensor, scale: Tensor, zeros: Tensor | int, ids: Tensor | None) -> Tensor:
    match weights.extent:
        case Extent.GROUP:
            return scale_groups(values, scale, zeros, weights.group or 1)
        case Extent.BLOCK:
            return scale_blocks(values, scale, weights.block or (1, 1), rows=ids)
        case _:
            return (values.to(scale.dtype) - zeros) * scale
