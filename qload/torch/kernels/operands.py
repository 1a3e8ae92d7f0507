"""How torch's scaled products want what they multiply to lie in memory."""

import torch
from torch import Tensor
from torch.nn import functional as F

_OUTER, _INNER = 128, 4
"""Rows, and groups of columns, whose scales make a tile."""
_QUARTER = 32


def lay_by_rows(codes: Tensor) -> Tensor:
    """codes [tokens, columns], contiguous, with strides (columns, 1) also of one token, for which torch leaves others.

    cuBLAS takes the first one for the distance of tokens. Source: ATen's native/cuda/cuBlasCommonArgs.h.
    """
    return codes.contiguous().flatten().view(codes.shape)


def count_tiled(rows: int, groups: int) -> int:
    """The scales of whole tiles that hold those of `rows` and `groups`."""
    return -(-rows // _OUTER) * _OUTER * (-(-groups // _INNER) * _INNER)


def tile_scales(scale: Tensor) -> Tensor:
    """Scales of one byte [rows, groups] in the tiles of 128 rows by 4 groups that cuBLAS reads, one after another, [n].

    In a tile, row r and group g are at 16 (r mod 32) + 4 (r / 32) + g; zeros fill it.
    Source: cuBLAS's documentation, 3.1.5.2.2, "1D Block Scaling Factors Layout".
    """
    rows, groups = scale.shape
    filled = F.pad(scale.view(torch.uint8), (0, -groups % _INNER, 0, -rows % _OUTER))
    tiles = filled.view(-(-rows // _OUTER), _OUTER // _QUARTER, _QUARTER, -(-groups // _INNER), _INNER)
    return tiles.permute(0, 3, 2, 1, 4).flatten().view(scale.dtype)


def untile_scales(tiled: Tensor, rows: int, groups: int) -> Tensor:
    """The scales [rows, groups] that `tile_scales` was given."""
    shape = (-(-rows // _OUTER), -(-groups // _INNER), _QUARTER, _OUTER // _QUARTER, _INNER)
    tiles = tiled.view(torch.uint8).view(shape).permute(0, 3, 2, 1, 4)
    filled = tiles.reshape(shape[0] * _OUTER, shape[1] * _INNER)
    return filled[:rows, :groups].contiguous().view(tiled.dtype)
