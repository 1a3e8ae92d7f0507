"""What is done to a layer's inputs before they are multiplied by its weight."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qload.torch.activations import Agree


class Rounding(Protocol):
    """How inputs are quantized: a frozen value of the method's, without tensors, that can be hashed and pickled."""

    @property
    def dtype(self) -> torch.dtype:
        """What the codes are stored as: int8, float8_e4m3fn, or uint8 for two E2M1 codes."""

    @property
    def group(self) -> int | None:
        """How many features share a scale; None where all of a token do, or all of x."""

    @property
    def is_static(self) -> bool:
        """Whether the scale is stored, and not found in x."""

    def __call__(self, x: Tensor, scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:
        """Codes [tokens, features] of x, and the scales [tokens, groups], [tokens, 1] or [] that they are times.

        `scale` is the stored one, and `agree` the layer's own, as for `LayerPiece.agree`.
        """

    def fake(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Tensor:
        """x quantized and turned back at once, in its dtype: what the method's reference computes with."""


@runtime_checkable
class ScaledRounding(Rounding, Protocol):
    """One that says what its scales are, for kernels that take no others."""

    @property
    def scale_dtype(self) -> torch.dtype | None:
        """The small float, if any, that each scale is once it is multiplied by the stored one, where there is one."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What becomes of x before it is multiplied: it is times `factor`, its features put in `order`, and rounded.

    factor [in]; order int64 [in]: which feature of x each column of the weight is for; scale: the stored one of the
    inputs, any shape that broadcasts against x.
    """

    factor: Tensor | None = None
    order: Tensor | None = None
    rounding: Rounding | None = None
    scale: Tensor | None = None

    def arrange(self, x: Tensor) -> Tensor:
        """x with its features multiplied and in order, in its dtype."""
        x = x if self.factor is None else (x * self.factor).to(x.dtype)
        return x if self.order is None else x.index_select(-1, self.order)

    def round(self, x: Tensor, agree: Agree) -> Tensor:
        """What is arranged, rounded as the method does it: x's dtype."""
        return x if self.rounding is None else self.rounding.fake(x, self.scale, agree)

    def restore(self, weight: Tensor) -> Tensor:
        """A weight [out, in] as it is for inputs to which nothing is done, in the wider of both dtypes."""
        if self.order is not None:
            weight = weight.index_select(1, self.order.argsort())
        return weight if self.factor is None else weight * self.factor
