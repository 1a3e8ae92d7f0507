"""Computes with AWQ's tensors."""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import scale_groups, take, unpack
from qload_awq import BITS

# The value of a word that holds each of its eight columns.
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def qload_dequantize(layer: LayerPiece) -> Tensor:
    columns = torch.arange(layer.out_features, device=layer.qweight.device)
    values = unpack(layer.qweight, BITS, layer.out_features)[:, _places(columns)]
    zeros = unpack(layer.qzeros, BITS, layer.out_features)[:, _places(columns)]
    return _scale(layer, values, layer.scales, zeros)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    places = _places(ids)
    values, zeros = take(layer.qweight, BITS, places), take(layer.qzeros, BITS, places)
    return _scale(layer, values, layer.scales[:, ids], zeros)


def _places(columns: Tensor) -> Tensor:
    order = torch.tensor(_ORDER, device=columns.device)
    return columns - columns % 8 + order[columns % 8]


def _scale(layer: LayerPiece, values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return scale_groups(values.T, scales.T, zeros.T, layer.scheme.group_size or layer.in_features)
