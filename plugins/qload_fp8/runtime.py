"""Computes with fp8's tensors."""

from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import pick, scale_blocks
from qload.torch.kernels import FloatWeight, Inputs, Weight, name_element
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding
from qload_fp8 import Fp8Scheme
from qload_fp8.quantizing import quantize


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return _dequantize(layer, None)


def qload_weight(layer: LayerPiece) -> Weight | str:
    scheme: Fp8Scheme = layer.scheme
    values, divides, inputs = layer.weight_quantized, scheme.divides, _inputs(layer)
    scale = layer.weight_scale.view(1, 1) if scheme.block is None else _scales(layer)
    block = scheme.block or (layer.out_features, layer.in_features)
    return FloatWeight(values, name_element(values), layer.in_features, scale, block, divides=divides, inputs=inputs)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _dequantize(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(_inputs(layer).round(x, layer.agree), qload_dequantize(layer).to(x.dtype), bias)


def qload_quantize(weight: Tensor, scheme: Fp8Scheme) -> dict[str, Tensor]:
    return quantize(weight, scheme)


def _dequantize(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    """The rows `ids` of the weight, or all of them."""
    scheme: Fp8Scheme = layer.scheme
    values = pick(layer.weight_quantized, ids)
    if scheme.block is not None:
        return scale_blocks(values, _scales(layer), scheme.block, divide=scheme.divides, rows=ids)
    scale = layer.weight_scale
    return values.to(scale.dtype) / scale if scheme.divides else values.to(scale.dtype) * scale


def _scales(layer: LayerPiece) -> Tensor:
    """The blocks' scales; those stored as powers of two in one byte as float32."""
    stored = layer.weight_scale_inv
    return stored.float() if stored.itemsize == 1 else stored


def _inputs(layer: LayerPiece) -> Inputs:
    scheme: Fp8Scheme = layer.scheme
    if not layer.quantize_activations or scheme.inputs == "none":
        return Inputs()
    if scheme.inputs == "static":
        return Inputs(rounding=StaticRounding(8, is_float=True), scale=layer.input_scale)
    return Inputs(rounding=DynamicRounding(8, is_float=True, group=None if scheme.block is None else scheme.block[1]))
