"""Weights of integers, and words of them as checkpoints store them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self, TypeGuard

import torch
from torch import Tensor

from qload.torch.arithmetic import scale_groups, unpack
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.weights.fields import cast_half, cut_rows, describe_group, leave_inputs, move_tensors
from qload.torch.nibbles import pair_transposed, pair_words

_PER_WORD = 8
"""Values of four bits in an int32."""


@dataclass(frozen=True, slots=True, eq=False)
class IntegerWeight:
    """(values - zero) * scale + shift, computed in the scale's dtype, with a scale for every `group` columns of a row.

    values: int8 [out, columns], or uint8, of `bits` bits each; or uint8 [out, columns / 2] of four bits, two to a byte,
    that of the even column low; or int32 words of four bits, which `pair` turns into these for whoever does not take
    words: [columns / 8, out], of eight columns, low bits first; or, with an `order`, [columns, out / 8], of eight rows,
    row i of them in the bits 4 * order[i] and up, and columns a multiple of 8.
    scale [out, groups], or [1, groups] where all rows share them; zero likewise, of any dtype, or a number; shift
    likewise, of any float. The last group may be short. All of it is times `whole` [] then.
    If `wide`, it is computed in float32 and rounded to the scale's dtype once.
    """

    values: Tensor
    bits: int
    columns: int
    scale: Tensor
    zero: Tensor | int
    group: int
    inputs: Inputs = field(default_factory=leave_inputs)
    shift: Tensor | None = None
    whole: Tensor | None = None
    wide: bool = False
    order: tuple[int, ...] | None = None

    @property
    def rows(self) -> int:
        if self.order is not None:
            return _PER_WORD * self.values.shape[1]
        return self.values.shape[int(self.is_worded)]

    @property
    def is_worded(self) -> bool:
        """Whether the values are words, of columns or of rows."""
        return self.values.dtype == torch.int32

    @property
    def height(self) -> int:
        """The rows that share scales."""
        return 1

    @property
    def is_paired(self) -> bool:
        """Whether a byte holds two values, of a row."""
        return not self.is_worded and self.values.shape[1] != self.columns

    @property
    def label(self) -> str:
        return f"int{self.bits} {describe_group(self.group, self.columns)}"

    @property
    def further(self) -> frozenset[str]:
        """The fields with which it is more than (values - zero) * scale: see `Kernel.knows`."""
        present = {"shift": self.shift is not None, "whole": self.whole is not None, "wide": self.wide}
        return frozenset(name for name, is_there in present.items() if is_there)

    def spread(self) -> Tensor:
        """The values, one to a byte, [out, columns]."""
        values = self.pair().values
        return values if values.shape[1] == self.columns else unpack(values, 4, self.columns)

    def pair(self, make: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None) -> Self:
        """With pairs in place of words, in memory that `make` makes."""
        if not self.is_worded:
            return self
        into = None if make is None else make((self.rows, self.columns // 2), torch.uint8)
        if self.order is None:
            return replace(self, values=pair_words(self.values, into))
        return replace(self, values=pair_transposed(self.values, self.order, into), order=None)

    def outline(self) -> Self:
        """As `pair`, for whoever looks at shapes and dtypes alone: the values are not these."""
        blank = self.values.new_empty(1, 1, dtype=torch.uint8).expand(self.rows, self.columns // 2)
        return replace(self, values=blank, order=None) if self.is_worded else self

    def dequantize(self) -> Tensor:
        """The weight [out, columns] in the scale's dtype, for inputs to which nothing is done."""
        scale = self.scale.float() if self.wide else self.scale
        dense = scale_groups(self.spread(), scale, self.zero, self.group, shift=self.shift)
        dense = dense if self.whole is None else dense.mul_(self.whole)
        return self.inputs.restore(dense.to(self.scale.dtype))

    def unsigned(self) -> Self:
        """With values and zero-points that begin at zero, uint8, where they are in two's complement."""
        if self.values.dtype != torch.int8:
            return self
        half = 1 << (self.bits - 1)
        values = (self.values + half).view(torch.uint8) if self.bits < 8 else self.values.view(torch.uint8) ^ half
        zero = self.zero.to(torch.int16) + half if _is_whole(self.zero) else self.zero + half
        return replace(self, values=values, zero=zero)

    def cut(self, start: int, stop: int) -> Self:
        """Some of its rows. Those that are not all of a word's are no words any more."""
        if self.order is not None and (start % _PER_WORD or stop % _PER_WORD):
            return self.pair().cut(start, stop)
        zero = cut_rows(self.zero, start, stop) if isinstance(self.zero, Tensor) else self.zero
        shift = None if self.shift is None else cut_rows(self.shift, start, stop)
        scale = cut_rows(self.scale, start, stop)
        return replace(self, values=self._cut_values(start, stop), scale=scale, zero=zero, shift=shift)

    def _cut_values(self, start: int, stop: int) -> Tensor:
        if self.order is not None:
            return self.values[:, start // _PER_WORD : stop // _PER_WORD]
        return self.values[:, start:stop] if self.is_worded else self.values[start:stop]

    def cast(self, dtype: torch.dtype) -> Self:
        """With scales of 16 bits, and zero-points of as many, in `dtype`, so that it is computed in."""
        zero = cast_half(self.zero, dtype) if isinstance(self.zero, Tensor) else self.zero
        shift = None if self.shift is None else cast_half(self.shift, dtype)
        return replace(self, scale=cast_half(self.scale, dtype), zero=zero, shift=shift)

    def to(self, device: torch.device) -> Self:
        """The same weight on a device."""
        return replace(self, **move_tensors(self, device))


def _is_whole(zero: Tensor | int) -> TypeGuard[Tensor]:
    return isinstance(zero, Tensor) and not zero.is_floating_point()
