"""marlin-24: two of every four columns, in the order of a kernel's threads, put back into the order of rows.

Source of the orders: compressed-tensors 0.13, `Marlin24Compressor` with `get_permutations_24` and
`sparse_semi_structured_from_dense_cutlass`.
"""

import torch
from torch import Tensor

from qload.declare import group_scale, mask, packed
from qload.layout import fixed, in_, out
from qload.torch import Layer
from qload.torch.arithmetic import unpack
from qload_compressed_tensors.masks import check_halves
from qload_compressed_tensors.quantizers import Quantizer

ROWS = 64
"""The rows of a tile; it has 32 columns, of which 16 are stored."""
_INTERLEAVED = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
"""The order of the values in a word, by their bits."""


def repack(layer: Layer) -> None:
    """Derive values, a mask of bits, and scales, all in the order of rows, from what is stored, and drop that."""
    weights: Quantizer = layer.scheme.weights
    bits = _order_mask(layer.get_parameter("meta"))
    check_halves(layer, bits)
    kept = _order_values(layer.get_parameter("weight_packed"), weights.bits)
    scales = _order_scales(
        layer.get_parameter("scale_packed"), _has_ordered_scales(weights, layer.geometry.in_features)
    )
    columns = in_(weights.group) if weights.group is not None else fixed(1)
    layer.derive(packed("kept", out(), in_(4, weights.bits // 4), dtypes=("U8",)), kept)
    layer.derive(mask("bitmask", out(), in_(8, 1)), bits)
    layer.derive(group_scale("weight_scale", out(), columns, dtypes=("F16",)), scales)
    for name in ("weight_packed", "meta", "scale_packed"):
        layer.set_tensor(name, None)


def _order_values(words: Tensor, bits: int) -> Tensor:
    """words [..., columns / 32, words] into bytes [..., rows, bytes], values packed along the rows, low bits first."""
    tiles = unpack(words, bits, words.shape[-1] * 32 // bits).unflatten(-1, (-1, 16 * ROWS))
    ordered = tiles[..., _find_places(bits).to(words.device)].unflatten(-1, (16, ROWS))
    values: Tensor = ordered.movedim((-3, -1), (-4, -3)).flatten(-4, -3).flatten(-2)
    return values if bits == 8 else values[..., 0::2] | values[..., 1::2] << 4


def _find_places(bits: int) -> Tensor:
    """Where in a stored tile each value is: [16 * 64], of each kept column, row after row."""
    stored = torch.arange(16 * ROWS)
    order = torch.tensor(_INTERLEAVED[bits])
    place = stored // len(order) * len(order) + order[stored % len(order)]
    thread, turn, half, step = place // 32, place // 8 % 4, place // 4 % 2, place % 4
    row = thread // 4 * 8 + half * 4 + turn
    column = thread % 4 * 2 + step % 2 + step // 2 * 8
    return (column * ROWS + row).argsort()


def _order_mask(meta: Tensor) -> Tensor:
    """meta int16 [..., columns / 32, 2 * rows], pairs of places in fours, into bits [..., rows, columns / 8]."""
    tiles = meta.unflatten(-1, (-1, 2 * ROWS))
    ordered = tiles[..., _find_meta().to(meta.device)]
    words = ordered.movedim((-4, -3, -2), (-2, -4, -3)).flatten(-4, -3).flatten(-2)
    codes = words.contiguous().view(torch.uint8)
    return _as_bits(codes & 15) | _as_bits(codes >> 4) << 4


def _as_bits(pairs: Tensor) -> Tensor:
    one = torch.ones_like(pairs)
    return one << (pairs & 3) | one << (pairs >> 2)


def _find_meta() -> Tensor:
    """Where in a stored tile the word of each row is, for its first 16 columns and its others: [64, 2]."""
    row, column = torch.arange(ROWS)[:, None], torch.arange(2)[None]
    moved = row % 2 * 2 + row % 8 // 4 + row % 4 // 2 * 32 + row // 8 * 4
    swapped = torch.where(moved % 2 == column, 0, column - moved % 2)
    return (moved + swapped) * 2 + column - swapped


def _has_ordered_scales(weights: Quantizer, columns: int) -> bool:
    """The compressor tells groups from channels by the columns that it has kept, half of them."""
    return weights.group is not None and weights.group < columns // 2


def _order_scales(scales: Tensor, is_ordered: bool) -> Tensor:
    """scales [..., groups, rows] into [..., rows, groups]; ordered ones alternate between halves of eight rows."""
    if is_ordered:
        scales = scales.unflatten(-1, (-1, 4, 2)).transpose(-1, -2).flatten(-3)
    return scales.transpose(-1, -2).contiguous()
