"""torch's CPU kernel for weights of eight bits."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from qload.torch.activations import Agree
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.integers import Centered
from qload.torch.kernels.kernel import Blank, Case
from qload.torch.kernels.strips import divide_rows
from qload.torch.kernels.weights import IntegerWeight, Weight

_UNIT = 16
"""Of columns: the kernel reads as many at once, beyond the end of others."""
_LEAST_GROUP = 64
_ALIGNMENT = 32
"""Bytes: the kernel loads inputs without asking where they lie, and crashes elsewhere."""
_MOST_ROWS, _MOST_GROUPED = 64, 8
"""The tokens up to which it is ahead of multiplying by the dequantized weight, as measured; and with groups."""


class CpuInt8(Centered):
    """Multiplies bfloat16 by eight-bit integers, group of columns after group, which it unpacks in registers.

    Values are held as [groups, rows, group], two's complement. Source: ATen's int8mm_kernel.cpp.
    """

    label = "int8pack_mm"
    devices = "CPU"
    precision = (
        "scales are rounded to x's dtype, sums are of float32; those of groups are rounded to it before they add up"
    )

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return isinstance(weight, IntegerWeight) and weight.bits == 8 and case.device.type == "cpu"

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if case.dtype != torch.bfloat16:
            return f"it is slow in {str(case.dtype).removeprefix('torch.')}: dtype=bfloat16 is many times as fast"
        group = min(weight.group, weight.columns) if isinstance(weight, IntegerWeight) else 0
        if weight.columns % _UNIT or weight.columns % group or group % _UNIT:
            return f"groups of {group} of {weight.columns} columns are no multiples of {_UNIT}"
        if group < min(_LEAST_GROUP, weight.columns):
            return f"groups of {group} columns are too many products"
        return super().refuse(weight, case)

    @classmethod
    def declare_values(cls, weight: IntegerWeight) -> Blank:
        group = min(weight.group, weight.columns)
        return Blank((weight.columns // group, weight.rows, group), torch.int8)

    @classmethod
    def fill_values(cls, values: Tensor, into: Tensor) -> None:
        into.copy_(values.view(len(values), len(into), -1).transpose(0, 1))

    def restore_values(self, held: Tensor) -> Tensor:
        return held.transpose(0, 1).flatten(1)

    def split(self, held: Mapping[str, Tensor], least: int = 0) -> Iterator[Weight]:
        for start, stop in divide_rows(self.rows, self.columns, least=least):
            yield self.restore({**held, "values": held["values"][:, start:stop]}, start, stop)

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return len(x) > (_MOST_ROWS if len(held["values"]) == 1 else _MOST_GROUPED) or x.dtype != torch.bfloat16

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        rounded = inputs.round(x, agree)
        values, scale = held["values"], self.find_scale(held)
        groups = rounded.unflatten(1, (len(values), -1)).transpose(0, 1)
        scales = scale.to(x.dtype).T.contiguous()
        y = _multiply(groups[0], values[0], scales[0])
        if len(values) > 1:
            y = y.float()
            for each in zip(groups[1:], values[1:], scales[1:], strict=True):
                y += _multiply(*each)
        return self.subtract_zeros(y, groups, held, scale).to(x.dtype)

    def subtract_zeros(self, y: Tensor, groups: Tensor, held: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        """y without what the zero-points add to each group's sum; groups [groups, tokens, group]."""
        zero = self.find_zero(held)
        if zero is None:
            return y
        sums = groups.sum(-1, dtype=torch.float32).T
        return y.float() - sums @ (scale.float() * zero.float()).T


def _multiply(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    x = x.contiguous()
    if not torch.compiler.is_compiling() and x.data_ptr() % _ALIGNMENT:
        x = x.clone()
    y: Tensor = torch.ops.aten._weight_int8pack_mm(x, values, scales)
    return y
