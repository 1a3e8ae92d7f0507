"""Computes with compressed-tensors' tensors."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch import Layer
from qload.torch.activations import fake_quantize, keep
from qload.torch.arithmetic import pick, scale_blocks, scale_by_index, scale_groups, take, unpack
from qload.torch.floats import decode_e2m1, decode_e8m0, decode_float
from qload.torch.kernels import Weight
from qload.torch.ordering import settle_group_index
from qload_compressed_tensors import marlin, masks
from qload_compressed_tensors.config import Strategy
from qload_compressed_tensors.formats import MARLIN_24, MXFP8, NVFP4, PACKED, SMALL_FLOATS, SPARSE
from qload_compressed_tensors.quantizers import Quantizer
from qload_compressed_tensors.quantizing import quantize
from qload_compressed_tensors.schemes import CacheScheme, CompressedScheme, Scheme, SparseScheme
from qload_compressed_tensors.weights import find_weight, make_rounding

_KEYS, _VALUES = "k", "v"
"""What the scales of a cache are stored under."""


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return _dequantize(layer, None)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _dequantize(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    scheme = layer.scheme
    if isinstance(scheme, SparseScheme) or not layer.quantize_activations:
        return F.linear(x, qload_dequantize(layer).to(x.dtype), bias)
    x = x if scheme.inputs is None else _quantize(layer, "input", scheme.inputs, x)
    y = F.linear(x, qload_dequantize(layer).to(x.dtype), bias)
    return y if scheme.outputs is None else _quantize(layer, "output", scheme.outputs, y)


def qload_weight(layer: LayerPiece) -> Weight | str:
    has_zeros = isinstance(layer.scheme, CompressedScheme) and layer.scheme.format not in SMALL_FLOATS
    return find_weight(layer, _zeros(layer, None) if has_zeros else 0)


def qload_cache(layer: LayerPiece, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    scheme: CacheScheme = layer.scheme
    return _quantize(layer, _KEYS, scheme.states, keys), _quantize(layer, _VALUES, scheme.states, values)


def qload_process_weights_after_loading(layer: Layer) -> None:
    scheme = layer.scheme
    if isinstance(scheme, CompressedScheme):
        if scheme.weights.group and scheme.weights.orders_groups:
            settle_group_index(layer, "weight_g_idx", scheme.weights.group, ordered=True)
        if scheme.format == MARLIN_24 and layer.weight_packed is not None:
            marlin.repack(layer)
    if isinstance(scheme, CompressedScheme | SparseScheme) and scheme.sparsity is not None:
        _settle_mask(layer, scheme.sparsity)


def qload_quantize(weight: Tensor, scheme: Scheme) -> dict[str, Tensor]:
    return quantize(weight, scheme)


def _settle_mask(layer: Layer, sparsity: str) -> None:
    bits = layer.get_parameter("bitmask")
    if sparsity == SPARSE:
        masks.check_count(layer, bits, layer.get_parameter("compressed"))
        masks.derive_starts(layer, bits)
    else:
        masks.check_halves(layer, bits)


def _dequantize(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    """The rows `ids` of the weight, or all of them."""
    if isinstance(layer.scheme, SparseScheme):
        return _expand(layer, layer.scheme.sparsity, ids)
    weights: Quantizer = layer.scheme.weights
    if layer.scheme.format in SMALL_FLOATS:
        scale = _small_scale(layer, ids)
        return scale_groups(_small_floats(layer, ids), scale, 0, weights.group or layer.in_features)
    if weights.block is not None:
        zeros = _zeros(layer, None)
        return scale_blocks(_values(layer, ids), layer.weight_scale, weights.block, zero=zeros, rows=ids)
    scale = layer.weight_scale if weights.strategy is Strategy.TENSOR else pick(layer.weight_scale, ids)
    return _scale(layer, _values(layer, ids), scale, _zeros(layer, ids))


def _small_floats(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    if layer.scheme.format == MXFP8:
        return pick(layer.weight_quantized, ids)
    bits = layer.scheme.weights.bits
    codes = unpack(pick(layer.weight_packed, ids), bits, layer.in_features)
    return decode_e2m1(codes, torch.bfloat16) if bits == 4 else decode_float(codes, 2, 3, torch.bfloat16)


def _small_scale(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    """The scales [rows, groups]: powers of two, which bfloat16 holds; or fp8, over the scale of scales in float32."""
    stored = pick(layer.weight_scale, ids)
    if layer.scheme.format != NVFP4:
        return decode_e8m0(stored, torch.bfloat16)
    if not layer.scheme.weights.has_global_scale:
        return stored.to(torch.bfloat16)
    return stored.to(torch.float32) / layer.weight_global_scale


def _values(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    """The values [rows, columns] as they are stored, those that are left out included."""
    scheme: CompressedScheme = layer.scheme
    if scheme.sparsity is not None:
        return _expand(layer, scheme.sparsity, ids)
    if scheme.format == MARLIN_24:
        values = unpack(pick(layer.kept, ids), scheme.weights.bits, layer.in_features // 2)
        return masks.expand(values, pick(layer.bitmask, ids), layer.in_features, fill=_half(scheme.weights))
    if scheme.format == PACKED:
        return unpack(pick(layer.weight_packed, ids), scheme.weights.bits, layer.in_features)
    return pick(layer.weight_quantized, ids)


def _expand(layer: LayerPiece, sparsity: str, ids: Tensor | None) -> Tensor:
    """Rows of a weight of which the zeros are left out."""
    if sparsity == SPARSE and ids is not None:
        return masks.expand_rows(layer.compressed, layer.bitmask[ids], layer.row_starts[ids], layer.in_features)
    return masks.expand(pick(layer.compressed, ids), pick(layer.bitmask, ids), layer.in_features)


def _half(weights: Quantizer) -> int:
    """What is added to packed values."""
    return 1 << (weights.bits - 1)


def _zeros(layer: LayerPiece, ids: Tensor | None) -> Tensor | int:
    """Zero-points [rows, groups] of the values as they are stored."""
    weights: Quantizer = layer.scheme.weights
    half = _half(weights) if layer.scheme.format in (PACKED, MARLIN_24) else 0
    if half and weights.symmetric:
        return half
    zeros = cast("Tensor | None", layer.weight_zero_point)
    if zeros is None:
        return half
    if half and weights.strategy in (Strategy.GROUP, Strategy.CHANNEL):
        return _unpack_zeros(layer, zeros.T, weights.bits, ids)
    rows = zeros if ids is None or weights.strategy is Strategy.TENSOR else zeros[ids]
    return rows.to(torch.int32) + half if half else rows


def _unpack_zeros(layer: LayerPiece, words: Tensor, bits: int, ids: Tensor | None) -> Tensor:
    return (unpack(words, bits, layer.out_features) if ids is None else take(words, bits, ids)).T


def _scale(layer: LayerPiece, values: Tensor, scale: Tensor, zeros: Tensor | int) -> Tensor:
    weights: Quantizer = layer.scheme.weights
    if weights.strategy is Strategy.TENSOR:
        zeros = zeros.to(scale.dtype) if isinstance(zeros, Tensor) else zeros
        return (values.to(scale.dtype) - zeros) * scale
    if weights.orders_groups and layer.weight_g_idx is not None:
        return scale_by_index(values, scale, zeros, layer.weight_g_idx)
    return scale_groups(values, scale, zeros, weights.group or layer.in_features)


def _quantize(layer: LayerPiece, name: str, quantizer: Quantizer, x: Tensor) -> Tensor:
    """Activations rounded as the quantizer says, with the scales that are stored under `name`, or its own."""
    if not quantizer.dynamic:
        scale, zero = getattr(layer, f"{name}_scale"), getattr(layer, f"{name}_zero_point")
        return fake_quantize(x, scale, zero, quantizer.bits, quantizer.is_float)
    # What is a token is said by the first two axes; keys and values have heads there.
    is_token = quantizer.strategy is Strategy.TOKEN and x.dim() > 3
    rounded = make_rounding(quantizer).fake(
        x.flatten(2) if is_token else x,
        getattr(layer, f"{name}_global_scale") if quantizer.has_global_scale else None,
        # Each head of a cache has a scale of its own there, and is whole on its rank.
        keep if is_token and name in (_KEYS, _VALUES) else layer.agree,
    )
    return rounded.reshape(x.shape)
