"""Trying a kernel on a few rows of a weight before it is trusted with all of its kind."""

import functools
from collections.abc import Callable, Hashable
from dataclasses import replace
from math import lcm

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.errors import QloadError
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

_LEAST_NORM = 1e-30
"""In place of none: whatever is not zero is then wrong."""


class Trials:
    """Finds which kernels compute otherwise than is known here, on a device that nobody has tried, or in another torch.

    One trial holds for all weights of a kind: a load has one of these, and so have the layers that it made.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, str | None] = {}

    def refuse(self, kernel: type[Kernel], weight: Weight, case: Case) -> str | None:
        """What a product of the kernel's has against that of the dequantized weight; None if it is near enough."""
        if not kernel.is_fast:
            return None
        key = (kernel, case.device, case.dtype, _describe(weight))
        if key not in self._found and not _tells(weight):
            return None  # another one of the kind will tell
        return self.once(key, functools.partial(_try, kernel, weight, case))

    def once(self, key: Hashable, run: Callable[[], str | None]) -> str | None:
        """What a trial found, which is run unless there was one of that key: why it is refused, or None."""
        if key not in self._found:
            self._found[key] = run()
        return self._found[key]


def _describe(weight: Weight) -> Hashable:
    dtypes = tuple((name, each.dtype) for name, each in list_tensors(weight).items())
    order = weight.order if isinstance(weight, IntegerWeight) else None
    return weight.label, weight.columns, _count_rows(weight), weight.further, weight.inputs.rounding, order, dtypes


def _count_rows(weight: Weight) -> int:
    """Of whole blocks, and what the last one lacks."""
    unit = _ROWS if weight.height >= weight.rows else lcm(_ROWS, weight.height)
    return min(weight.rows, unit + weight.rows % unit)


def _tells(weight: Weight) -> bool:
    """Whether a product with its first rows can be compared: they are numbers, and not all of them zero."""
    dense = weight.cut(0, _count_rows(weight)).dequantize()
    if not dense.numel():
        return False
    ends = torch.stack((dense.amin(), dense.amax()))
    return bool(ends.isfinite().all() and ends.any())


def _try(kernel: type[Kernel], weight: Weight, case: Case) -> str | None:
    few = weight.cut(0, _count_rows(weight)).to(case.device)
    fault = catch_fault(functools.partial(_find_fault, kernel, few, replace(case, experts=None, make=None)))
    return f"tried on {few.rows} rows, {fault}" if fault else None


def catch_fault(run: Callable[[], str | None]) -> str | None:
    """What a trial finds, or what it raises, in words."""
    try:
        with torch.no_grad():
            return run()
    except (torch.OutOfMemoryError, MemoryError, QloadError):
        raise
    except Exception as error:
        # Operators that a device or a build lacks raise what they will.
        return f"it raises {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _find_fault(kernel: type[Kernel], weight: Weight, case: Case) -> str | None:
    packed, dense = kernel([weight], case), replace(weight, inputs=Inputs()).dequantize()
    if not torch.equal(replace(packed.unpack(), inputs=Inputs()).dequantize(), dense):
        return "it does not give back the weight that it packed"
    for count in _TOKENS:
        x = make_inputs(count, weight.columns, case.device, case.dtype)
        rounded = weight.inputs.round(weight.inputs.arrange(x), keep)
        fault = compare(packed(x), F.linear(rounded, dense.to(x.dtype)))
        if fault is not None:
            return fault
    return None


def make_inputs(count: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Tokens for a trial, [count, columns], the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, columns, generator=generator, device="cpu").to(device, dtype)


def compare(found: Tensor, expected: Tensor) -> str | None:
    """What a product has against the one that it should be; None if it is near, or if that one is no number."""
    norm = expected.float().norm()
    if not norm.isfinite():
        return None
    error = float((found.float() - expected.float()).norm() / norm.clamp_min(_LEAST_NORM))
    is_near = error <= _MOST_ERROR
    return None if is_near else f"it differs from the product of the dequantized weight by {error:.2g} of its norm"
