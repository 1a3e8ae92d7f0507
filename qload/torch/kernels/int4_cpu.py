"""torch's CPU kernel for weights of four bits."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qload.torch.activations import Agree
from qload.torch.kernels.affine import Affine
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.kernel import Blank, Case
from qload.torch.kernels.strips import divide_rows
from qload.torch.kernels.weights import IntegerWeight, Weight
from qload.torch.nibbles import LINE, join_nibbles, view_lanes

_UNIT = 16
"""Of rows."""
_BLOCKS = {"AVX512": 64, "AVX2": 32}
"""The rows that the kernel takes at once, by the CPU's instructions."""
_HALF = 4
"""Bits of a byte."""
_STRIP = 1 << 17
"""The words that are packed at once, about: operators take their time to begin, and these are still in the cache."""
_LOW = 0x0F0F0F0F0F0F0F0F
_BYTES = 0xFF, 0xFF00, 0xFF0000, ~0xFFFFFF
"""The bits of each byte of an int32."""
_MOST_ROWS = {torch.bfloat16: 128}
"""The tokens up to which it is ahead of multiplying by the dequantized weight, as measured."""


class CpuInt4(Affine):
    """Multiplies by four-bit integers in groups of 32 to 256 columns, which it unpacks in registers.

    Blocks of rows are stored as [columns, rows / 2], two values to a byte: in a whole block row j, low, with row
    j + rows / 2; in the last one, where it is smaller, neighbours. Source: ATen's int4mm_kernel.cpp.
    """

    label = "int4pack_mm_for_cpu"
    devices = "CPU"
    precision = "scales and offsets are rounded to x's dtype, sums are of float32"
    groups = (256, 128, 64, 32)
    takes_words = True

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return isinstance(weight, IntegerWeight) and weight.bits == 4 and case.device.type == "cpu"

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        capability = torch.backends.cpu.get_cpu_capability()
        if capability not in _BLOCKS:
            return f"it has no vectors of this CPU ({capability})"
        if case.dtype not in _MOST_ROWS:
            return f"it is slow in {str(case.dtype).removeprefix('torch.')}: dtype=bfloat16 is many times as fast"
        if weight.rows % _UNIT:
            return f"{weight.rows} output features are no multiple of {_UNIT}"
        return super().refuse(weight, case)

    @classmethod
    def declare_values(cls, weight: IntegerWeight) -> Blank:
        return Blank((weight.rows, weight.columns // 2), torch.uint8)

    @classmethod
    def fill_values(cls, weight: IntegerWeight, into: Tensor) -> None:
        whole = weight.rows // _find_block() * _find_block() if weight.is_worded else 0
        if whole:
            blocks = into[:whole].view(-1, weight.columns, _find_block() // 2)
            words = weight.cut(0, whole).values
            if weight.order is None:
                _pack_words(words, blocks)
            else:
                _pack_words_of_rows(words, weight.order, blocks)
        if whole < weight.rows:
            _pack_rows(weight.cut(whole, weight.rows).pair(), into[whole:])

    def settle(self, weight: Weight, case: Case) -> None:
        super().settle(weight, case)
        self._block = _find_block()

    def restore_values(self, packed: Tensor) -> Tensor:
        values, rows = torch.empty_like(packed), self._block
        scratch = _make_scratch(packed, min(len(packed), rows))
        # The compiler cannot ask what CPU it is.
        for block, into, apart in zip(packed.split(rows), values.split(rows), _list_kinds(packed, rows), strict=True):
            _unpack_pairs(block.view(self.columns, -1), into, apart, scratch[: len(into)])
        return values

    def split(self, held: Mapping[str, Tensor], least: int = 0) -> Iterator[Weight]:
        for start, stop in divide_rows(self.rows, self.columns, self._block, least=least):
            own = {name: each[start:stop] if len(each) == self.rows else each for name, each in held.items()}
            yield self.restore(own | {"scales": held["scales"][:, start:stop]})

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return len(x) > _MOST_ROWS.get(x.dtype, 0)

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        scales = held["scales"].to(x.dtype)
        rounded = inputs.round(x, agree)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rounded, held["values"], self.unit, scales)
        return y


def _make_scratch(packed: Tensor, rows: int) -> Tensor:
    """Memory for a block turned round: fresh memory for each would cost as much as what is computed in it."""
    return packed.new_empty(rows, packed.shape[1] + LINE)[:, : packed.shape[1]]


def _find_block() -> int:
    return _BLOCKS[torch.backends.cpu.get_cpu_capability()]


def _list_kinds(rows: Tensor, block: int) -> list[bool]:
    """Of each block whether it is whole, so that the rows that share a byte lie apart."""
    return [start + block <= len(rows) for start in range(0, len(rows), block)]


def _halve(rows: Tensor, apart: bool) -> tuple[Tensor, Tensor]:
    """The rows whose values are low, and those whose are high."""
    half = len(rows) // 2
    return (rows[:half], rows[half:]) if apart else (rows[::2], rows[1::2])


def _pack_rows(weight: IntegerWeight, into: Tensor) -> None:
    """Values of rows into blocks, of which the last may be smaller."""
    size = _find_block()
    scratch = _make_scratch(into, min(len(into), size))
    for packed, values, apart in zip(into.split(size), weight.values.split(size), _list_kinds(into, size), strict=True):
        block = packed.view(weight.columns, -1)
        if weight.is_paired:
            _pack_pairs(values, block, apart, scratch[: len(values)])
        else:
            low, high = _halve(values, apart)
            block.copy_((low | high << _HALF).t())


def _pack_words(words: Tensor, blocks: Tensor) -> None:
    """Words by columns [columns / 8, rows] into whole blocks [rows / 64, columns, 32] of rows that lie apart.

    They are not turned as a whole: of a word's bytes, each of one even and one odd column, rows follow each other.
    """
    count, _, half = blocks.shape
    step = max(1, _STRIP // max(1, words.shape[1]))
    scratch = words.new_empty(3, min(step, len(words)), count, half)
    into = blocks.view(count, len(words), 4, 2, half).transpose(0, 1)
    for start in range(0, len(words), step):
        strip = words[start : start + step].unflatten(1, (count, 2, half))
        low, high, other = scratch[:, : len(strip)]
        low.copy_(strip[:, :, 0])
        high.copy_(strip[:, :, 1])
        for place, joined in enumerate(_join_words(low, high, other)):
            for byte in range(4):
                # What is left of a word that becomes a byte is its lowest.
                into[start : start + step, :, byte, place].copy_(joined.bitwise_right_shift_(8) if byte else joined)


def _pack_words_of_rows(words: Tensor, order: Sequence[int], blocks: Tensor) -> None:
    """Words [columns, rows / 8] of eight rows, in an order, into whole blocks as those of `_pack_words`.

    Nothing is turned: what a block has of a column lies together already, and its bytes change their places.
    """
    count, _, half = blocks.shape
    step = max(1, _STRIP // max(1, words.shape[1]))
    for start in range(0, len(words), step):
        strip = words[start : start + step].unflatten(1, (count, 2, half // 8))
        halves = join_nibbles(strip[:, :, 0].contiguous(), strip[:, :, 1].contiguous())
        joined = torch.stack([_gather_bytes(halves, order[:4]), _gather_bytes(halves, order[4:])], -1)
        blocks[:, start : start + step].copy_(joined.view(torch.uint8).flatten(2).transpose(0, 1))


def _gather_bytes(halves: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """A word of the bytes at four places: of those of eight the even ones are in the first half's words."""
    found: Tensor | None = None
    for byte, place in enumerate(places):
        shift, words = 8 * (byte - place // 2), halves[place % 2]
        moved = words << shift if shift > 0 else words >> -shift
        masked = moved.bitwise_and_(_BYTES[byte])
        found = masked if found is None else found.bitwise_or_(masked)
    return halves[0] if found is None else found


def _join_words(low: Tensor, high: Tensor, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """As `join_nibbles`, in the memory of what is joined, that of `high` first, and in some more."""
    first, second, odd = (each.view(torch.uint8).view(torch.int64) for each in (low, high, scratch))
    torch.bitwise_right_shift(first, 4, out=odd).bitwise_xor_(second).bitwise_and_(_LOW).bitwise_xor_(second)
    second.bitwise_left_shift_(4).bitwise_xor_(first).bitwise_and_(~_LOW).bitwise_xor_(first)
    return high, scratch


def _pack_pairs(pairs: Tensor, block: Tensor, apart: bool, scratch: Tensor) -> None:
    """Pairs of columns [rows, columns / 2] into pairs of rows [columns, rows / 2]; scratch [rows, columns / 2]."""
    for half, joined in zip(scratch.chunk(2), join_nibbles(*_halve(_view_words(pairs), apart)), strict=True):
        view_lanes(half).copy_(joined)
    block.view(-1, 2 * block.shape[1]).copy_(scratch.t())


def _unpack_pairs(block: Tensor, pairs: Tensor, apart: bool, scratch: Tensor) -> None:
    """The inverse of `_pack_pairs`."""
    scratch.copy_(block.view(-1, 2 * block.shape[1]).t())
    low, high = _halve(view_lanes(pairs), apart)
    for half, joined in zip((low, high), join_nibbles(*view_lanes(scratch).chunk(2)), strict=True):
        half.copy_(joined)


def _view_words(pairs: Tensor) -> Tensor:
    """As `view_lanes`, of bytes that may be anywhere."""
    is_aligned = pairs.stride(1) == 1 and not any(each % 8 for each in (pairs.stride(0), pairs.storage_offset()))
    return view_lanes(pairs if is_aligned else pairs.clone(memory_format=torch.contiguous_format))
