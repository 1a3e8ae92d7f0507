"""The kernel that every device has: the weight dequantized anew for each call."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from qload.torch.activations import Agree
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.kernel import Blank, Case, Kernel
from qload.torch.kernels.weights import Weight, list_tensors


class Dequantized(Kernel):
    """Holds a weight as it is, for a device to which a layer was moved, and on which no kernel multiplies by it."""

    label = "dequantize"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return True

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        return {name: Blank(tuple(each.shape), each.dtype) for name, each in list_tensors(weight).items()}

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        for name, each in list_tensors(weight).items():
            into[name].copy_(each)

    def settle(self, weight: Weight, case: Case) -> None:
        blank: dict[str, Any] = {name: each.new_empty(0) for name, each in list_tensors(weight).items()}
        self._form: Weight = replace(weight, **blank, inputs=Inputs())

    def restore(self, held: Mapping[str, Tensor]) -> Weight:
        found: dict[str, Any] = dict(held)
        return replace(self._form, **found)

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        return self.multiply_dense(x, held, inputs, agree)
