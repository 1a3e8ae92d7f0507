"""Computes with fp8's tensors."""

from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.activations import fake_quantize, fake_quantize_dynamic
from qload.torch.arithmetic import pick, scale_blocks
from qload_fp8 import Fp8Scheme
from qload_fp8.quantizing import quantize


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return _dequantize(layer, None)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _dequantize(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    if layer.quantize_activations:
        x = _quantize_input(layer, x)
    return F.linear(x, qload_dequantize(layer).to(x.dtype), bias)


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


def _quantize_input(layer: LayerPiece, x: Tensor) -> Tensor:
    if layer.scheme.inputs == "static":
        return fake_quantize(x, layer.input_scale, None, 8, is_float=True)
    if layer.scheme.inputs == "dynamic":
        block = layer.scheme.block
        group = None if block is None else block[1]
        return fake_quantize_dynamic(x, 8, is_float=True, group=group, agree=layer.agree)
    return x
