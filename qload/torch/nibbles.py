"""Values of four bits turned into pairs, two columns to a byte, word by word and without unpacking them.

Pairs are uint8 [rows, columns / 2], that of the even column low: four of them are an int32 word of eight columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qload.layout import packing
from qload.torch.memory import copy_afresh

_STRIP = 1 << 17
"""The words that are worked on at once, about: they and what is computed of them stay in a core's cache."""
_STAGES = ((16, 0x0000FFFF, 4), (8, 0x00FF00FF, 2), (4, 0x0F0F0F0F, 1))
"""By how many bits a stage moves what it exchanges, of which of them, between blocks how far apart."""


def view_pairs(words: Tensor) -> Tensor:
    """Rows of words in which columns follow each other, low bits first, as pairs, or as bytes."""
    return (words if words.is_contiguous() else copy_afresh(words)).view(torch.uint8)


def pair_transposed(words: Tensor, order: Sequence[int]) -> Tensor:
    """Words int32 [columns, rows / 8] of eight rows each as pairs uint8 [rows, columns / 2].

    Row `place` of eight is in the bits `4 * order[place]` and up; columns are a multiple of 8.
    """
    columns, count = words.shape
    paired = words.new_empty(count, 8, columns // 8)
    blocks = words.unflatten(0, (columns // 8, 8))
    step = max(1, _STRIP // columns)
    for start in range(0, count, step):
        places = _transpose([*blocks[..., start : start + step].clone(memory_format=torch.contiguous_format).unbind(1)])
        for row, place in enumerate(order):
            paired[start : start + step, row].copy_(places[place].t())
    return paired.flatten(0, 1).view(torch.uint8)


def _transpose(words: list[Tensor]) -> list[Tensor]:
    """Nibble j of word i of eight becomes nibble i of word j, in place."""
    for shift, mask, apart in _STAGES:
        for number in (number for number in range(8) if not number & apart):
            low, high = words[number], words[number + apart]
            moved = torch.bitwise_right_shift(low, shift).bitwise_xor_(high).bitwise_and_(mask)
            high.bitwise_xor_(moved)
            low.bitwise_xor_(moved.bitwise_left_shift_(shift))
    return words


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
