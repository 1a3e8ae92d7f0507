"""What a kernel is: a module that holds one piece of a layer, packed as an operator wants it, and multiplies by it."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from qload.torch.activations import Agree, keep
from qload.torch.kernels.groups import Groups
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.strips import find_least, multiply_strips
from qload.torch.kernels.weights import IntegerWeight, Weight
from qload.torch.pieces import pick_expert

Make = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes an empty tensor where the layer is."""
_FACTOR, _ORDER, _SCALE = "input_factor", "input_order", "input_scale"


@dataclass(frozen=True, slots=True)
class Case:
    """Where a layer computes, and in what; of `experts` it has a stack. `make` gives packed weights their memory."""

    device: torch.device
    dtype: torch.dtype
    experts: int | None = None
    make: Make | None = None

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Empty memory for a packed tensor, with an axis of experts in front where there are any."""
        whole = shape if self.experts is None else (self.experts, *shape)
        if self.make is not None:
            return self.make(whole, dtype)
        return torch.empty(whole, dtype=dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Blank:
    """A packed tensor that is to be filled."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Kernel(nn.Module):
    """One piece of a layer, or that piece of each of its experts, packed for an operator.

    A kernel is chosen by `serves` and `refuse`, which look at shapes and dtypes alone. `declare` says what it packs a
    weight into, `fill` does it, and `restore` undoes it: a kernel loses nothing of a weight. `multiply` computes.
    Its tensors are no parameters: nothing trains them, and casting a model leaves them as they are.
    """

    label: ClassVar[str]
    """The operator's name, as reports have it, and as a load is asked for it."""
    devices: ClassVar[str]
    """The devices that it computes on, in words."""
    precision: ClassVar[str] = ""
    """How its arithmetic differs from multiplying by the dequantized weight, in words."""
    is_fast: ClassVar[bool] = True
    """Whether it is ahead of dequantizing: of a layer that has one that is not, reports say why."""
    grouped: ClassVar[str] = ""
    """The operator's name that multiplies groups of tokens, where it has one."""
    knows: ClassVar[frozenset[str]] = frozenset()
    """What it computes with, and restores, of `Weight.further`: it is not asked about weights that have more."""
    takes_words: ClassVar[bool] = False
    """Whether it packs four bits that are words, of columns or, in an `order`, of rows: others are given pairs."""

    @classmethod
    @abstractmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        """Whether it is made for weights of that kind, on that device."""

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        """Why it cannot multiply by a weight of the kind that it serves; None if it can."""
        return None

    @classmethod
    @abstractmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        """The tensors that a weight is packed into, by name."""

    @classmethod
    @abstractmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        """Pack a weight into memory of the declared shapes."""

    @abstractmethod
    def restore(self, held: Mapping[str, Tensor]) -> Weight:
        """The weight that was packed, as exactly as it was given, without its inputs."""

    @abstractmethod
    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        """x [tokens, columns], arranged but not rounded, into [tokens, rows], in its dtype."""

    def __init__(self, weights: Iterable[Weight], case: Case) -> None:
        """Pack a weight, or one for each expert; each is dropped before the next is asked for."""
        super().__init__()
        for number, given in enumerate(weights):
            weight = self.prepare(given if self.takes_words else _pair_words(given, case))
            if not number:
                self._begin(weight, case)
            self.fill(weight, self._pick(None if case.experts is None else number))
            self._put_inputs(weight.inputs, None if case.experts is None else number)

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        """Whether x, as `multiply` would have it, is better multiplied by `multiply_dense`."""
        return False

    def refuse_groups(self, dtype: torch.dtype) -> str | None:
        """Why `multiply_groups` cannot multiply x of that dtype, by a stack of experts; None if it can."""
        return "it multiplies by one expert at a time"

    def multiply_groups(self, x: Tensor, groups: Groups, agree: Agree) -> Tensor:
        """x [rows, in_features], sorted by expert, into [rows, out_features], each row by its own expert's weight.

        x is as `forward` has it, and rows of no expert may become anything.
        """
        raise NotImplementedError(f"{self.label} multiplies by one expert at a time")

    def forward(
        self,
        x: Tensor,
        expert: int | Tensor | None = None,
        *,
        agree: Agree = keep,
        bias: Tensor | None = None,
        rounds: bool = True,
    ) -> Tensor:
        """x [..., in_features] into [..., out_features], by one expert where it is a stack of them.

        Where the product is dense, the bias [out_features] is added before it is rounded. Without `rounds`, inputs are
        left as they are where the method rounds them.
        """
        inputs, held = self.inputs(expert, rounds=rounds), self._pick(expert)
        flat = inputs.arrange(x.reshape(-1, x.shape[-1]))
        is_trained = torch.is_grad_enabled() and x.requires_grad
        if is_trained or self.is_dense(flat, held, inputs):
            joins = bias is not None and bias.dtype == flat.dtype
            y = self.multiply_dense(flat, held, inputs, agree, bias if joins else None)
            bias = None if joins else bias
        else:
            y = self.multiply(flat, held, inputs, agree)
        y = y.reshape(*x.shape[:-1], self.rows)
        return y if bias is None else y + bias

    def multiply_dense(
        self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree, bias: Tensor | None = None
    ) -> Tensor:
        """As `multiply`, by the dequantized weight: what gradients go through, and what large batches take."""

        def decode() -> Iterator[Tensor]:
            return (part.dequantize().to(x.dtype) for part in self.split(held, find_least(x)))

        return multiply_strips(inputs.round(x, agree), decode, self.rows, bias)

    def split(self, held: Mapping[str, Tensor], least: int = 0) -> Iterator[Weight]:
        """What `restore` gives, in strips of rows: on CPUs so few that they stay in its cache while they are used.

        Each has `least` values, about, if that is more: all of x passes through the cache for each strip.
        """
        yield self.restore(held)

    def unpack(self, expert: int | None = None) -> Weight:
        """The weight that was packed, with what is done to its inputs."""
        return replace(self.restore(self._pick(expert)), inputs=self.inputs(expert))

    def inputs(self, expert: int | Tensor | None = None, *, rounds: bool = True) -> Inputs:
        """What is done to inputs before they are multiplied."""
        chosen = {name: pick_expert(getattr(self, name), expert) for name in self._arranged}
        return Inputs(chosen.get(_FACTOR), chosen.get(_ORDER), self.rounding if rounds else None, chosen.get(_SCALE))

    def _begin(self, weight: Weight, case: Case) -> None:
        self.experts, self.rows, self.columns = case.experts, weight.rows, weight.columns
        self.rounding = weight.inputs.rounding
        self.settle(weight, case)
        declared = self.declare(weight, case)
        self._names = tuple(declared)
        adopted = self.adopt(weight) if case.experts is None else {}
        for name, blank in declared.items():
            held = adopted.get(name)
            self.register_buffer(name, case.allocate(blank.shape, blank.dtype) if held is None else held)
        arranged = _list_inputs(weight.inputs)
        self._arranged = tuple(name for name, _ in arranged)
        for name, each in arranged:
            self.register_buffer(name, case.allocate(tuple(each.shape), each.dtype))

    @classmethod
    def see(cls, weight: Weight) -> Weight:
        """The weight as `serves`, `refuse`, `prepare` and `declare` are to look at it, before it is packed."""
        return weight if cls.takes_words or not isinstance(weight, IntegerWeight) else weight.outline()

    @classmethod
    def prepare(cls, weight: Weight) -> Weight:
        """The weight as `declare`, `fill` and `settle` want it."""
        return weight

    @classmethod
    def adopt(cls, weight: Weight) -> Mapping[str, Tensor]:
        """The declared tensors that a prepared weight has already, so that they are held without being copied."""
        return {}

    def settle(self, weight: Weight, case: Case) -> None:
        """Remember what `restore` and `multiply` need to know of the weight, which all experts' have alike."""

    def _put_inputs(self, inputs: Inputs, expert: int | None) -> None:
        for name, each in _list_inputs(inputs):
            pick_expert(getattr(self, name), expert).copy_(each)

    def _pick(self, expert: int | Tensor | None) -> dict[str, Tensor]:
        return {name: pick_expert(getattr(self, name), expert) for name in self._names}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Kernel":
        """Move without casting: packed words and scales have the dtypes that the operator wants."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"{self.label}, {self.columns} to {self.rows}"


def _pair_words(weight: Weight, case: Case) -> Weight:
    return weight.pair(case.make) if isinstance(weight, IntegerWeight) else weight


def _list_inputs(inputs: Inputs) -> list[tuple[str, Tensor]]:
    named = ((_FACTOR, inputs.factor), (_ORDER, inputs.order), (_SCALE, inputs.scale))
    return [(name, each) for name, each in named if each is not None]


Kernels = tuple[type[Kernel], ...]
"""A table of kernels: of those that can multiply by a weight, the first one does."""
