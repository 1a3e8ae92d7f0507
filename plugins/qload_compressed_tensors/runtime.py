"""Computes with compressed-tensors' tensors."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch import Layer
from qload.torch.activations import fake_quantize, fake_quantize_dynamic
from qload.torch.arithmetic import scale_blocks, scale_by_index, scale_groups, take, unpack
from qload.torch.floats import decode_e2m1, decode_e8m0
from qload.torch.ordering import settle_group_index
from qload_compressed_tensors.config import Strategy
from qload_compressed_tensors.quantizing import quantize
from qload_compressed_tensors.schemes import (
    MXFP8,
    NVFP4,
    PACKED,
    SMALL_FLOATS,
    CacheScheme,
    CompressedScheme,
    Quantizer,
)


def qload_dequantize(layer: LayerPiece) -> Tensor:
    weights: Quantizer = layer.scheme.weights
    if layer.scheme.format in SMALL_FLOATS:
        return scale_groups(_small_floats(layer), _small_scale(layer), 0, weights.group or layer.in_features)
    if weights.block is not None:
        return scale_blocks(layer.weight_quantized, layer.weight_scale, weights.block)
    return _scale(layer, _values(layer), layer.weight_scale, _zeros(layer))


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    weights: Quantizer = layer.scheme.weights
    if layer.scheme.format in SMALL_FLOATS:
        scale = _small_scale(layer, ids)
        return scale_groups(_small_floats(layer, ids), scale, 0, weights.group or layer.in_features)
    if weights.block is not None:
        height, width = weights.block
        return scale_groups(layer.weight_quantized[ids], layer.weight_scale[ids // height], 0, width)
    scale = layer.weight_scale if weights.strategy is Strategy.TENSOR else layer.weight_scale[ids]
    return _scale(layer, _values(layer, ids), scale, _zeros(layer, ids))


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    inputs = layer.scheme.inputs
    if inputs is not None and layer.quantize_activations:
        x = _quantize_input(layer, inputs, x)
    return F.linear(x, qload_dequantize(layer).to(x.dtype), bias)


def qload_process_weights_after_loading(layer: Layer) -> None:
    scheme = layer.scheme
    if isinstance(scheme, CompressedScheme) and scheme.weights.group and scheme.weights.orders_groups:
        settle_group_index(layer, "weight_g_idx", scheme.weights.group, ordered=True)


def qload_quantize(weight: Tensor, scheme: CompressedScheme | CacheScheme) -> dict[str, Tensor]:
    return quantize(weight, scheme)


def _small_floats(layer: LayerPiece, ids: Tensor | None = None) -> Tensor:
    if layer.scheme.format == MXFP8:
        return layer.weight_quantized if ids is None else layer.weight_quantized[ids]
    stored = layer.weight_packed if ids is None else layer.weight_packed[ids]
    return decode_e2m1(unpack(stored, 4, layer.in_features), torch.bfloat16)


def _small_scale(layer: LayerPiece, ids: Tensor | None = None) -> Tensor:
    """The scales [rows, groups]: powers of two, which bfloat16 holds; or fp8 over the scale of scales, in float32."""
    stored = layer.weight_scale if ids is None else layer.weight_scale[ids]
    if layer.scheme.format == NVFP4:
        return stored.to(torch.float32) / layer.weight_global_scale
    return decode_e8m0(stored, torch.bfloat16)


def _values(layer: LayerPiece, ids: Tensor | None = None) -> Tensor:
    stored = layer.weight_packed if layer.scheme.format == PACKED else layer.weight_quantized
    rows = stored if ids is None else stored[ids]
    return unpack(rows, layer.scheme.weights.bits, layer.in_features) if layer.scheme.format == PACKED else rows


def _zeros(layer: LayerPiece, ids: Tensor | None = None) -> Tensor | int:
    """Zero-points [rows, groups] of the values as they are stored."""
    weights: Quantizer = layer.scheme.weights
    if layer.scheme.format != PACKED:
        zeros = cast("Tensor | None", layer.weight_zero_point)
        if zeros is None:
            return 0
        return zeros if ids is None or weights.strategy is Strategy.TENSOR else zeros[ids]
    half = 1 << (weights.bits - 1)
    if weights.symmetric:
        return half
    if weights.strategy is Strategy.TENSOR:
        return layer.weight_zero_point.to(torch.int32) + half
    words = layer.weight_zero_point.T
    columns = unpack(words, weights.bits, layer.out_features) if ids is None else take(words, weights.bits, ids)
    return columns.T


def _scale(layer: LayerPiece, values: Tensor, scale: Tensor, zeros: Tensor | int) -> Tensor:
    weights: Quantizer = layer.scheme.weights
    if weights.strategy is Strategy.TENSOR:
        return (values.to(scale.dtype) - zeros) * scale
    if weights.orders_groups and layer.weight_g_idx is not None:
        return scale_by_index(values, scale, zeros, layer.weight_g_idx)
    return scale_groups(values, scale, zeros, weights.group or layer.in_features)


def _quantize_input(layer: LayerPiece, inputs: Quantizer, x: Tensor) -> Tensor:
    if not inputs.dynamic:
        return fake_quantize(x, layer.input_scale, layer.input_zero_point, inputs.bits, inputs.is_float)
    return fake_quantize_dynamic(
        x,
        inputs.bits,
        inputs.is_float,
        symmetric=inputs.symmetric,
        group=inputs.group,
        by_tensor=inputs.strategy is Strategy.TENSOR,
        global_scale=layer.input_global_scale if inputs.has_global_scale else None,
    )
