"""Kernels that multiply what inputs are rounded to, as it is, and not what it stands for."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.activations import Agree
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.kernel import Kernel
from qload.torch.kernels.operands import lay_by_rows


class Coding(Kernel):
    """Rounds x as its method does, and has its codes multiplied; x that is not rounded is multiplied dense."""

    tokens: ClassVar[int] = 1
    """What they are filled up to a multiple of."""

    @abstractmethod
    def multiply_codes(
        self, codes: Tensor, scale: Tensor, held: Mapping[str, Tensor], inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        """codes [tokens, columns], or half as many bytes of pairs, by rows, into [tokens, rows] of `dtype`.

        `scale` is what the rounding gives: [], [tokens, 1] or [tokens, groups].
        """

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return inputs.rounding is None

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        if inputs.rounding is None:
            return self.multiply_dense(x, held, inputs, agree)
        count = len(x)
        if not count:
            return x.new_empty(0, self.rows)
        filled = F.pad(x, (0, 0, 0, -count % self.tokens)) if count % self.tokens else x
        codes, scale = inputs.rounding(filled, inputs.scale, agree)
        return self.multiply_codes(lay_by_rows(codes), scale, held, inputs, x.dtype).narrow(0, 0, count)
