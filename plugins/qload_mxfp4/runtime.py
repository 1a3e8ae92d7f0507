"""Computes with mxfp4's tensors."""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import scale_groups, unpack
from qload.torch.floats import decode_e2m1, decode_e8m0


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return _scale(layer, layer.blocks, layer.scales)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _scale(layer, layer.blocks[ids], layer.scales[ids])


def _scale(layer: LayerPiece, blocks: Tensor, scales: Tensor) -> Tensor:
    """In bfloat16, which holds each value and each power of two, and so their products."""
    values = decode_e2m1(unpack(blocks.flatten(-2), 4, layer.in_features), torch.bfloat16)
    return scale_groups(values, decode_e8m0(scales, torch.bfloat16), 0, layer.scheme.block)
