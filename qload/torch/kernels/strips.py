"""Products with weights that are dequantized some rows at a time, so that they never leave a CPU's cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Strips = Callable[[], Iterator[Tensor]]
"""Gives the weight anew, from its first rows on, in strips [some rows, columns] of x's dtype."""
_VALUES = 1 << 19
"""In a strip: a megabyte of 16 bits each, as the second level of caches has. Measured: half of it is as quick."""
_WIDE = 1024
"""Rows of a strip. Measured on AMX: 384 to 768 take 512 tokens or more twice as long as these do."""


def find_least(x: Tensor) -> int:
    """The values that a strip has, at least, to be multiplied by x [tokens, columns].

    All of x passes through the cache for each strip, and a product that is hardly wider than it has tokens is slow.
    Compiled code has one strip for any number of tokens.
    """
    if torch.compiler.is_compiling():
        return 0
    return x.shape[-1] * max(len(x), min(2 * len(x), _WIDE))


def divide_rows(rows: int, columns: int, unit: int = 64, *, least: int = 0) -> Iterator[tuple[int, int]]:
    """Where strips begin and end: all but the last have a multiple of `unit` rows.

    They have `least` values, about, if that is more than a cache has room for: see `find_least`.
    """
    step = max(1, max(_VALUES, least) // max(1, columns * unit)) * unit
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def multiply_strips(x: Tensor, strips: Strips, rows: int, bias: Tensor | None = None) -> Tensor:
    """x [tokens, columns] times a weight [rows, columns], and a bias [rows]; x may need gradients, for which strips
    are given again.
    """
    if torch.compiler.is_compiling():
        return F.linear(x, torch.cat(list(strips())), bias)
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Product.apply(x, strips, rows, bias)  # type: ignore[no-untyped-call]
        return y
    return _multiply(x, strips, rows, bias)


def _multiply(x: Tensor, strips: Strips, rows: int, bias: Tensor | None) -> Tensor:
    y, start = None, 0
    for strip in strips():
        stop = start + len(strip)
        part = F.linear(x, strip, None if bias is None else bias[start:stop])
        if y is None:
            if stop == rows:
                return part
            y = x.new_empty(len(x), rows)
        y[:, start:stop] = part
        start = stop
    return x.new_empty(len(x), rows) if y is None else y


class _Product(torch.autograd.Function):
    """Keeps no dense weight for the way back, where autograd would keep all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strips: Strips, rows: int, bias: Tensor | None) -> Tensor:
        ctx.strips = strips
        return _multiply(x, strips, rows, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        back, start = None, 0
        for strip in ctx.strips():
            part = gradient[:, start : start + len(strip)] @ strip
            # Sums of many strips would be rounded each time.
            back = part.float() if back is None else back + part
            start += len(strip)
        return (
            None if back is None else back.to(gradient.dtype),
            None,
            None,
            gradient.sum(0) if ctx.needs_input_grad[3] else None,
        )
