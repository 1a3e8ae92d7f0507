"""Values of four bits as pairs of columns, without taking them all apart."""

import torch
from torch import Tensor

from qload.torch.strips import STRIP
from qload_quark.runtime.reading import REORDERED

_PLAIN = tuple(range(8))


def pair_columns(words: Tensor, columns: int, *, reorder: bool) -> Tensor:
    """Rows of words of eight values as pairs [rows, columns / 2], uint8."""
    stored = words.contiguous().view(torch.uint8)
    if not reorder:
        return stored[:, : columns // 2]
    first, second, third, fourth = stored.unflatten(-1, (-1, 4)).unbind(-1)
    pairs = (_join_low(first, third), _join_high(first, third), _join_low(second, fourth), _join_high(second, fourth))
    return torch.stack(pairs, -1).flatten(-2)[:, : columns // 2]


def pair_transposed(words: Tensor, rows: int, *, reorder: bool) -> Tensor:
    """Columns of words of eight rows [columns, rows / 8] as pairs [rows, columns / 2], uint8."""
    columns, count = words.shape
    pairs = torch.empty(count, 8, columns // 2, dtype=torch.uint8, device=words.device)
    strip = max(2, STRIP // max(1, count * 8) // 2 * 2)
    for start in range(0, columns, strip):
        stored = words[start : start + strip].contiguous().view(torch.uint8).unflatten(-1, (count, 4))
        _fill(stored[::2], stored[1::2], pairs[..., start // 2 : (start + strip) // 2], reorder)
    return pairs.flatten(0, 1)[:rows]


def _fill(even: Tensor, odd: Tensor, pairs: Tensor, reorder: bool) -> None:
    """Pairs [words, 8, n] of the bytes of even and odd columns [n, words, 4]."""
    places, halves = REORDERED if reorder else _PLAIN, (_join_low(even, odd), _join_high(even, odd))
    for row, place in enumerate(places):
        pairs[:, row].copy_(halves[place % 2][..., place // 2].T)


def _join_low(first: Tensor, second: Tensor) -> Tensor:
    return first & 15 | second << 4


def _join_high(first: Tensor, second: Tensor) -> Tensor:
    return first >> 4 | second & 0xF0
