"""torch's operators for GPUs, as strict as there, and computed by what is documented of what they are given.

A mode takes their calls: it holds their arguments to what their sources demand, and multiplies in float64. What stands
on a GPU that is not there is held alone.
Source: ATen's native/cuda/{ScaledBlas.cpp, RowwiseScaledMM.cu, int4mm.cu, Blas.cpp, cuBlasCommonArgs.h}; cuBLAS's
documentation of cublasLtMatmul, its narrow data types, and the layouts of their scales.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

E4M3, PAIRS = torch.float8_e4m3fn, torch.float4_e2m1fn_x2
SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of E2M1, by three of its bits."""
ROWS, GROUPS, BLOCKS = [1], [3], ([4], [5])
"""Recipes of `_scaled_mm_v2`: RowWise, BlockWise1x32, and BlockWise1x128 with BlockWise128x128."""
TILES = [1]
"""SwizzleType.SWIZZLE_32_4_4."""
WIDE = (torch.bfloat16, torch.float32)


class Demands(TorchDispatchMode):
    """Counts the calls of those that multiply, by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name not in STAND_INS:
            return func(*args, **(kwargs or {}))
        if STAND_INS[name] is not pick:
            self.calls[name] = self.calls.get(name, 0) + 1
        return STAND_INS[name](*args, **(kwargs or {}))


def multiply_integers(codes: Tensor, values: Tensor) -> Tensor:
    """aten::_int_mm: int8, more than 16 tokens, by 8; both by columns, which alone cuBLAS has on every GPU."""
    tokens, columns = codes.shape
    assert (codes.dtype, values.dtype) == (torch.int8, torch.int8)
    assert codes.stride() == (columns, 1), f"codes lie by {codes.stride()}"
    assert values.stride() == (1, columns), f"the weight lies by {values.stride()}"
    assert tokens > 16, f"{tokens} tokens"
    assert columns % 8 == values.shape[1] % 8 == 0
    return finish(codes, values, torch.int32, lambda: codes.double() @ values.double())


def multiply_pairs(x: Tensor, packed: Tensor, group: int, scales: Tensor) -> Tensor:
    """aten::_weight_int4pack_mm."""
    blocks, words, lanes, loads = packed.shape
    assert x.dtype == scales.dtype == torch.bfloat16
    assert packed.dtype == torch.int32
    assert lanes == 32
    assert loads in (1, 2, 4)
    assert words == x.shape[1] // (loads * 32)
    assert x.shape[1] % (loads * 32) == 0
    assert all(each.is_contiguous() for each in (x, packed, scales))
    assert group in (32, 64, 128, 256)
    assert x.shape[1] % group == 0
    assert tuple(scales.shape) == (x.shape[1] // group, blocks * 8, 2)
    assert blocks <= 65535
    assert x.data_ptr() % 4 == 0 if is_real(x) else True
    assert offset(packed) % 16 == 0

    def compute() -> Tensor:
        scale, zero = scales.double().repeat_interleave(group, 0).unbind(-1)
        weight = (read_as_threads_do(packed).double() - 8) * scale.T + zero.T
        return x.double() @ weight.bfloat16().double().T

    return finish(x, x.new_empty(0, blocks * 8), torch.bfloat16, compute)


def read_as_threads_do(packed: Tensor) -> Tensor:
    """The values [rows, columns] that the tensor cores are handed.

    A word's h-th pair of operands is in bits 4 h and 4 h + 16 on; the first two pairs are of one tile, the others of
    the next. Of mma.m16n8k16's operand B, thread t holds column t / 4, and of its rows 2 (t mod 4) and the next one,
    and the same 8 further on. Source: the PTX ISA, 9.7.14, "Matrix Fragments for mma.m16n8k16"; ATen's
    native/cuda/int4mm.cu, convert_i4x8_to_bf16x2x4.
    """
    blocks, words, threads, loads = packed.shape
    found = torch.full((blocks * 8, words * loads * 32), -1)
    for block, word, thread, load in torch.cartesian_prod(*map(torch.arange, (blocks, words, threads, loads))).tolist():
        bits = int(packed[block, word, thread, load]) & 0xFFFFFFFF
        for pair in range(4):
            first = ((word * loads + load) * 2 + pair // 2) * 16 + (thread % 4) * 2 + pair % 2 * 8
            found[block * 8 + thread // 4, first] = bits >> 4 * pair & 15
            found[block * 8 + thread // 4, first + 1] = bits >> 4 * pair + 16 & 15
    return found


def multiply_scaled(
    codes: Tensor,
    values: Tensor,
    scale: Tensor,
    factors: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """aten::_scaled_mm, which tells by the scales what they are of."""
    check_operands(codes, values)
    assert bias is scale_result is None
    assert not use_fast_accum
    assert out_dtype is not None
    if scale.dtype == torch.float32:
        check_whole_or_rows(codes, values, scale, factors, out_dtype)
        scales = (lambda: scale.double().reshape(-1, 1), lambda: factors.double().reshape(1, -1))
        return finish(codes, values, out_dtype, lambda: read(codes) @ read(values.T).T * scales[0]() * scales[1]())
    kinds = {torch.float8_e8m0fnu: (E4M3, 32), E4M3: (PAIRS, 16)}
    assert scale.dtype in kinds, f"scales of {scale.dtype}"
    element, group = kinds[scale.dtype]
    assert codes.dtype == element
    assert out_dtype in WIDE
    return multiply_groups(codes, values, scale, factors, group, out_dtype)


def check_whole_or_rows(codes: Tensor, values: Tensor, scale: Tensor, factors: Tensor, out_dtype: torch.dtype) -> None:
    assert codes.dtype == values.dtype == E4M3
    assert factors.dtype == torch.float32
    if scale.numel() == factors.numel() == 1:
        assert out_dtype in (torch.float16, *WIDE)
        return
    assert tuple(scale.shape) == (len(codes), 1)
    assert tuple(factors.shape) == (1, values.shape[1])
    assert scale.stride() == (1, 1)
    assert factors.stride()[1] == 1
    assert scale.is_contiguous()
    assert factors.is_contiguous()
    assert out_dtype == torch.bfloat16


def multiply_scaled_by_recipe(
    codes: Tensor,
    values: Tensor,
    scale: Sequence[Tensor],
    recipe: list[int],
    swizzle: list[int],
    factors: Sequence[Tensor],
    recipe_b: list[int],
    swizzle_b: list[int],
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    contraction_dim: Sequence[int] = (),  # noqa: ARG001
    use_fast_accum: bool = False,
) -> Tensor:
    """aten::_scaled_mm_v2, by blocks of 128, or by groups of 32 of four bits."""
    check_operands(codes, values)
    assert bias is None
    assert not use_fast_accum
    assert len(scale) == len(factors) == 1
    assert out_dtype is not None
    if (recipe, recipe_b) == BLOCKS:
        assert out_dtype in WIDE
        return multiply_blocks(codes, values, scale[0], factors[0], out_dtype)
    assert (recipe, recipe_b, swizzle, swizzle_b) == (GROUPS, GROUPS, TILES, TILES)
    assert codes.dtype == PAIRS
    assert scale[0].dtype == torch.float8_e8m0fnu
    assert out_dtype == torch.bfloat16
    assert codes.is_contiguous()
    assert values.T.is_contiguous()
    return multiply_groups(codes, values, scale[0], factors[0], 32, out_dtype)


def multiply_blocks(codes: Tensor, values: Tensor, scale: Tensor, factors: Tensor, out_dtype: torch.dtype) -> Tensor:
    (tokens, columns), rows = codes.shape, values.shape[1]
    filled = -(-columns // 128 // 4) * 4
    assert codes.dtype == E4M3
    assert scale.dtype == factors.dtype == torch.float32
    assert columns % 128 == rows % 128 == tokens % 4 == 0
    assert (tuple(scale.shape), scale.stride()) == ((tokens, columns // 128), (1, tokens))
    assert (tuple(factors.shape), factors.stride()) == ((filled, rows // 128), (1, filled))
    assert offset(scale) % 16 == offset(factors) % 16 == 0

    def compute() -> Tensor:
        left = read(codes) * scale.double().repeat_interleave(128, 1)
        blocks = factors.double()[: columns // 128].repeat_interleave(128, 0).repeat_interleave(128, 1)
        return left @ (read(values.T).T * blocks)

    return finish(codes, values, out_dtype, compute)


def multiply_groups(
    codes: Tensor, values: Tensor, scale: Tensor, factors: Tensor, group: int, out_dtype: torch.dtype
) -> Tensor:
    columns = codes.shape[1] * (2 if codes.dtype == PAIRS else 1)
    groups, rows = columns // group, values.shape[1]
    assert columns % 32 == 0
    assert scale.dtype == factors.dtype
    for each, count in ((scale, len(codes)), (factors, rows)):
        assert each.is_contiguous()
        assert each.numel() == -(-count // 128) * 128 * (-(-groups // 4) * 4)
        assert offset(each) % 16 == 0

    def compute() -> Tensor:
        left = read(codes) * read_tiles(scale, len(codes), groups).repeat_interleave(group, 1)
        right = read(values.T) * read_tiles(factors, rows, groups).repeat_interleave(group, 1)
        return left @ right.T

    return finish(codes, values, out_dtype, compute)


def check_operands(codes: Tensor, values: Tensor) -> None:
    """By rows and by columns, whose distances are multiples of 16 bytes, as are where they begin and what is made."""
    assert codes.dtype == values.dtype
    assert codes.dim() == values.dim() == 2
    assert codes.shape[1] == values.shape[0]
    assert len(codes) > 0
    assert codes.shape[1] % 16 == values.shape[1] % 16 == 0
    assert codes.stride() == (codes.shape[1], 1), f"codes lie by {codes.stride()}"
    assert values.stride() == (1, values.shape[0]), f"the weight lies by {values.stride()}"
    assert offset(codes) % 16 == offset(values) % 16 == 0


def read(codes: Tensor) -> Tensor:
    """Small floats by rows, in float64."""
    if codes.dtype != PAIRS:
        return codes.double()
    pairs = codes.view(torch.uint8).int()
    nibbles = torch.stack((pairs & 15, pairs >> 4), -1).flatten(1)
    return torch.tensor(SIZES, dtype=torch.float64)[nibbles & 7] * torch.where(nibbles > 7, -1, 1)


def read_tiles(tiled: Tensor, rows: int, groups: int) -> Tensor:
    """The scale of each row and group, in float64: cuBLAS's formula of where it is, entry by entry."""
    across = -(-groups // 4)
    row, group = torch.arange(rows)[:, None], torch.arange(groups)[None]
    tile = row // 128 * across + group // 4
    place = row % 32 * 16 + row % 128 // 32 * 4 + group % 4
    return tiled.float().double().flatten()[tile * 512 + place]


def offset(tensor: Tensor) -> int:
    """In bytes, from where its memory begins, which is at many more than 16."""
    return int(tensor.storage_offset()) * tensor.itemsize


def is_real(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor)


def finish(codes: Tensor, values: Tensor, dtype: torch.dtype, compute: Callable[[], Tensor]) -> Tensor:
    """What is computed, rounded once; only its shape, where there are no values."""
    if not is_real(codes):
        return torch.empty(len(codes), values.shape[1], dtype=dtype, device=codes.device)
    return compute().to(dtype)


def pick(stack: Tensor, dim: int, index: Tensor) -> Tensor:
    """aten::index_select, which not every torch has of floats of one byte."""
    assert stack.itemsize > 1 or not stack.is_floating_point()
    return stack.index_select(dim, index)


STAND_INS: dict[str, Callable[..., Tensor]] = {
    "aten::index_select": pick,
    "aten::_int_mm": multiply_integers,
    "aten::_weight_int4pack_mm": multiply_pairs,
    "aten::_scaled_mm": multiply_scaled,
    "aten::_scaled_mm_v2": multiply_scaled_by_recipe,
}
