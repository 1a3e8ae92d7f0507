"""A kernel of the plugin's own: rows of int8 times x as they are, and then times their scales.

A real one would call an operator of a compiled extension in `multiply`; all else stays as it is here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.activations import Agree
from qload.torch.kernels import Blank, Case, Inputs, IntegerWeight, Kernel, Weight


class RowProduct(Kernel):
    """int8 with one scale for each row, on any device."""

    label = "rowint8_product"
    precision = "scales multiply sums in place of weights"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        """What it is made for."""
        return isinstance(weight, IntegerWeight) and weight.values.dtype == torch.int8

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        """What of that it cannot do, in words that reports show; also that an extension of it is not installed."""
        if not isinstance(weight, IntegerWeight) or weight.group < weight.columns or weight.zero != 0:
            return "it multiplies rows of one scale, without zero-points"
        return "inputs are not rounded by it" if weight.inputs.rounding is not None else None

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        scale = Blank(tuple(weight.scale.shape), weight.scale.dtype)
        return {"values": Blank((weight.rows, weight.columns), torch.int8), "scale": scale}

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        into["values"].copy_(weight.values)
        into["scale"].copy_(weight.scale)

    def restore(self, held: Mapping[str, Tensor]) -> IntegerWeight:
        return IntegerWeight(held["values"], 8, self.columns, held["scale"], 0, self.columns)

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        y = F.linear(x.float(), held["values"].float()) * held["scale"].flatten()
        return y.to(x.dtype)
