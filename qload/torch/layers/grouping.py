"""Stacks of experts that multiply all tokens at once, each by its own expert's weight."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.activations import keep
from qload.torch.kernels import Groups, Kernel, Make, Table
from qload.torch.kernels.grouped import GROUPED, multiply_grouped, refuse_grouped
from qload.torch.kernels.groups import sort_rows
from qload.torch.kernels.trials import Trials, catch_fault, compare, make_inputs
from qload.torch.layers.flow import Projection
from qload.torch.layers.packing import Path

_ROWS = 5
"""Of a trial: one of the first expert, and the others of the last one."""


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

    _trials: Trials | None = None
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

    def pack(self, table: Table, make: Make | None = None) -> None:
        super().pack(table, make)
        self._trials = table.trials if table.kernels else None
        self.settle_groups()

    def settle_share(self) -> None:
        super().settle_share()
        self.settle_groups()

    def settle_groups(self) -> None:
        """Choose the operator for what the layer holds now."""
        self._operator = self._choose_operator(self._trials) if self._trials is not None and not self.apart else ""
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

    def _choose_operator(self, trials: Trials) -> str:
        """The operator that serves what is held, and makes of it on this device what each expert does alone."""
        if self.packed is not None:
            kernels = self.packed.kernels
            if any(each.refuse_groups(self.dtype) or self._try_kernel(trials, each) for each in kernels):
                return ""
            return ", ".join(dict.fromkeys(each.grouped for each in kernels))
        weight = self.own_tensor("weight") if self.treatment.scheme is None else None
        if weight is None or refuse_grouped(weight) or self._try_dense(trials, weight):
            return ""
        return GROUPED

    def _try_kernel(self, trials: Trials, kernel: Kernel) -> str | None:
        device, count = next(kernel.buffers()).device, kernel.experts or 0
        multiply = functools.partial(kernel.multiply_groups, agree=keep)
        make = functools.partial(make_inputs, _ROWS, kernel.columns, device, self.dtype)
        key = (type(kernel), kernel.rounding, kernel.rows, kernel.columns, count, device, self.dtype)
        return trials.once(key, lambda: _try_groups(multiply, kernel, make, count))

    def _try_dense(self, trials: Trials, weight: Tensor) -> str | None:
        make = functools.partial(make_inputs, _ROWS, weight.shape[2], weight.device, weight.dtype)

        def multiply(x: Tensor, groups: Groups) -> Tensor:
            return multiply_grouped(x, weight, groups.ends)

        def alone(x: Tensor, expert: int) -> Tensor:
            return F.linear(x, weight[expert])

        key = (GROUPED, weight.shape, weight.device, weight.dtype)
        return trials.once(key, lambda: _try_groups(multiply, alone, make, len(weight)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GroupedProjection":
        super()._apply(fn, recurse)
        self.settle_groups()
        return self


def _try_groups(
    multiply: Callable[[Tensor, Groups], Tensor],
    alone: Callable[[Tensor, int], Tensor],
    make: Callable[[], Tensor],
    count: int,
) -> str | None:
    """What is wrong with groups of the first and the last expert's rows, beside what these make of them alone."""

    def run() -> str | None:
        x = make()
        ids = torch.tensor([0, *[count - 1] * (len(x) - 1)], device=x.device)
        _, groups = sort_rows(ids, count)
        return compare(multiply(x, groups), torch.cat([alone(x[:1], 0), alone(x[1:], count - 1)]))

    return catch_fault(run)
