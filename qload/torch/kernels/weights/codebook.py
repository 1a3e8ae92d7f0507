"""Weights of codes, whose values a table has."""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from qload.torch.arithmetic import look_up_pairs, scale_groups
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.weights.fields import describe_group, leave_inputs, move_tensors


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
    inputs: Inputs = field(default_factory=leave_inputs)

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
        return f"{self.element} {describe_group(self.group, self.columns)}"

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
