"""The kernels of one layer: chosen once it is loaded, and held in place of what was stored."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from qload.calls import call
from qload.torch.activations import Agree
from qload.torch.hooks import Hooks
from qload.torch.kernels.dense import Dequantized
from qload.torch.kernels.kernel import Case, Kernel
from qload.torch.kernels.table import Choice, Table
from qload.torch.kernels.weights import CodebookWeight, FloatWeight, IntegerWeight, Weight

HOOK = "qload_weight"


@dataclass(frozen=True, slots=True)
class Path:
    """With what a layer computes: a kernel, by its operator's name, or one that is not fast, and why."""

    name: str
    reason: str = ""


PLAIN = Path("linear")
"""Of weights that are not quantized."""
_MOST_GROWTH = 1.02
"""Of memory, for a kernel that is not fast."""
DEQUANTIZES = "dequantize"
"""The path of a layer without a kernel: its method's own, by the dequantized weight."""

EXPERTS = "qload_apply_experts"
"""The path of experts whose method computes them itself."""


class Packed(nn.ModuleList):
    """The kernels of a layer's pieces, in their order, the table that they were chosen from, and why none is fast.

    `rounds` is whether they were chosen for inputs that are quantized, where the method does so.
    """

    def __init__(self, kernels: Sequence[Kernel], table: Table, reasons: Iterable[str] = ()) -> None:
        super().__init__(kernels)
        self.table, self.rounds = table, True
        self.reason = "; ".join(dict.fromkeys(filter(None, reasons)))

    @property
    def kernels(self) -> list[Kernel]:
        return list(self)  # type: ignore[arg-type]

    def forward(
        self, x: Tensor, expert: int | Tensor | None, biases: Sequence[Tensor | None], agree: Agree, *, rounds: bool
    ) -> list[Tensor]:
        """What each piece makes of x, its own bias added; without `rounds`, of x as it is."""
        pairs = zip(self, biases, strict=True)
        return [kernel(x, expert, agree=agree, bias=bias, rounds=rounds) for kernel, bias in pairs]

    @property
    def path(self) -> Path:
        """The operators of the kernels."""
        return Path(", ".join(dict.fromkeys(kernel.label for kernel in self.kernels)), self.reason)

    @property
    def device(self) -> torch.device:
        return next(self.buffers()).device

    def dequantize(self, expert: int | None, dtype: torch.dtype | None) -> list[Tensor]:
        """Each piece's weight as the method means it; with `dtype`, scales are cast to it first."""
        weights = [kernel.unpack(expert) for kernel in self.kernels]
        return [(weight if dtype is None else weight.cast(dtype)).dequantize() for weight in weights]

    def move(self, device: torch.device, dtype: torch.dtype) -> "Packed":
        """The same weights on another kind of device, with the kernels that serve there."""
        kernels, reasons = zip(*(self._move(kernel, device, dtype) for kernel in self.kernels), strict=True)
        packed = Packed(kernels, self.table, reasons)
        packed.rounds = self.rounds
        return packed

    def _move(self, kernel: Kernel, device: torch.device, dtype: torch.dtype) -> tuple[Kernel, str]:
        case = Case(device, dtype, kernel.experts)
        numbers = [None] if kernel.experts is None else range(kernel.experts)
        weights = (kernel.unpack(number).to(device) for number in numbers)
        choice = self.table.choose(kernel.unpack(None if kernel.experts is None else 0), case)
        return (choice.kernel or Dequantized)(weights, case), choice.reason


def pack_pieces(hooks: Hooks, layer: Any, table: Table, case: Case) -> tuple[Packed | None, Path]:
    """Pack a loaded layer's pieces; None where a piece has no kernel, and why.

    `layer` gives its `pieces(expert)`, or one `piece(number, expert)`, as its hooks see them. Raises PluginError where
    the method's hook is broken.
    """
    if not table.kernels:
        return None, Path(DEQUANTIZES, "no kernels were asked for")
    if case.experts is not None and hooks.apply_experts is not None:
        return None, Path(EXPERTS, "the method computes its experts at once")
    numbers: Sequence[int | None] = [None] if case.experts is None else range(case.experts)
    count = len(layer.pieces(numbers[0]))
    firsts = [_read_weight(hooks, layer, number, numbers[0]) for number in range(count)]
    choices = [_choose(table, weight, case, layer.piece(number, numbers[0])) for number, weight in enumerate(firsts)]
    without = [choice for choice in choices if choice.kernel is None]
    if without or not choices:
        return None, Path(DEQUANTIZES, "; ".join(dict.fromkeys(choice.reason for choice in without)))
    kernels = [
        choice.kernel(_read_weights(hooks, layer, number, numbers, firsts), case)
        for number, choice in enumerate(choices)
        if choice.kernel is not None
    ]
    packed = Packed(kernels, table, [choice.reason for choice in choices])
    return packed, packed.path


def _choose(table: Table, weight: Weight | str, case: Case, stored: Any) -> Choice:
    if isinstance(weight, str):
        return Choice(None, weight)
    choice = table.choose(weight, case)
    if choice.kernel is not None and not choice.kernel.is_fast and _grows(choice.kernel, weight, case, stored):
        return replace(choice, kernel=None)
    return choice


def _grows(kernel: type[Kernel], weight: Weight, case: Case, stored: Any) -> bool:
    """Whether a kernel that is not fast would take more memory than a piece as it is stored."""
    packed = sum(
        prod(blank.shape) * blank.dtype.itemsize
        for blank in kernel.declare(kernel.prepare(kernel.see(weight)), case).values()
    )
    return packed > _MOST_GROWTH * sum(each.nbytes for each in vars(stored).values() if isinstance(each, Tensor))


def _read_weights(
    hooks: Hooks, layer: Any, number: int, experts: Sequence[int | None], firsts: list[Weight | str]
) -> Iterator[Weight]:
    """A piece's weight of each expert; the first ones, which have been read, are taken out of `firsts`."""
    for place, expert in enumerate(experts):
        weight = _read_weight(hooks, layer, number, expert) if place else firsts[number]
        if isinstance(weight, str):
            fault = f"{HOOK} gives the weight of one expert and not of another: {weight}"
            raise hooks.runtime.method.origin.blame(fault, where=layer.name)
        firsts[number] = ""
        yield weight


def _read_weight(hooks: Hooks, layer: Any, number: int, expert: int | None) -> Weight | str:
    hook = hooks.runtime.get(HOOK)
    if hook is None:
        return "the method does not give its weights to kernels"
    piece = layer.piece(number, expert)
    answer: Weight | str = call(hooks.runtime.method.origin, HOOK, hook, piece, where=layer.name, read=_read)
    return answer


def _read(answer: object) -> Weight | str:
    if isinstance(answer, IntegerWeight | FloatWeight | CodebookWeight | str):
        return answer
    raise TypeError(f"it returns {type(answer).__name__}, not a weight or a reason")
