"""torch's product of integers of eight bits, for weights and inputs that are."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.activations import Agree
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.integers import Centered
from qload.torch.kernels.kernel import Blank, Case
from qload.torch.kernels.strips import divide_rows
from qload.torch.kernels.weights import IntegerWeight, Weight

_CUDA_UNIT, _CUDA_TOKENS = 8, 32
"""Of rows and columns, and the fewest tokens, that are multiplied there. ATen's `_int_mm_out_cuda` checks for 8 and for
more than 16; a multiple of 16 is what cuBLAS's kernels are best at.
"""
_MOST_COLUMNS = (1 << 31) // (128 * 128)
"""Of which sums fit 32 bits."""


class Int8Dynamic(Centered):
    """Multiplies the codes of inputs by those of the weight, exactly, and then by the scales of both."""

    label = "int_mm"
    devices = "CPU, CUDA"
    precision = "sums of integers are exact; scales multiply them in float32"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        rounding = weight.inputs.rounding
        is_int8 = isinstance(weight, IntegerWeight) and weight.bits == 8
        return is_int8 and rounding is not None and rounding.dtype is torch.int8 and case.device.type in ("cpu", "cuda")

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if not isinstance(weight, IntegerWeight) or weight.group < weight.columns:
            return f"{weight.label} has more scales than one for each output feature"
        group = weight.inputs.rounding.group if weight.inputs.rounding is not None else None
        if group is not None and group < weight.columns:
            return f"inputs have a scale for every {group} features"
        if case.device.type == "cuda" and (weight.rows % _CUDA_UNIT or weight.columns % _CUDA_UNIT):
            return f"{weight.rows} x {weight.columns} features are no multiples of {_CUDA_UNIT}"
        if weight.columns >= _MOST_COLUMNS:
            return f"sums over {weight.columns} columns may be beyond 32 bits"
        return super().refuse(weight, case)

    @classmethod
    def declare_values(cls, weight: IntegerWeight) -> Blank:
        return Blank((weight.rows, weight.columns), torch.int8)

    @classmethod
    def fill_values(cls, values: Tensor, into: Tensor) -> None:
        into.copy_(values)

    def restore_values(self, held: Tensor) -> Tensor:
        return held

    def split(self, held: Mapping[str, Tensor], least: int = 0) -> Iterator[Weight]:
        if held["values"].device.type != "cpu":
            yield self.restore(held)
            return
        for start, stop in divide_rows(self.rows, self.columns, least=least):
            yield self.restore({**held, "values": held["values"][start:stop]}, start, stop)

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return inputs.rounding is None

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        if inputs.rounding is None:
            return self.multiply_dense(x, held, inputs, agree)
        codes, steps = inputs.rounding(x, inputs.scale, agree)
        sums, zero = _multiply(codes, held["values"]).float(), self.find_zero(held)
        if zero is not None:
            sums -= codes.sum(-1, keepdim=True, dtype=torch.int32) * zero.float().T
        return sums.mul_(steps.float()).mul_(self.find_scale(held).float().T).to(x.dtype)


def _multiply(codes: Tensor, values: Tensor) -> Tensor:
    """Codes int8 [tokens, columns] times values int8 [rows, columns], int32 [tokens, rows].

    Both lie by columns, the one layout that cuBLAS has on every GPU (pytorch/pytorch#169961).
    """
    codes = codes.contiguous()
    lacking = max(0, _find_least(codes.device) - len(codes))
    y: Tensor = torch._int_mm(F.pad(codes, (0, 0, 0, lacking)) if lacking else codes, values.T)
    return y[: len(codes)]


def _find_least(device: torch.device) -> int:
    """How many tokens are multiplied at least; zeros are those that lack."""
    return _CUDA_TOKENS if device.type == "cuda" else 0
