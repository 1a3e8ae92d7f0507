"""int8 weights with a scale for each row: the torch hooks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.kernels import IntegerWeight, Weight


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return layer.values * layer.row_scale[:, None]


def qload_weight(layer: LayerPiece) -> Weight:
    return IntegerWeight(layer.values, 8, layer.in_features, layer.row_scale[:, None], 0, layer.in_features)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return layer.values[ids] * layer.row_scale[ids, None]


def quantize(weight: Tensor) -> Mapping[str, Tensor]:
    """What the method makes of a plain weight; no hook, but what `python -m rowint8` uses."""
    scale = weight.float().abs().amax(dim=1).clamp_min(1e-12) / 127
    return {"values": (weight / scale[:, None]).round().to(torch.int8), "row_scale": scale}
