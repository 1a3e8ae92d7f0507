"""Computes with bitsandbytes' tensors."""

from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch import Layer
from qload.torch.kernels import Weight
from qload_bitsandbytes.quantizing import quantize
from qload_bitsandbytes.runtime import four_bits, int8, loading
from qload_bitsandbytes.schemes import FourBitScheme, Int8Scheme


def qload_dequantize(layer: LayerPiece) -> Tensor:
    if isinstance(layer.scheme, Int8Scheme):
        return int8.dequantize(layer.weight_quantized, layer.row_scale)
    return four_bits.dequantize(layer)


def qload_weight(layer: LayerPiece) -> Weight | str:
    if isinstance(layer.scheme, Int8Scheme):
        return int8.find_weight(layer)
    return four_bits.find_weight(layer)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    if isinstance(layer.scheme, Int8Scheme):
        return int8.dequantize(layer.weight_quantized[ids], layer.row_scale[ids])
    return four_bits.look_up(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer.scheme, Int8Scheme) and layer.quantize_activations:
        return int8.multiply(layer, x, bias)
    return F.linear(x, qload_dequantize(layer).to(x.dtype), bias)


def qload_quantize(weight: Tensor, scheme: FourBitScheme | Int8Scheme) -> dict[str, Tensor]:
    return quantize(weight, scheme)


def qload_process_weights_after_loading(layer: Layer) -> None:
    if isinstance(layer.scheme, Int8Scheme):
        loading.check_format(layer)
    else:
        loading.settle_states(layer)
