"""Values of four bits turned into pairs, two columns to a byte, word by word and without unpacking them.

Pairs are uint8 [rows, columns / 2], that of the even column low: four of them are an int32 word of eight columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qload.layout import packing
from qload.torch.memory import copy_afresh, make_afresh

_STRIP = 1 << 17
"""The words that are worked on at once, about: they and what is computed of them stay in a core's cache."""
_LOW_HALVES = {torch.uint8: 0x0F, torch.int32: 0x0F0F0F0F, torch.int64: 0x0F0F0F0F0F0F0F0F}
LINE = 64
"""Bytes of a cache line. With as many between them, rows a power of two apart do not take each other's place there."""


def view_pairs(words: Tensor) -> Tensor:
    """Rows of words in which columns follow each other, low bits first, as pairs, or as bytes."""
    return (words if words.is_contiguous() else copy_afresh(words)).view(torch.uint8)


def pair_words(words: Tensor, into: Tensor | None = None) -> Tensor:
    """Words int32 [columns / 8, rows] of eight columns each, low bits first, as pairs uint8 [rows, columns / 2].

    They are put into contiguous memory of that shape, if there is any.
    """
    count, rows = words.shape
    pairs = make_afresh((rows, 4 * count), torch.uint8, words.device) if into is None else into
    turned, step = pairs.view(torch.int32), rows if words.is_contiguous() else max(1, _STRIP // max(1, count))
    for start in range(0, rows, max(1, step)):
        # Rows that lie apart are turned many times as slowly.
        turned[start : start + step].copy_(words[:, start : start + step].contiguous().T)
    return pairs


def pair_transposed(words: Tensor, order: Sequence[int], into: Tensor | None = None) -> Tensor:
    """Words int32 [columns, rows / 8] of eight rows each as pairs uint8 [rows, columns / 2].

    Row `place` of eight is in the bits `4 * order[place]` and up; columns are a multiple of 8. They are put into
    contiguous memory of that shape, if there is any.
    """
    columns, count = words.shape
    pairs = make_afresh((8 * count, columns // 2), torch.uint8, words.device) if into is None else into
    paired = pairs.view(count, 8, columns // 2)
    scratch = paired.new_empty(2, LINE, columns // 2 + LINE)[..., : columns // 2]
    for start in range(0, count, LINE // 4):
        strip = words[:, start : start + LINE // 4].contiguous().view(torch.uint8).view(columns // 2, 2, -1)
        turned = scratch[:, : strip.shape[-1]].copy_(strip.permute(1, 2, 0))
        halves = join_nibbles(*view_lanes(turned))
        into = view_lanes(paired[start : start + LINE // 4])
        for row, place in enumerate(order):
            into[:, row].copy_(halves[place % 2][place // 2 :: 4])
    return pairs


def join_nibbles(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of bytes, or of words of them, the low values of both, and the high ones: those of `first` low."""
    mask = _LOW_HALVES[first.dtype]
    return first & mask | (second & mask) << 4, first >> 4 & mask | second ^ second & mask


def view_lanes(bytes_: Tensor) -> Tensor:
    """Rows of bytes as words of eight, if they are made of such: as quick as one byte is."""
    return bytes_ if bytes_.shape[-1] % 8 else bytes_.view(torch.int64)


def pair_halves(words: Tensor, rows: int, columns: int, *, is_first_high: bool) -> Tensor | None:
    """Flat words uint8 of two values, one of each half of the rows, as pairs uint8 [rows, columns / 2].

    The first half's lie in the high or in the low bits. None where a word's two values are of columns of which one is
    even and the other odd, or where the halves are not alike.
    """
    if columns % 2 or rows * columns % 4 or 2 * words.numel() != rows * columns:
        return None
    halves = words.new_empty(2, rows * columns // 4)
    low, high = halves[int(is_first_high)], halves[int(not is_first_high)]
    step = 4 * _STRIP
    for start in range(0, len(low), step):
        even, odd = words[2 * start : 2 * (start + step)].view(-1, 2).unbind(-1)
        torch.bitwise_or(even & 15, odd << 4, out=low[start : start + step])
        torch.bitwise_or(even >> 4, odd & 0xF0, out=high[start : start + step])
    return halves.view(rows, columns // 2)


def reorder(words: Tensor, bits: int, order: Tensor) -> Tensor:
    """Words int32 [n, rows] of 32 / bits columns each, with the columns put in `order` int64 [columns]."""
    (count, _), mask = packing(bits), (1 << bits) - 1
    ordered = torch.zeros_like(words, memory_format=torch.contiguous_format)
    step = max(1, _STRIP // words.shape[1])
    for start in range(0, len(words), step):
        into = ordered[start : start + step]
        for place in range(count):
            column = order[place::count][start : start + step]
            shift = (column % count * bits).to(torch.int32).unsqueeze(1)
            picked = words.index_select(0, column // count).bitwise_right_shift_(shift).bitwise_and_(mask)
            into.bitwise_or_(picked.bitwise_left_shift_(place * bits))
    return ordered
