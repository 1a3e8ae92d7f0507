"""Stacks of experts that multiply all tokens at once, each by its own expert's weight."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qload.torch.kernels import Groups, Kernels, Make
from qload.torch.kernels.grouped import GROUPED, multiply_grouped, refuse_grouped
from qload.torch.layers.flow import Projection
from qload.torch.layers.packing import Path


@dataclass(slots=True)
class Mixture:
    """What the layers of one mixture multiply groups with, by their names: all of them do, or none.

    Where ranks do not add up what they have, none does.
    """

    operators: dict[str, str] = field(default_factory=dict)
    is_summed: bool = True

    @property
    def is_grouped(self) -> bool:
        return self.is_summed and all(self.operators.values())


class GroupedProjection(Projection):
    """A stack of which all experts are computed at once, where an operator serves its weights.

    That is settled once it is loaded, moved or divided.
    """

    _is_asked = False
    _operator = ""
    _mixture: Mixture | None = None
    _path: Path

    @property
    def grouped(self) -> str:
        """The operator's name; none where there is none, or where another layer of the mixture has none."""
        return self._operator if self._mixture is not None and self._mixture.is_grouped else ""

    @property
    def path(self) -> Path:
        """The operator for groups, also where some tokens go through one expert after another."""
        return Path(self.grouped) if self.grouped else self._path

    @path.setter
    def path(self, path: Path) -> None:
        self._path = path

    def join_mixture(self, mixture: Mixture) -> None:
        """Be a layer of that mixture."""
        self._mixture = mixture
        mixture.operators[self.name] = self._operator

    def pack(self, table: Kernels, make: Make | None = None) -> None:
        super().pack(table, make)
        self._is_asked = bool(table)
        self.settle_groups()

    def settle_share(self) -> None:
        super().settle_share()
        self.settle_groups()

    def settle_groups(self) -> None:
        """Choose the operator for what the layer holds now."""
        self._operator = self._choose_operator() if self._is_asked and not self.apart else ""
        if self._mixture is not None:
            self._mixture.operators[self.name] = self._operator

    def can_group(self, x: Tensor) -> bool:
        """Whether `compute_groups` serves x [tokens, in_features]: weights that are trained take each expert alone."""
        if not self.grouped or x.dtype != self.dtype:
            return False
        is_trained = torch.is_grad_enabled() and any(each.requires_grad for each in self.parameters())
        return not is_trained and (self.packed is None or (self.quantize_activations and self.packed.rounds))

    def compute_groups(self, x: Tensor, groups: Groups) -> Tensor:
        """As `compute`, of x [rows, in_features], sorted by expert; rows of none of them may become anything."""
        weight = self.own_tensor("weight") if self.packed is None else None
        if weight is not None:
            y = multiply_grouped(x, weight, groups.ends)
        else:
            kernels = [] if self.packed is None else self.packed.kernels
            y = self._join([kernel.multiply_groups(x, groups, self.agree) for kernel in kernels], 1)
        bias = self.own_tensor("bias") if self.shard.in_.start == 0 and "bias" in self.specs else None
        return y if bias is None else y + bias.index_select(0, groups.experts)

    def _choose_operator(self) -> str:
        if self.packed is not None:
            kernels = self.packed.kernels
            refused = [each for each in kernels if each.refuse_groups(self.dtype) is not None]
            return "" if refused else ", ".join(dict.fromkeys(each.grouped for each in kernels))
        weight = self.own_tensor("weight") if self.treatment.scheme is None else None
        return GROUPED if weight is not None and refuse_grouped(weight) is None else ""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GroupedProjection":
        super()._apply(fn, recurse)
        self.settle_groups()
        return self
