"""Trying a kernel on a few rows of a weight before it is trusted with all of its kind."""

from collections.abc import Hashable
from dataclasses import replace
from math import lcm

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.activations import keep
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.kernel import Case, Kernel
from qload.torch.kernels.weights import IntegerWeight, Weight, list_tensors

_ROWS = 128
"""As many as the largest blocks that kernels pack apart have; what is left of others is tried with them."""
_TOKENS = (3, 33)
"""Few, which some operators pad, and more."""
_MOST_ERROR = 0.05
"""Relative to the norm. Rounding explains 0.02 at most, with codes of eight bits; a wrong layout gives 1 and more."""


class Trials:
    """Finds which kernels compute otherwise than is known here, on a device that nobody has tried, or in another torch.

    Each is tried once for all weights of a kind: a load has one of these, and so have the layers that it made.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, str | None] = {}

    def refuse(self, kernel: type[Kernel], weight: Weight, case: Case) -> str | None:
        """What a product of the kernel's has against that of the dequantized weight; None if it is near enough."""
        if not kernel.is_fast:
            return None
        key = (kernel, case.device, case.dtype, _describe(weight))
        if key not in self._found:
            self._found[key] = _try(kernel, weight, case)
        return self._found[key]


def _describe(weight: Weight) -> Hashable:
    dtypes = tuple((name, each.dtype) for name, each in list_tensors(weight).items())
    return weight.label, weight.columns, _count_rows(weight), weight.further, weight.inputs.rounding, dtypes


def _count_rows(weight: Weight) -> int:
    """Of whole blocks, and what the last one lacks."""
    height = 1 if isinstance(weight, IntegerWeight) else weight.block[0]
    unit = _ROWS if height >= weight.rows else lcm(_ROWS, height)
    return min(weight.rows, unit + weight.rows % unit)


def _try(kernel: type[Kernel], weight: Weight, case: Case) -> str | None:
    few = weight.cut(0, _count_rows(weight))
    try:
        with torch.no_grad():
            fault = _find_fault(kernel, few, replace(case, experts=None, make=None))
    except Exception as error:
        # Operators that a device or a build lacks raise what they will.
        fault = f"it raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return f"tried on {few.rows} rows, {fault}" if fault else None


def _find_fault(kernel: type[Kernel], weight: Weight, case: Case) -> str | None:
    packed, dense = kernel([weight], case), replace(weight, inputs=Inputs()).dequantize()
    if not dense.isfinite().all():
        return None
    if not torch.equal(replace(packed.unpack(), inputs=Inputs()).dequantize(), dense):
        return "it does not give back the weight that it packed"
    generator = torch.Generator().manual_seed(0)
    for count in _TOKENS:
        x = torch.randn(count, weight.columns, generator=generator).to(case.device, case.dtype)
        rounded = weight.inputs.round(weight.inputs.arrange(x), keep)
        error = _measure(packed(x), F.linear(rounded, dense.to(x.dtype)))
        if error > _MOST_ERROR:
            return f"it differs from the product of the dequantized weight by {error:.2g} of its norm"
    return None


def _measure(found: Tensor, expected: Tensor) -> float:
    norm = expected.float().norm()
    return float((found.float() - expected.float()).norm() / norm) if norm.isfinite() and norm else 0.0
