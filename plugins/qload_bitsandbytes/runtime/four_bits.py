"""Four bits: codes and scales, in the order in which bitsandbytes computes: in float32, and then rounded.

Source: bitsandbytes' `dequantize_4bit` and `dequantize_blockwise`.
"""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import find_rows, scale_groups


def dequantize(layer: LayerPiece) -> Tensor:
    """The weight, in the dtype that it was quantized from."""
    values, scale = _decode(layer.weight_quantized, layer.quant_map), _scales(layer)
    if not layer.scheme.is_aligned(layer.in_features):
        values = values.view(1, -1)[:, : layer.out_features * layer.in_features]
        scale = scale.view(1, -1)
    dense = scale_groups(values, scale, 0, layer.scheme.block_size)
    return dense.view(layer.out_features, layer.in_features).to(layer.dense_like.dtype)


def look_up(layer: LayerPiece, ids: Tensor) -> Tensor:
    """Rows of the weight."""
    if not layer.scheme.is_aligned(layer.in_features):
        return _look_up_flat(layer, ids)
    values = _decode(layer.weight_quantized[ids], layer.quant_map)
    return scale_groups(values, _scales(layer, ids), 0, layer.scheme.block_size).to(layer.dense_like.dtype)


def _decode(packed: Tensor, table: Tensor) -> Tensor:
    """The values of two codes to a byte, the first in the high bits; packed [rows, n], of any dtype."""
    pairs = torch.cartesian_prod(table, table)
    return pairs[packed.view(torch.uint8).int()].flatten(-2)


def _scales(layer: LayerPiece, rows: Tensor | None = None) -> Tensor:
    """The scales of blocks in float32, as `absmax` lies, or of some of its rows.

    Scales that are codes themselves have a scale for every so many of them in the order in which all of them are
    stored, of which this rank may have some columns.
    """
    stored = layer.absmax if rows is None else layer.absmax[rows]
    if layer.scheme.nested is None:
        return stored.float()
    rows = torch.arange(len(stored), device=stored.device) if rows is None else rows
    row_blocks, first = layer.blocks
    numbers = rows[:, None] * row_blocks + first + torch.arange(stored.shape[1], device=stored.device)
    outer = layer.nested_absmax.flatten()[numbers // layer.scheme.nested]
    return layer.nested_quant_map[stored.int()] * outer + layer.nested_offset


def _look_up_flat(layer: LayerPiece, ids: Tensor) -> Tensor:
    """Rows that begin anywhere in a byte and in a block."""
    places = find_rows(ids, layer.in_features)
    pairs = layer.weight_quantized.flatten().view(torch.uint8)[places // 2]
    codes = torch.where(places % 2 == 0, pairs >> 4, pairs & 15)
    scale = _scales(layer, (places // layer.scheme.block_size).flatten()).view_as(places)
    return (layer.quant_map[codes.int()] * scale).to(layer.dense_like.dtype)
