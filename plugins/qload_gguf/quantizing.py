"""Quantizes to the plain types of blocks whose scale is that of their greatest magnitude: Q4_0 and Q8_0.

Source of the arithmetic: gguf-py's `Q4_0.quantize_blocks`, `Q8_0.quantize_blocks` and `np_roundf`.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.strips import quantize_by_strips
from qload_gguf.types import BY_NAME


def quantize(weight: Tensor, name: str) -> dict[str, Tensor]:
    """Rows of blocks of that type, the last filled up with zeros. Raises ValueError for a type that is not plain."""
    if name not in _TYPES:
        raise ValueError(f"blocks of {name} are not one of {', '.join(_TYPES)}")
    size, encode = BY_NAME[name].elements, _TYPES[name]

    def quantize_rows(rows: Tensor) -> dict[str, Tensor]:
        padded = F.pad(rows.float(), (0, -rows.shape[1] % size))
        return {"weight_quantized": encode(padded.unflatten(1, (-1, size))).flatten(1)}

    return quantize_by_strips(weight, 1, quantize_rows)


def _encode_q4_0(blocks: Tensor) -> Tensor:
    """Blocks [rows, n, 32] as [rows, n, 18]; the value of greatest magnitude is -8."""
    greatest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = greatest / -8
    scaled = blocks * _invert(scale) + 8.5
    first, second = scaled.trunc_().clamp_(0, 15).to(torch.uint8).chunk(2, -1)
    return torch.cat((_store(scale), first | second << 4), -1)


def _encode_q8_0(blocks: Tensor) -> Tensor:
    """Blocks [rows, n, 32] as [rows, n, 34]; halves are rounded away from zero."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scaled = blocks * _invert(scale)
    size = scaled.abs()
    whole = size.floor()
    rounded = (whole + ((size - whole) * 2).floor()).copysign_(scaled)
    return torch.cat((_store(scale), rounded.to(torch.int8).view(torch.uint8)), -1)


def _invert(scale: Tensor) -> Tensor:
    """1 / scale, and 0 for a block of zeros."""
    return torch.where(scale == 0, 0, 1 / scale)


def _store(scale: Tensor) -> Tensor:
    return scale.half().view(torch.uint8)


_TYPES: Mapping[str, Callable[[Tensor], Tensor]] = {"Q4_0": _encode_q4_0, "Q8_0": _encode_q8_0}
