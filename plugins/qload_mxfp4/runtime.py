"""Computes with mxfp4's tensors."""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import scale_groups, unpack
from qload.torch.floats import decode_e2m1, decode_e8m0
from qload.torch.kernels import E2M1, FloatWeight, Weight


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return _scale(layer, layer.blocks, layer.scales)


def qload_weight(layer: LayerPiece) -> Weight:
    scales = layer.scales.view(torch.float8_e8m0fnu)
    return FloatWeight(layer.blocks.flatten(-2), E2M1, layer.in_features, scales, (1, layer.scheme.block))


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _scale(layer, layer.blocks[ids], layer.scales[ids])


def _scale(layer: LayerPiece, blocks: Tensor, scales: Tensor) -> Tensor:
    """In bfloat16, which holds each value and each power of two, and so their products."""
    values = decode_e2m1(unpack(blocks.flatten(-2), 4, layer.in_features), torch.bfloat16)
    return scale_groups(values, decode_e8m0(scales, torch.bfloat16), 0, layer.scheme.block)
