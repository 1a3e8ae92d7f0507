"""bitsandbytes' operator for CPUs."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qload.torch.activations import Agree
from qload.torch.kernels import Blank, Case, CodebookWeight, Inputs, Weight
from qload.torch.kernels.strips import divide_rows
from qload.torch.nibbles import join_nibbles
from qload_bitsandbytes.kernels.codebook import Codebook

_BLOCK = 32
"""The rows that the operator takes at once."""
_ROUNDED = "rounded_scale"
_MOST_GROUP = 1024
"""Longer ones bitsandbytes itself does not give its vectors."""


class CpuCodebook(Codebook):
    """Multiplies bfloat16 by codes of four bits, which it looks up in registers.

    Blocks of 32 rows are stored as [columns / 2, 32 bytes]: byte 2 r has the even column of row r, low, and of row
    r + 16, and the next one their odd columns. Scales lie by groups, in bfloat16. Source: bitsandbytes'
    `_convert_weight_packed_for_cpu`, version 0.50.
    """

    label = "bitsandbytes::gemv_4bit"
    devices = "CPU"
    precision = "scales and weights are rounded to bfloat16, sums are of float32"

    @classmethod
    def refuse_weight(cls, weight: CodebookWeight, case: Case) -> str | None:
        if case.dtype != torch.bfloat16:
            return f"it rounds {str(case.dtype).removeprefix('torch.')} to bfloat16: dtype=bfloat16 is what it is for"
        if weight.rows % _BLOCK:
            return f"{weight.rows} output features are no multiple of {_BLOCK}"
        return f"groups of {weight.group} columns are beyond {_MOST_GROUP}" if weight.group > _MOST_GROUP else None

    @classmethod
    def refuse_package(cls, package: Any) -> str | None:
        has_vectors = getattr(package.functional, "has_avx512bf16", lambda: False)
        return None if has_vectors() else "it wants a CPU with AVX512_BF16, and bitsandbytes 0.49 or later"

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        declared = super().declare(weight, case)
        rows, groups = declared["scale"].shape
        return {**declared, _ROUNDED: Blank((groups, rows), torch.bfloat16)}

    @classmethod
    def adopt(cls, weight: Weight) -> Mapping[str, Tensor]:
        return {name: each for name, each in super().adopt(weight).items() if name != "values"}

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        super().fill(replace(weight, values=into["values"]), into)
        into[_ROUNDED].copy_(weight.scale.T)
        for block, rows in zip(into["values"].split(_BLOCK), weight.values.split(_BLOCK), strict=True):
            _pack_rows(rows, block)

    def restore(self, held: Mapping[str, Tensor]) -> Weight:
        packed = held["values"]
        values = torch.empty_like(packed)
        for rows, block in zip(values.split(_BLOCK), packed.split(_BLOCK), strict=True):
            _unpack_rows(block, rows)
        return super().restore({"values": values, "scale": held["scale"], "table": held["table"]})

    def split(self, held: Mapping[str, Tensor], least: int = 0) -> Iterator[Weight]:
        for start, stop in divide_rows(self.rows, self.columns, _BLOCK, least=least):
            yield self.restore({**held, **{name: held[name][start:stop] for name in ("values", "scale")}})

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return x.dtype != torch.bfloat16 or len(x) == 0

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        shape, rounded = (self.rows, self.columns), inputs.round(x, agree).contiguous()
        y: Tensor = torch.ops.bitsandbytes.gemv_4bit(
            rounded, held["values"], shape, held[_ROUNDED], held["table"], self.group
        )
        return y


def _pack_rows(rows: Tensor, block: Tensor) -> None:
    """32 rows of codes [32, columns / 2] into a block of as many bytes."""
    for into, joined in zip(_view_columns(block), join_nibbles(*rows.chunk(2)), strict=True):
        into.copy_(joined)


def _unpack_rows(block: Tensor, rows: Tensor) -> None:
    """The inverse of `_pack_rows`."""
    for half, joined in zip(rows.chunk(2), join_nibbles(*_view_columns(block)), strict=True):
        half.copy_(joined)


def _view_columns(block: Tensor) -> tuple[Tensor, Tensor]:
    """The odd columns of a block, and the even ones, each [16, columns / 2]: of rows 16 apart, the first one low."""
    even, odd = block.view(-1, _BLOCK // 2, 2).unbind(-1)
    return odd.T, even.T
