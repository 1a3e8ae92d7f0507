"""Weights as kernels know them, whatever method stores them: integers, small floats or codes, and their scales."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor

from qload.torch.arithmetic import look_up_pairs, scale_blocks, scale_groups, unpack
from qload.torch.floats import decode_bytes, decode_e2m1_pairs
from qload.torch.kernels.inputs import Inputs
from qload.torch.nibbles import pair_words

E2M1 = "e2m1"


def _leave_inputs() -> Inputs:
    """Inputs to which nothing is done; a class as the factory would be beyond the compiler."""
    return Inputs()


@dataclass(frozen=True, slots=True, eq=False)
class IntegerWeight:
    """(values - zero) * scale + shift, computed in the scale's dtype, with a scale for every `group` columns of a row.

    values: int8 [out, columns], or uint8, of `bits` bits each; or uint8 [out, columns / 2] of four bits, two to a byte,
    that of the even column low; or int32 [columns / 8, out] of four bits, words of eight columns, low bits first, which
    `pair` turns into these for whoever does not take words. scale [out, groups], or [1, groups] where all rows share
    them; zero likewise, of any dtype, or a number; shift likewise, of any float. The last group may be short. All of it
    is times `whole` [] then.
    If `wide`, it is computed in float32 and rounded to the scale's dtype once.
    """

    values: Tensor
    bits: int
    columns: int
    scale: Tensor
    zero: Tensor | int
    group: int
    inputs: Inputs = field(default_factory=_leave_inputs)
    shift: Tensor | None = None
    whole: Tensor | None = None
    wide: bool = False

    @property
    def rows(self) -> int:
        return self.values.shape[int(self.is_worded)]

    @property
    def is_worded(self) -> bool:
        """Whether the values are words by columns."""
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
        return f"int{self.bits} {_describe_group(self.group, self.columns)}"

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
        return replace(self, values=pair_words(self.values, into))

    def outline(self) -> Self:
        """As `pair`, for whoever looks at shapes and dtypes alone: the values are not these."""
        blank = self.values.new_empty(1, 1, dtype=torch.uint8).expand(self.rows, self.columns // 2)
        return replace(self, values=blank) if self.is_worded else self

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
        """Some of its rows."""
        zero = _cut(self.zero, start, stop) if isinstance(self.zero, Tensor) else self.zero
        shift = None if self.shift is None else _cut(self.shift, start, stop)
        scale = _cut(self.scale, start, stop)
        values = self.values[:, start:stop] if self.is_worded else self.values[start:stop]
        return replace(self, values=values, scale=scale, zero=zero, shift=shift)

    def cast(self, dtype: torch.dtype) -> Self:
        """With scales of 16 bits, and zero-points of as many, in `dtype`, so that it is computed in."""
        zero = _cast(self.zero, dtype) if isinstance(self.zero, Tensor) else self.zero
        shift = None if self.shift is None else _cast(self.shift, dtype)
        return replace(self, scale=_cast(self.scale, dtype), zero=zero, shift=shift)

    def to(self, device: torch.device) -> Self:
        """The same weight on a device."""
        return replace(self, **move_tensors(self, device))


@dataclass(frozen=True, slots=True, eq=False)
class FloatWeight:
    """values * scale, computed in the scale's dtype, with a scale for every `block` of rows and columns.

    values: an 8-bit float [out, columns]; or uint8 [out, columns / 2] of E2M1 codes, two to a byte, that of the even
    column low. scale [blocks of rows, blocks of columns], of floats, of float8_e8m0fnu, or of float8_e4m3fn; `whole`
    [] multiplies the scales, in float32, or divides them if `over`. Blocks of less than their size end rows and
    columns. `divides`: the scales divide. `dtype` is what scales of one byte are turned into, without a `whole`.
    """

    values: Tensor
    element: str
    columns: int
    scale: Tensor
    block: tuple[int, int]
    whole: Tensor | None = None
    divides: bool = False
    inputs: Inputs = field(default_factory=_leave_inputs)
    dtype: torch.dtype = torch.bfloat16
    over: bool = False

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def height(self) -> int:
        """The rows that share scales."""
        return self.block[0]

    @property
    def label(self) -> str:
        rows, columns = self.block
        if rows > 1 and (rows < self.rows or columns < self.columns):
            return f"{self.element} in blocks of {rows}x{columns}"
        where = "per tensor" if rows >= self.rows > 1 else _describe_group(columns, self.columns)
        return f"{self.element} {where}"

    @property
    def further(self) -> frozenset[str]:
        """The fields with which it is more than values and scales in their own dtype: see `Kernel.knows`."""
        is_wide = self.scale.itemsize == 1 and self.whole is None and self.dtype != torch.bfloat16
        present = {"dtype": is_wide, "over": self.over}
        return frozenset(name for name, is_there in present.items() if is_there)

    def decode(self, dtype: torch.dtype) -> Tensor:
        """The values [out, columns] in a float dtype, of 16 bits or more, which holds them."""
        if self.element == E2M1:
            return decode_e2m1_pairs(self.values, dtype)
        return decode_bytes(self.values, dtype)

    def find_scale(self) -> Tensor:
        """The scales in the dtype that is computed in."""
        if self.whole is not None:
            scale = self.scale.to(torch.float32)
            return scale / self.whole if self.over else scale * self.whole
        return self.scale.to(self.dtype) if self.scale.itemsize == 1 else self.scale

    def dequantize(self) -> Tensor:
        """The weight [out, columns] in the scales' dtype, for inputs to which nothing is done."""
        scale = self.find_scale()
        values = self.decode(scale.dtype)
        if self.block[0] == 1:
            return self.inputs.restore(scale_groups(values, scale, 0, self.block[1], divide=self.divides))
        return self.inputs.restore(scale_blocks(values, scale, self.block, divide=self.divides))

    def cut(self, start: int, stop: int) -> Self:
        """Some of its rows, from the beginning of a block."""
        height = self.block[0]
        scale = _cut(self.scale, start // height, -(-stop // height))
        return replace(self, values=self.values[start:stop], scale=scale)

    def cast(self, dtype: torch.dtype) -> Self:
        """With scales of 16 bits in `dtype`, so that it is computed in."""
        return replace(self, scale=_cast(self.scale, dtype))

    def to(self, device: torch.device) -> Self:
        """The same weight on a device."""
        return replace(self, **move_tensors(self, device))


@dataclass(frozen=True, slots=True, eq=False)
class CodebookWeight:
    """table[values] * scale, in float32, rounded to `dtype` once, with a scale for every `group` columns of a row.

    values: uint8 [out, columns / 2] of codes of four bits, two to a byte, that of the even column high. table float32
    [16], whose name is `element`. scale float32 [out, groups]; the last group may be short.
    """

    values: Tensor
    element: str
    table: Tensor
    scale: Tensor
    group: int
    dtype: torch.dtype
    inputs: Inputs = field(default_factory=_leave_inputs)

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def columns(self) -> int:
        return 2 * self.values.shape[1]

    @property
    def height(self) -> int:
        """The rows that share scales."""
        return 1

    @property
    def label(self) -> str:
        return f"{self.element} {_describe_group(self.group, self.columns)}"

    @property
    def further(self) -> frozenset[str]:
        """See `Kernel.knows`."""
        return frozenset()

    def dequantize(self) -> Tensor:
        """The weight [out, columns] in `dtype`, for inputs to which nothing is done."""
        dense = look_up_pairs(self.values, self.table)
        return self.inputs.restore(scale_groups(dense, self.scale, 0, self.group).to(self.dtype))

    def cut(self, start: int, stop: int) -> Self:
        """Some of its rows."""
        return replace(self, values=self.values[start:stop], scale=self.scale[start:stop])

    def cast(self, dtype: torch.dtype) -> Self:
        """The same: it has no scales of 16 bits, and what it is rounded to is a part of what it means."""
        return self

    def to(self, device: torch.device) -> Self:
        """The same weight on a device."""
        return replace(self, **move_tensors(self, device))


Weight = IntegerWeight | FloatWeight | CodebookWeight


def name_element(values: Tensor) -> str:
    """The name of what a tensor of small floats holds: that of E2M1, of which bytes hold pairs, or e4m3fn, e5m2, ..."""
    return E2M1 if values.dtype == torch.uint8 else str(values.dtype).removeprefix("torch.float8_")


def _describe_group(group: int, columns: int) -> str:
    return "per channel" if group >= columns else f"in groups of {group}"


def _is_whole(zero: Tensor | int) -> TypeGuard[Tensor]:
    return isinstance(zero, Tensor) and not zero.is_floating_point()


def _cut(shared: Tensor, start: int, stop: int) -> Tensor:
    return shared if len(shared) == 1 else shared[start:stop]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def move_tensors(held: Weight | Inputs, device: torch.device) -> dict[str, Any]:
    """What a weight, or its inputs, has of tensors, by its fields, on a device."""
    moved: dict[str, Any] = {name: each.to(device) for name, each in list_tensors(held).items()}
    inputs = getattr(held, "inputs", None)
    return moved if inputs is None else {**moved, "inputs": replace(inputs, **move_tensors(inputs, device))}


def list_tensors(held: Weight | Inputs) -> dict[str, Tensor]:
    """The fields of a weight, or of what is done to inputs, that are tensors."""
    named = ((each.name, getattr(held, each.name)) for each in fields(held))
    return {name: each for name, each in named if isinstance(each, Tensor)}
