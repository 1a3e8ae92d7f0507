"""Weights of small floats."""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from qload.torch.arithmetic import scale_blocks, scale_groups
from qload.torch.floats import decode_bytes, decode_e2m1_pairs
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.weights.fields import cast_half, cut_rows, describe_group, leave_inputs, move_tensors

E2M1 = "e2m1"


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
    inputs: Inputs = field(default_factory=leave_inputs)
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
        where = "per tensor" if rows >= self.rows > 1 else describe_group(columns, self.columns)
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
        scale = cut_rows(self.scale, start // height, -(-stop // height))
        return replace(self, values=self.values[start:stop], scale=scale)

    def cast(self, dtype: torch.dtype) -> Self:
        """With scales of 16 bits in `dtype`, so that it is computed in."""
        return replace(self, scale=cast_half(self.scale, dtype))

    def to(self, device: torch.device) -> Self:
        """The same weight on a device."""
        return replace(self, **move_tensors(self, device))


def name_element(values: Tensor) -> str:
    """The name of what a tensor of small floats holds: that of E2M1, of which bytes hold pairs, or e4m3fn, e5m2, ..."""
    return E2M1 if values.dtype == torch.uint8 else str(values.dtype).removeprefix("torch.float8_")
