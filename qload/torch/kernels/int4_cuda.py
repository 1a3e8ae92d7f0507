"""torch's CUDA kernel for weights of four bits."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qload.torch.activations import Agree
from qload.torch.kernels.affine import Affine
from qload.torch.kernels.gpus import miss_capability
from qload.torch.kernels.inputs import Inputs
from qload.torch.kernels.kernel import Blank, Case
from qload.torch.kernels.weights import IntegerWeight, Weight

_ROWS, _LANES = 8, 32
"""Of a tile of the weight: its rows, and the threads that share them, four to a row."""
_TILES = (8, 4, 2)
"""How many tiles of 16 columns a thread may load at once, two to a word: the most first."""
_TILE = 16
_MOST_ROWS = _ROWS * 65535
"""A grid of CUDA has no more tiles than 65535 along its second axis."""
_MOST_TOKENS = 256
"""Beyond these, multiplying by the dequantized weight is taken to be ahead: each 16 tokens read the weight anew."""


class CudaInt4(Affine):
    """Multiplies bfloat16 by four-bit integers in groups of 32 to 256 columns, which it unpacks in registers.

    The weight is int32 [rows / 8, columns / (16 t), 32, t / 2], where t tiles of 16 columns are loaded at once. A word
    holds eight values of one row, of two tiles: thread 4 r + q has row r, and of each tile the columns 2 q, 2 q + 1,
    2 q + 8 and 2 q + 9. The four even ones are in the word's low half, in their order from the lowest bits on, and the
    odd ones in its high half. Each weight is rounded once, to bfloat16: (value - 8) * scale + offset.
    Source: ATen's native/cuda/int4mm.cu, `matrix_to_m16n8k16_Bint4_layout` and the checks of
    `_weight_int4pack_mm_cuda`: bfloat16 alone, rows by 8, groups of 32, 64, 128 or 256, t of 2, 4 or 8 that divides
    the tiles, compute capability 8.0. AMD's GPUs have another layout.
    """

    label = "int4pack_mm"
    devices = "CUDA"
    precision = "scales, offsets and each weight are rounded to bfloat16, sums are of float32"
    groups = (256, 128, 64, 32)

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        return isinstance(weight, IntegerWeight) and weight.bits == 4 and case.device.type == "cuda"

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if case.dtype != torch.bfloat16:
            return f"it multiplies bfloat16, and the layer computes in {str(case.dtype).removeprefix('torch.')}"
        if weight.rows % _ROWS:
            return f"{weight.rows} output features are no multiple of {_ROWS}"
        if weight.rows > _MOST_ROWS:
            return f"{weight.rows} output features are more than {_MOST_ROWS}"
        return super().refuse(weight, case) or miss_capability(case.device, (8, 0))

    @classmethod
    def declare_values(cls, weight: IntegerWeight) -> Blank:
        tiles = _count_tiles(weight.columns)
        shape = (weight.rows // _ROWS, weight.columns // (_TILE * tiles), _LANES, tiles // 2)
        return Blank(shape, torch.int32)

    @classmethod
    def fill_values(cls, weight: IntegerWeight, into: Tensor) -> None:
        pairs = weight.values if weight.is_paired else weight.values[:, ::2] | weight.values[:, 1::2] << 4
        # [rows / 8, 8, words of columns, loads, 4 bytes of a thread, 4 threads]
        threads = pairs.reshape(into.shape[0], _ROWS, into.shape[1], into.shape[3], 4, 4)
        first, second = threads[..., ::2, :], threads[..., 1::2, :]
        even, odd = first & 15 | second << 4, first >> 4 | second & 0xF0
        _view_words(into).copy_(torch.stack((even, odd), -3).permute(0, 2, 1, 6, 3, 4, 5))

    def restore_values(self, packed: Tensor) -> Tensor:
        even, odd = _view_words(packed).permute(0, 2, 1, 4, 5, 6, 3).unbind(-3)
        pairs = torch.stack((even & 15 | odd << 4, even >> 4 | odd & 0xF0), -2)
        return pairs.reshape(self.rows, self.columns // 2)

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return x.dtype != torch.bfloat16 or not 0 < len(x) <= _MOST_TOKENS

    def multiply(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs, agree: Agree) -> Tensor:
        rounded = inputs.round(x, agree).contiguous()
        y: Tensor = torch.ops.aten._weight_int4pack_mm(rounded, held["values"], self.unit, held["scales"])
        return y


def _count_tiles(columns: int) -> int:
    """The most tiles that can be loaded at once, which share the columns evenly."""
    return next(count for count in _TILES if columns % (_TILE * count) == 0)


def _view_words(packed: Tensor) -> Tensor:
    """The bytes of the words, [rows / 8, words of columns, 8, 4 threads, loads, even or odd, 2]."""
    blocks, words, _, loads = packed.shape
    return packed.view(torch.uint8).view(blocks, words, _ROWS, 4, loads, 2, 2)
