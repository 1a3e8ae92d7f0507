"""What kernels for weights of eight bits share: values in two's complement, zero-points of the middle left out."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qload.torch.kernels.kernel import Blank, Case, Kernel
from qload.torch.kernels.weights import IntegerWeight, Weight

_HALF = 128


class Centered(Kernel):
    """Holds values as int8, whatever they begin at, and scales and zero-points as they are given."""

    knows = frozenset({"whole"})

    @classmethod
    @abstractmethod
    def declare_values(cls, weight: IntegerWeight) -> Blank:
        """What the values are packed into."""

    @classmethod
    @abstractmethod
    def fill_values(cls, values: Tensor, into: Tensor) -> None:
        """Pack the values, int8 [rows, columns]."""

    @abstractmethod
    def restore_values(self, held: Tensor) -> Tensor:
        """The values, int8 [rows, columns]."""

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        return None if isinstance(weight, IntegerWeight) else "it multiplies by integers"

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        weight = _as_integers(weight)
        scales = {name: Blank(tuple(each.shape), each.dtype) for name, each in _list_scales(weight).items()}
        return {"values": cls.declare_values(weight)} | scales

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        weight = _as_integers(weight)
        is_unsigned = weight.values.dtype == torch.uint8
        cls.fill_values((weight.values ^ _HALF).view(torch.int8) if is_unsigned else weight.values, into["values"])
        for name, each in _list_scales(weight).items():
            into[name].copy_(each)

    def settle(self, weight: Weight, case: Case) -> None:
        weight = _as_integers(weight)
        self.group, self._zero = weight.group, 0 if isinstance(weight.zero, Tensor) else weight.zero
        self._is_unsigned = weight.values.dtype == torch.uint8

    def restore(self, held: Mapping[str, Tensor], start: int | None = None, stop: int | None = None) -> IntegerWeight:
        """Also of the values of some rows, with the scales of all."""
        values, zero = self.restore_values(held["values"]), held.get("zero", self._zero)
        values = values.view(torch.uint8) ^ _HALF if self._is_unsigned else values
        weight = IntegerWeight(values, 8, self.columns, held["scale"], zero, self.group, whole=held.get("whole"))
        return weight if start is None or stop is None else replace(weight.cut(start, stop), values=values)

    def find_scale(self, held: Mapping[str, Tensor]) -> Tensor:
        """What the values are times, [rows, groups], float32 where a number is times the scales."""
        scale = held["scale"].expand(self.rows, -1)
        return scale.float() * held["whole"].float() if "whole" in held else scale

    def find_zero(self, held: Mapping[str, Tensor]) -> Tensor | None:
        """What is to be subtracted from the values as they are held; None where that is nothing."""
        middle = _HALF if self._is_unsigned else 0
        if "zero" in held:
            return held["zero"].float() - middle
        return None if self._zero == middle else held["scale"].new_full((1, 1), self._zero - middle)


def _list_scales(weight: IntegerWeight) -> dict[str, Tensor]:
    named = {"scale": weight.scale, "zero": weight.zero, "whole": weight.whole}
    return {name: each for name, each in named.items() if isinstance(each, Tensor)}


def _as_integers(weight: Weight) -> IntegerWeight:
    if not isinstance(weight, IntegerWeight):
        raise TypeError(f"{weight.label} is no weight of integers")
    return weight
