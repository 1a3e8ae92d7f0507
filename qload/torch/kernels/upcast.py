"""Weights of eight bits, multiplied as they are in a wider dtype, and scaled once multiplied."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.activations import Agree
from qload.torch.floats import decode_bytes
from qload.torch.kernels.dense import Strips
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.kernel import Blank, Case, Kernel
from qload.torch.kernels.strips import divide_rows, find_least, multiply_strips
from qload.torch.kernels.weights import FloatWeight, IntegerWeight, Weight

_DTYPES = (torch.bfloat16, torch.float32)
"""Of x. Sums that are not scaled yet may be beyond float16."""


class Upcast(Kernel):
    """x times the values in x's dtype, which holds each of them exactly; then each output feature times its scale.

    That the weight is not scaled saves two of the three times that dequantizing writes it to memory and reads it
    again, and torch.compile makes the rest part of the product. On CUDA, torch has no kernel that is better at it:
    `_weight_int8pack_mm` has a thread for each output, that reads its row by itself (ATen's native/cuda/int8mm.cu).
    """

    label = "upcast_mm"
    devices = "CUDA"
    precision = "scales multiply sums, that are rounded to x's dtype, in place of weights"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return case.device.type == "cuda" and weight.inputs.rounding is None and _is_of_bytes(weight)

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if case.dtype not in _DTYPES:
            return f"sums that are not scaled yet may be beyond {str(case.dtype).removeprefix('torch.')}"
        if isinstance(weight, FloatWeight):
            if weight.whole is not None or not _is_by_rows(weight.block, weight):
                return f"{weight.label} has more scales than one for each output feature"
            return None
        if not isinstance(weight, IntegerWeight) or weight.group < weight.columns:
            return f"{weight.label} has more scales than one for each output feature"
        return None if _is_centered(weight) else "its zero-points are not all in the middle"

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        values = torch.int8 if isinstance(weight, IntegerWeight) else weight.values.dtype
        return {
            "values": Blank((weight.rows, weight.columns), values),
            "scale": Blank(tuple(weight.scale.shape), weight.scale.dtype),
        }

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        is_unsigned = isinstance(weight, IntegerWeight) and weight.values.dtype == torch.uint8
        into["values"].copy_((weight.values ^ 0x80).view(torch.int8) if is_unsigned else weight.values)
        into["scale"].copy_(weight.scale)

    def settle(self, weight: Weight, case: Case) -> None:
        blank: dict[str, Any] = {"values": weight.values.new_empty(0), "scale": weight.scale.new_empty(0)}
        if isinstance(weight, IntegerWeight):
            blank["zero"] = 0
        self._form: Weight = replace(weight, **blank, inputs=Inputs())
        self._divides = isinstance(weight, FloatWeight) and weight.divides

    def restore(self, held: Mapping[str, Tensor]) -> Weight:
        return replace(self._form, values=held["values"], scale=held["scale"])

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return x.dtype not in _DTYPES

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        return _scale_sums(F.linear(x, held["values"].to(x.dtype)), held["scale"], self._divides)


class UpcastStrips(Strips):
    """As `upcast_mm` for bfloat16, some rows at a time, so that what they become never leaves a CPU's cache.

    In float32 it would be further from the dequantized weight, which scales of 16 bits round, than sums are.
    """

    label = "upcast by strips"
    precision = Upcast.precision

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        is_float = isinstance(weight, FloatWeight) and _is_of_bytes(weight)
        return is_float and super().serves(weight, case) and case.dtype == torch.bfloat16

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        is_ours = isinstance(weight, FloatWeight) and weight.whole is None and _is_by_rows(weight.block, weight)
        return None if is_ours else f"{weight.label} has more scales than one for each output feature"

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return x.dtype != torch.bfloat16

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        def decode() -> Iterator[Tensor]:
            strips = divide_rows(self.rows, self.columns, least=find_least(x))
            return (decode_bytes(held["values"][start:stop], x.dtype) for start, stop in strips)

        sums = multiply_strips(inputs.round(x, agree), decode, self.rows)
        return _scale_sums(sums, held["scale"], isinstance(self._form, FloatWeight) and self._form.divides)


def _scale_sums(y: Tensor, scale: Tensor, divides: bool) -> Tensor:
    """Sums [tokens, rows] times, or over, the scales of their rows, in their dtype."""
    factor = _widen(scale).flatten()
    return (y / factor if divides else y * factor).to(y.dtype)


def _is_of_bytes(weight: Weight) -> bool:
    if isinstance(weight, IntegerWeight):
        return weight.bits == 8
    return weight.values.dtype.is_floating_point and weight.values.dtype.itemsize == 1


def _is_by_rows(block: tuple[int, int], weight: FloatWeight) -> bool:
    """Whether each row has one scale, or all rows share one."""
    return block[1] >= weight.columns and (block[0] == 1 or block[0] >= weight.rows)


def _is_centered(weight: IntegerWeight) -> bool:
    """Whether zero-points are of the middle of the values, as they are stored."""
    return isinstance(weight.zero, int) and weight.zero == (0 if weight.values.dtype == torch.int8 else 128)


def _widen(scale: Tensor) -> Tensor:
    """Powers of two, which a byte holds, as floats."""
    return scale.to(torch.bfloat16) if scale.dtype.itemsize == 1 else scale
