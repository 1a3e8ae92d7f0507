"""Computes with AWQ's tensors."""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import find_places, scale_groups, take, unpack
from qload.torch.kernels import IntegerWeight, Weight
from qload.torch.nibbles import view_pairs
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


def qload_weight(layer: LayerPiece) -> Weight | str:
    columns, group = layer.in_features, _group(layer)
    if columns % 8:
        return f"{columns} input features are no multiple of 8"
    groups = columns // group
    if layer.scheme.version == GEMM:
        places = find_places(torch.arange(layer.out_features, device=layer.qweight.device), _ORDER)
        zeros = unpack(layer.qzeros, BITS, layer.out_features)[:, places].T
        return IntegerWeight(layer.qweight, BITS, columns, layer.scales.T, zeros, group, order=_ORDER)
    if layer.scheme.version == GEMV:
        zeros = unpack(layer.qzeros, BITS, groups)
        return IntegerWeight(view_pairs(layer.qweight), BITS, columns, layer.scales[:, :groups], zeros, group)
    scales, zeros = _divide_products(layer.scales.T, layer.qzeros.T, groups)
    is_whole = bool(((zeros >= 0) & (zeros < 1 << BITS)).all())
    values = _pair_separated(layer.qweight)
    return IntegerWeight(values, BITS, columns, scales, zeros.to(torch.uint8) if is_whole else zeros, group)


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
    """Of gemv_fast: the products are of zero-points and scales."""
    return _scale(layer, values, *_divide_products(scales, products, layer.in_features // _group(layer)))


def _divide_products(scales: Tensor, products: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The scales and zero-points of the groups, out of their products, negated.

    Added as they are, the products would leave of a zero what they were rounded by.
    """
    scales = scales[:, :groups]
    return scales, (-products[:, :groups] / scales).round().nan_to_num()


def _separate(words: Tensor) -> Tensor:
    """Four rows interleaved by strips of 64 columns, and each 32 and each 8 columns shuffled, int16 [n, columns]:
    their values in order, [n, 4, columns].
    """
    count, columns = words.shape
    strips = unpack(words, BITS, 4 * columns).view(count, columns // STRIDE, 4, STRIDE)
    rows = strips.transpose(1, 2).reshape(count, 4, columns // 32, 4, 2, 4)
    paired = rows.transpose(-1, -2).reshape(count, 4, columns // 32, 4, 4, 2)
    return paired.transpose(-2, -3).reshape(count, 4, columns)


def _pair_separated(words: Tensor) -> Tensor:
    """As `_separate`, in pairs: of eight values that are four and four apart each two meet in a byte."""
    count, columns = words.shape
    paired = torch.empty(count, 4, columns // 2, dtype=torch.uint8, device=words.device)
    step = max(1, (1 << 16) // columns)
    for some, into in zip(words.split(step), paired.split(step), strict=True):
        strips = some.contiguous().view(torch.int32).view(-1, columns // STRIDE, 4, STRIDE // 8)
        shuffled = _shuffle(strips).view(torch.uint8).view(-1, columns // STRIDE, 4, 2, 4, 4)
        into.view(-1, 4, columns // STRIDE, 2, 4, 4).copy_(shuffled.permute(0, 2, 1, 3, 5, 4))
    return paired.flatten(0, 1)


def _shuffle(words: Tensor) -> Tensor:
    """Of a word's eight values those of the first half beside those of the second."""
    for shift, mask in ((8, 0x0000FF00), (4, 0x00F000F0)):
        moved = torch.bitwise_right_shift(words, shift).bitwise_xor_(words).bitwise_and_(mask)
        words = words ^ moved ^ moved << shift
    return words


def _scale(layer: LayerPiece, values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return scale_groups(values, scales, zeros, _group(layer))


def _group(layer: LayerPiece) -> int:
    group: int = layer.scheme.group_size or layer.in_features
    return group
