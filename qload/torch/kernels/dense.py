"""What every device can do: the weight dequantized anew for each call."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qload.torch.activations import Agree
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.kernel import Blank, Case, Kernel
from qload.torch.kernels.strips import divide_rows
from qload.torch.kernels.weights import IntegerWeight, Weight, list_tensors

_HALF = 4
"""Bits of a byte."""


class Dequantized(Kernel):
    """Holds a weight as it is, for a device to which a layer was moved, and on which no kernel multiplies by it."""

    label = "dequantize"
    devices = "any"
    knows = frozenset({"shift", "whole", "wide", "dtype", "over"})
    is_fast = False

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return True

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        return {name: Blank(tuple(each.shape), each.dtype) for name, each in list_tensors(weight).items()}

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        for name, each in list_tensors(weight).items():
            if into[name].data_ptr() != each.data_ptr():
                into[name].copy_(each)

    @classmethod
    def adopt(cls, weight: Weight) -> Mapping[str, Tensor]:
        return {name: each.detach() for name, each in list_tensors(weight).items() if each.is_contiguous()}

    def settle(self, weight: Weight, case: Case) -> None:
        blank: dict[str, Any] = {name: each.new_empty(0) for name, each in list_tensors(weight).items()}
        self._form: Weight = replace(weight, **blank, inputs=Inputs())

    def restore(self, held: Mapping[str, Tensor]) -> Weight:
        found: dict[str, Any] = dict(held)
        return replace(self._form, **found)

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return True

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        return self.multiply_dense(x, held, inputs, agree)


class Strips(Dequantized):
    """Dequantizes some rows at a time, so that the dense weight never leaves a CPU's cache, whatever its form is."""

    label = "dequantize by strips"
    devices = "CPU"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return case.device.type == "cpu"

    @classmethod
    def prepare(cls, weight: Weight) -> Weight:
        return _pair(weight)

    def split(self, held: Mapping[str, Tensor], least: int = 0) -> Iterator[Weight]:
        weight = self.restore(held)
        height = 1 if isinstance(weight, IntegerWeight) else min(weight.block[0], self.rows)
        return (weight.cut(start, stop) for start, stop in divide_rows(self.rows, self.columns, height, least=least))


def _pair(weight: Weight) -> Weight:
    """With two values to a byte where they have room."""
    is_small = isinstance(weight, IntegerWeight) and weight.bits <= _HALF and not weight.is_paired
    if not is_small or weight.values.dtype != torch.uint8 or weight.columns % 2:
        return weight
    return replace(weight, values=weight.values[:, ::2] | weight.values[:, 1::2] << _HALF)
