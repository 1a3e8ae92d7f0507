"""Computes with AWQ's tensors."""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import find_places, scale_groups, take, unpack
from qload_awq import BITS, GEMM, GEMV, STRIDE

# The value of a word that holds each of its eight columns.
_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def qload_dequantize(layer: LayerPiece) -> Tensor:
    if layer.scheme.version == GEMM:
        places = find_places(torch.arange(layer.out_features, device=layer.qweight.device), _ORDER)
        values = unpack(layer.qweight, BITS, layer.out_features)[:, places]
        zeros = unpack(layer.qzeros, BITS, layer.out_features)[:, places]
        return _scale(layer, values.T, layer.scales.T, zeros.T)
    if layer.scheme.version == GEMV:
        return _scale_rows(layer, layer.qweight, layer.scales, layer.qzeros)
    return _scale_products(layer, _separate(layer.qweight).flatten(0, 1), layer.scales.T, layer.qzeros.T)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    if layer.scheme.version == GEMM:
        places = find_places(ids, _ORDER)
        values, zeros = take(layer.qweight, BITS, places), take(layer.qzeros, BITS, places)
        return _scale(layer, values.T, layer.scales[:, ids].T, zeros.T)
    if layer.scheme.version == GEMV:
        return _scale_rows(layer, layer.qweight[ids], layer.scales[ids], layer.qzeros[ids])
    blocks = _separate(layer.qweight[ids // 4])
    values = blocks[torch.arange(len(ids), device=ids.device), ids % 4]
    return _scale_products(layer, values, layer.scales[:, ids].T, layer.qzeros[:, ids].T)


def _scale_rows(layer: LayerPiece, words: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Of gemv: rows in order, whose zero-points and scales are padded."""
    groups = layer.in_features // _group(layer)
    values = unpack(words, BITS, layer.in_features)
    return _scale(layer, values, scales[:, :groups], unpack(zeros, BITS, groups))


def _scale_products(layer: LayerPiece, values: Tensor, scales: Tensor, products: Tensor) -> Tensor:
    """Of gemv_fast: the products are of zero-points and scales, negated, out of which the zero-points are had again.

    Added as they are, they would leave of a zero what they were rounded by.
    """
    groups = layer.in_features // _group(layer)
    scales = scales[:, :groups]
    zeros = (-products[:, :groups] / scales).round().nan_to_num()
    return _scale(layer, values, scales, zeros)


def _separate(words: Tensor) -> Tensor:
    """Four rows interleaved by strips of 64 columns, and each 32 and each 8 columns shuffled, int16 [n, columns]:
    their values in order, [n, 4, columns].
    """
    count, columns = words.shape
    strips = unpack(words, BITS, 4 * columns).view(count, columns // STRIDE, 4, STRIDE)
    rows = strips.transpose(1, 2).reshape(count, 4, columns // 32, 4, 2, 4)
    paired = rows.transpose(-1, -2).reshape(count, 4, columns // 32, 4, 4, 2)
    return paired.transpose(-2, -3).reshape(count, 4, columns)


def _scale(layer: LayerPiece, values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return scale_groups(values, scales, zeros, _group(layer))


def _group(layer: LayerPiece) -> int:
    group: int = layer.scheme.group_size or layer.in_features
    return group
