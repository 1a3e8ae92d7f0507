"""Four bits: codes and scales, in the order in which bitsandbytes computes: in float32, and then rounded.

Source: bitsandbytes' `dequantize_4bit` and `dequantize_blockwise`.
"""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import find_rows, look_up_pairs, scale_groups
from qload.torch.kernels import CodebookWeight, Weight
from qload_bitsandbytes.schemes import FourBitScheme


def dequantize(layer: LayerPiece) -> Tensor:
    """The weight, in the dtype that it was quantized from."""
    values, scale = look_up_pairs(_codes(layer), layer.quant_map), _scales(layer)
    if not layer.scheme.is_aligned(layer.in_features):
        values = values.view(1, -1)[:, : layer.out_features * layer.in_features]
        scale = scale.view(1, -1)
    dense = scale_groups(values, scale, 0, layer.scheme.block_size)
    return dense.view(layer.out_features, layer.in_features).to(layer.dense_like.dtype)


def look_up(layer: LayerPiece, ids: Tensor) -> Tensor:
    """Rows of the weight."""
    if not layer.scheme.is_aligned(layer.in_features):
        return _look_up_flat(layer, ids)
    values = look_up_pairs(layer.weight_quantized[ids].view(torch.uint8), layer.quant_map)
    return scale_groups(values, _scales(layer, ids), 0, layer.scheme.block_size).to(layer.dense_like.dtype)


def find_weight(layer: LayerPiece) -> Weight | str:
    """The form that kernels know."""
    scheme: FourBitScheme = layer.scheme
    if not scheme.is_aligned(layer.in_features):
        return f"blocks of {scheme.block_size} go on from one row to the next"
    dtype = layer.dense_like.dtype
    return CodebookWeight(_codes(layer), scheme.quant_type, layer.quant_map, _scales(layer), scheme.block_size, dtype)


def _codes(layer: LayerPiece) -> Tensor:
    """Two to a byte, the first in the high bits, stored as any dtype."""
    return layer.weight_quantized.view(torch.uint8)


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
