"""Reads Quark's values, scales and zero-points as numbers."""

from typing import cast

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import extend_sign, find_places, pick, take, unpack
from qload.torch.floats import decode_e8m0, decode_float
from qload_quark import is_transposed
from qload_quark.numbers import Number
from qload_quark.schemes import E8M0, EXPONENT, Extent, Quantizer

REORDERED = (0, 4, 1, 5, 2, 6, 3, 7)
"""The value of a word that holds each of its eight entries, with the pack_method `reorder`."""
_HIGH_FIRST = (3, 2, 1, 0)
"""The same for the four of a byte of uint2. Source: Quark's `_pack`."""


def read_values(layer: LayerPiece, weights: Quantizer, ids: Tensor | None) -> Tensor:
    """The stored values [rows, columns], as numbers."""
    number, stored, reorder = weights.number, layer.weight_quantized, layer.scheme.reorder
    if is_transposed(weights):
        return _read(stored, number, reorder, layer.out_features, ids).T
    return _read(pick(stored, ids), number, reorder, layer.in_features, None)


def read_zeros(layer: LayerPiece, weights: Quantizer, ids: Tensor | None) -> Tensor | int:
    """Zero-points that broadcast against the values, or are [rows, groups]; 0 where none are stored."""
    stored = None if weights.number.is_float else _named(layer, "weight_zero_point")
    if stored is None:
        return 0
    if weights.extent is Extent.TENSOR:
        # The only one of 4 bits has a word of its own, and Quark itself may leave its high bits unset.
        is_plain = weights.has_float_zero or weights.number.unit == (1, 1)
        return stored if is_plain else _decode((stored & 0xF).to(torch.uint8), weights.number)
    number, reorder = weights.number, layer.scheme.reorder
    if weights.extent is Extent.CHANNEL:
        count = layer.in_features if weights.by_columns else layer.out_features
        whole = stored if weights.has_float_zero else _read(stored, number, reorder, count, None)
        return whole if weights.by_columns else pick(whole, ids)[:, None]
    if weights.has_float_zero:
        return pick(stored.T, ids)
    if is_transposed(weights):
        return _read(stored, number, reorder, layer.out_features, ids).T
    groups = -(-layer.in_features // (weights.group or 1))
    return _read(pick(stored, ids), number, reorder, groups, None)


def read_scales(layer: LayerPiece, weights: Quantizer, ids: Tensor | None) -> Tensor:
    """Scales that broadcast against the values; [rows, groups]; or those of blocks, of all rows."""
    stored = _named(layer, "weight_scale")
    if weights.extent in (Extent.TENSOR, Extent.BLOCK):
        return _widen(layer, stored)
    if weights.extent is Extent.CHANNEL:
        return _widen(layer, stored if weights.by_columns else pick(stored, ids)[:, None])
    if weights.number.is_float:
        return _decode_scales(layer, weights, pick(stored, ids))
    return _widen(layer, pick(stored.T, ids))


def _decode_scales(layer: LayerPiece, weights: Quantizer, stored: Tensor) -> Tensor:
    """The scales of small floats: powers of two and E5M3, which bfloat16 holds; or fp8 times the scale of scales."""
    if layer.scheme.scales_scaled:
        return stored.float() * layer.weight_scale_2.float()
    if weights.scales == E8M0:
        return decode_e8m0(stored, torch.bfloat16)
    if weights.scales == EXPONENT:
        return torch.exp2(stored.view(torch.int8).float()).to(torch.bfloat16)
    # Source of E5M3, which has no sign: Quark's `float8_e5m3/reference.py`.
    return decode_float(stored, 5, 3, torch.bfloat16, signed=False) if weights.scales == "e5m3" else stored


def _widen(layer: LayerPiece, scale: Tensor) -> Tensor:
    """Two scales after one another would be rounded between them in a narrow dtype."""
    return scale.float() if layer.scheme.progressive else scale


def _named(layer: LayerPiece, name: str) -> Tensor:
    """A tensor of the last stage, which has a number of its own where there are two."""
    return cast("Tensor", getattr(layer, f"{name}_2" if layer.scheme.progressive else name))


def _read(words: Tensor, number: Number, reorder: bool, count: int, index: Tensor | None) -> Tensor:
    """The first `count` values along the last axis, or those at `index`, as numbers."""
    if number.unit == (1, 1):
        return words if index is None else words[..., index]
    if number.split:
        return _decode(_join(words)[..., :count], number)
    order = REORDERED if reorder and number.stored == "I32" else _HIGH_FIRST if number.bits == 2 else None
    if order is not None:
        index = find_places(torch.arange(count, device=words.device) if index is None else index, order)
    if index is None:
        return _decode(unpack(words, number.bits, count), number)
    return _decode(take(words, number.bits, index), number)


def _join(stored: Tensor) -> Tensor:
    """Codes of 6 bits, of which the first byte of three holds the high two of four, and the others the low four."""
    high, *low = stored.unflatten(-1, (-1, 3)).unbind(-1)
    highs = [torch.bitwise_right_shift(high, shift) & 3 for shift in (6, 4, 2, 0)]
    lows = [torch.bitwise_right_shift(byte, shift) & 0xF for byte in low for shift in (4, 0)]
    return torch.stack([16 * first | second for first, second in zip(highs, lows, strict=True)], -1).flatten(-2)


def _decode(codes: Tensor, number: Number) -> Tensor:
    if number.is_float:
        return decode_float(codes, number.exponent, number.mantissa, torch.bfloat16)
    return extend_sign(codes, number.bits) if number.signed else codes
