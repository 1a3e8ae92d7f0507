"""What torch's kernels for four-bit weights share: (value - 8) * scale + offset, the latter two side by side."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from qload.torch.kernels.kernel import Blank, Case, Kernel
from qload.torch.kernels.weights import IntegerWeight, Weight

HALF = 8
"""What the kernels subtract from values of four bits."""


class Affine(Kernel):
    """Packs values, and scales and offsets in the dtype of x, [groups, rows, 2]; offset is (8 - zero) * scale + shift.

    Scales, zero-points and shifts that cannot be had again from these are kept beside them.
    """

    knows = frozenset({"shift", "wide"})
    groups: ClassVar[tuple[int, ...]]
    """The columns that may share a scale, the most first."""

    @classmethod
    @abstractmethod
    def declare_values(cls, weight: IntegerWeight) -> Blank:
        """What the values are packed into."""

    @classmethod
    @abstractmethod
    def fill_values(cls, weight: IntegerWeight, into: Tensor) -> None:
        """Pack the values, which are unsigned."""

    @abstractmethod
    def restore_values(self, packed: Tensor) -> Tensor:
        """The values in pairs, uint8 [rows, columns / 2]."""

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if not isinstance(weight, IntegerWeight):
            return "it multiplies by integers"
        if cls.find_unit(weight) is None:
            sizes = ", ".join(map(str, sorted(cls.groups)))
            return f"groups of {weight.group} columns are no multiple of {sizes}"
        return None

    @classmethod
    def find_unit(cls, weight: IntegerWeight) -> int | None:
        """How many columns share a scale in the kernel: groups are as many of these."""
        if weight.columns % weight.group:
            return None
        return next((size for size in cls.groups if weight.group % size == 0), None)

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        weight = _as_integers(weight)
        groups = weight.columns // (cls.find_unit(weight) or 1)
        declared = {"values": cls.declare_values(weight), "scales": Blank((groups, weight.rows, 2), case.dtype)}
        if not _can_be_derived(weight, case):
            declared |= {name: Blank(tuple(each.shape), each.dtype) for name, each in _list_scales(weight).items()}
        return declared

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        given = _list_floats(weight)
        weight = _as_integers(weight)
        cls.fill_values(weight, into["values"])
        _fill_scales(weight, into["scales"])
        for name, each in (_list_scales(weight) | given).items():
            if name in into:
                into[name].copy_(each)

    def settle(self, weight: Weight, case: Case) -> None:
        self._is_signed = bool(_list_floats(weight))
        weight = _as_integers(weight)
        self.unit, self.group = self.find_unit(weight) or 1, weight.group
        self._zero = weight.zero.dtype if isinstance(weight.zero, Tensor) else weight.zero
        self._wide = weight.wide

    def restore(self, held: Mapping[str, Tensor]) -> IntegerWeight:
        scale = held["scale"] if "scale" in held else self._pick_first(held["scales"])[0]
        zero = held["zero"] if "zero" in held else self._restore_zero(held["scales"])
        values, shift = self.restore_values(held["values"]), held.get("shift")
        weight = IntegerWeight(values, 4, self.columns, scale, zero, self.group, shift=shift, wide=self._wide)
        return replace(weight, values=(weight.spread() - HALF).view(torch.int8)) if self._is_signed else weight

    def _restore_zero(self, scales: Tensor) -> Tensor | int:
        if isinstance(self._zero, int):
            return self._zero
        scale, offset = self._pick_first(scales)
        return (HALF - offset.float() / scale.float()).round().nan_to_num(HALF).to(self._zero)

    def _pick_first(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The scales and offsets [rows, groups] of the weight's own groups."""
        scale, offset = scales[:: self.group // self.unit].permute(2, 1, 0).unbind()
        return scale, offset


def _as_integers(weight: Weight) -> IntegerWeight:
    """With values that begin at zero. Raises TypeError for other weights, which are refused."""
    if not isinstance(weight, IntegerWeight):
        raise TypeError(f"{weight.label} is no weight of integers")
    return weight.unsigned()


def _list_scales(weight: IntegerWeight) -> dict[str, Tensor]:
    named = {"scale": weight.scale, "zero": weight.zero, "shift": weight.shift}
    return {name: each for name, each in named.items() if isinstance(each, Tensor)}


def _list_floats(weight: Weight) -> dict[str, Tensor]:
    """The zero-points of values in two's complement, if they are floats: adding anything would round them."""
    if not isinstance(weight, IntegerWeight) or weight.values.dtype != torch.int8:
        return {}
    zero = weight.zero
    return {"zero": zero} if isinstance(zero, Tensor) and zero.is_floating_point() else {}


def _can_be_derived(weight: IntegerWeight, case: Case) -> bool:
    """Whether the packed scales have the weight's own, bit by bit, and offsets tell zero-points of whole steps."""
    is_whole = not isinstance(weight.zero, Tensor) or not weight.zero.is_floating_point()
    is_own = weight.scale.dtype == case.dtype and weight.scale.shape[0] == weight.rows
    return is_own and is_whole and weight.shift is None and _fits(weight)


def _fits(weight: IntegerWeight) -> bool:
    zero = weight.zero
    return not isinstance(zero, Tensor) or tuple(zero.shape) == tuple(weight.scale.shape)


def _fill_scales(weight: IntegerWeight, into: Tensor) -> None:
    scale = weight.scale.expand(weight.rows, -1)
    zero = weight.zero if isinstance(weight.zero, Tensor) else torch.tensor(weight.zero, device=scale.device)
    # A group without a scale is zero, whatever its offset would come to.
    offset = (HALF - zero.float()) * scale.float()
    offset = offset if weight.shift is None else offset + weight.shift.float()
    for place, each in enumerate((scale, offset)):
        into.unflatten(0, (each.shape[1], -1))[..., place].copy_(each.T.unsqueeze(1))
