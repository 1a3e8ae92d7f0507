"""Computes with ggml's blocks."""

from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.kernels import Weight
from qload_gguf import GgufScheme
from qload_gguf.quantizing import quantize
from qload_gguf.runtime.decoding import decode
from qload_gguf.runtime.weights import find_weight


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return _scale(layer, decode(layer.weight_quantized, layer.scheme.type))


def qload_weight(layer: LayerPiece) -> Weight | str:
    if getattr(layer, "weight_scale", None) is not None:
        return "its blocks are scaled, and then all of it"
    return find_weight(layer.weight_quantized, layer.scheme.type, layer.in_features)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _scale(layer, decode(layer.weight_quantized[ids], layer.scheme.type))


def qload_quantize(weight: Tensor, scheme: GgufScheme) -> dict[str, Tensor]:
    return quantize(weight, scheme.type)


def _scale(layer: LayerPiece, dense: Tensor) -> Tensor:
    """Without the padding of the last block; and multiplied by the module's own scale, where there is one."""
    dense = dense[:, : layer.in_features]
    scale = getattr(layer, "weight_scale", None)
    return dense if scale is None else dense * scale
