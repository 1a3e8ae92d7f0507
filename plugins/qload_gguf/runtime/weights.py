"""Rows of blocks in the forms that kernels know."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qload.torch.kernels import E2M1, FloatWeight, IntegerWeight, Weight
from qload.torch.strips import STRIP
from qload_gguf.runtime.decoding import split
from qload_gguf.runtime.pieces import Parts, cut, lay_in_pairs
from qload_gguf.types import BY_NAME

_NAN = 255
"""The exponent for which E8M0 has NaN, and ggml a power of two."""
_BEYOND = 127
"""The code of E4M3 that is NaN, and zero to ggml."""


def find_weight(rows: Tensor, name: str, columns: int) -> Weight | str:
    """Rows of blocks of that type [rows, bytes], of so many columns; or why they have no such form."""
    if columns % 2:
        return "it has an odd number of input features"
    if name in ("MXFP4", "NVFP4"):
        return (_find_mxfp4 if name == "MXFP4" else _find_nvfp4)(rows, columns)
    block = BY_NAME[name]
    count = rows.shape[1] // block.nbytes
    strip = max(1, STRIP // max(1, count * block.elements))
    parts = [split(each.reshape(-1, block.nbytes), name, lay_in_pairs) for each in rows.split(strip)]
    known = [each for each in parts if each is not None]
    if len(known) < len(parts):
        return f"values of {name} are those of a table"
    return _join(known, len(rows), columns, block.elements)


def _join(parts: Sequence[Parts], rows: int, columns: int, elements: int) -> IntegerWeight:
    """Strips of rows as one weight, without the padding of the last blocks."""
    first = parts[0]
    group = elements // first.scale.shape[1]
    groups = -(-columns // group)
    stored = columns // 2 if first.bits == 4 else columns
    values = _stack([each.values for each in parts], rows, stored)
    scale = _stack([each.scale for each in parts], rows, groups)
    shifts = [each.shift for each in parts if each.shift is not None]
    shift = _stack(shifts, rows, groups) if shifts else None
    return IntegerWeight(values, first.bits, columns, scale, first.zero, group, shift=shift)


def _stack(strips: Sequence[Tensor], rows: int, count: int) -> Tensor:
    joined = strips[0] if len(strips) == 1 else torch.cat(tuple(strips))
    return joined.reshape(rows, -1)[:, :count]


def _find_mxfp4(rows: Tensor, columns: int) -> Weight | str:
    exponent, low = cut(rows.reshape(-1, 17), 1, 16)
    if bool((exponent == _NAN).any()):
        return "it has scales beyond those of E8M0"
    scale = exponent.reshape(len(rows), -1)[:, : -(-columns // 32)].view(torch.float8_e8m0fnu)
    return _make_floats(low, 16, len(rows), columns, scale, 32)


def _find_nvfp4(rows: Tensor, columns: int) -> Weight | str:
    scales, low = cut(rows.reshape(-1, 36), 4, 32)
    codes = scales & 0x7F
    if bool((codes == _BEYOND).any()):
        return "it has scales beyond those of E4M3"
    scale = codes.reshape(len(rows), -1)[:, : -(-columns // 16)].view(torch.float8_e4m3fn)
    return _make_floats(low, 8, len(rows), columns, scale, 16)


def _make_floats(low: Tensor, width: int, rows: int, columns: int, scale: Tensor, group: int) -> FloatWeight:
    pairs = lay_in_pairs(low, width).reshape(rows, -1)[:, : columns // 2]
    return FloatWeight(_clear_zeros(pairs), E2M1, columns, scale, (1, group), dtype=torch.float32)


def _clear_zeros(pairs: Tensor) -> Tensor:
    """ggml's whole numbers have one zero: the code of the other becomes it."""
    pairs = torch.where(pairs & 15 == 8, pairs & 0xF0, pairs)
    return torch.where(pairs & 0xF0 == 0x80, pairs & 15, pairs)
