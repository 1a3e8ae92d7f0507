"""torch's scaled products of eight-bit floats, on GPUs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from qload.torch.kernels.coding import Coding
from qload.torch.kernels.gpus import miss_capability, miss_cuda, takes_scales_of_rows
from qload.torch.kernels.grouped import ScaledGroups
from qload.torch.kernels.inputs import Inputs, Rounding
from qload.torch.kernels.kernel import Blank, Case
from qload.torch.kernels.operands import lay_by_rows
from qload.torch.kernels.weights import FloatWeight, Weight

E4M3 = torch.float8_e4m3fn
_UNIT = 16
"""Of rows and columns: what cuBLAS takes, and torch asks for."""
_BLOCK = 128
_RECIPES = (4, 5)
"""torch.nn.functional.ScalingType.BlockWise1x128 and BlockWise128x128, as its operators have them."""


class Float8(ScaledGroups):
    """Multiplies codes of x, E4M3, by weights in E4M3: with a scale for each row of either, or for all of it.

    Source: ATen's native/cuda/ScaledBlas.cpp, `_scaled_mm_out_cuda`: compute capability 8.9; x by rows and the weight
    by columns; rows and columns by 16; scales in float32, both [] or [tokens, 1] and [1, rows]. Scales of rows give
    bfloat16 alone before torch 2.13, and not on every GPU (`takes_scales_of_rows`); else the codes are multiplied with
    scales of 1 into float32.
    """

    label = "scaled_mm"
    devices = "CUDA"
    precision = "codes of inputs and weights are multiplied as they are, sums are of float32"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        rounding = _find_rounding(weight)
        return case.device.type == "cuda" and rounding is not None and rounding.group is None

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if not isinstance(weight, FloatWeight):
            return "it multiplies by floats"
        if weight.block[1] < weight.columns or 1 < weight.block[0] < weight.rows:
            return f"{weight.label} has more scales than one for each output feature"
        return _refuse_any(weight) or miss_capability(case.device, (8, 9))

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        scales = 1 if weight.scale.numel() == 1 else weight.rows
        return {
            "values": Blank((weight.rows, weight.columns), weight.values.dtype),
            "scale": Blank((1, scales), torch.float32),
        }

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        into["values"].copy_(weight.values)
        into["scale"].copy_(weight.scale.reshape(1, -1))

    def settle(self, weight: Weight, case: Case) -> None:
        if isinstance(weight, FloatWeight):
            self._element, self._block = weight.element, weight.block
            self._scale, self._shape = weight.scale.dtype, tuple(weight.scale.shape)
        self._by_rows = takes_scales_of_rows(case.device)

    def restore(self, held: Mapping[str, Tensor]) -> FloatWeight:
        scale = held["scale"].to(self._scale).reshape(self._shape)
        return FloatWeight(held["values"], self._element, self.columns, scale, self._block)

    def multiply_codes(
        self, codes: Tensor, scale: Tensor, held: Mapping[str, Tensor], inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        return multiply_scaled(codes, scale.float(), held["values"], held["scale"], dtype, by_rows=self._by_rows)


class BlockFloat8(Coding):
    """Multiplies codes of x in groups of 128 features by E4M3 weights in blocks of 128 by 128.

    Scales of the weight are float32 [rows / 128, columns / 128], the latter filled up to a multiple of 4: with other
    strides cuBLAS answers wrongly, and says nothing. Those of x are stored by groups.
    Source: ATen's native/cuda/ScaledBlas.cpp, `_scaled_block1x128_block128x128` and `_check_deepseek_support`: compute
    capability 9.x, CUDA 12.9; pytorch/pytorch#166752 of the strides. Tokens are filled up to a multiple of 4, so that
    the groups of x begin at 16 bytes.
    """

    label = "scaled_mm_128x128"
    tokens = 4
    devices = "CUDA"
    precision = "codes of inputs and weights are multiplied as they are, sums are of float32"

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        rounding = _find_rounding(weight)
        return case.device.type == "cuda" and rounding is not None and rounding.group is not None

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if not isinstance(weight, FloatWeight):
            return "it multiplies by floats"
        rounding = weight.inputs.rounding
        if weight.block != (_BLOCK, _BLOCK) or rounding is None or rounding.group != _BLOCK:
            return f"{weight.label} and inputs in groups of {rounding and rounding.group} are not of {_BLOCK}"
        if weight.rows % _BLOCK or weight.columns % _BLOCK:
            return f"{weight.rows} output and {weight.columns} input features are no multiples of {_BLOCK}"
        return _refuse_any(weight) or miss_capability(case.device, (9, 0), (9, 9)) or miss_cuda((12, 9))

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        groups = -(-weight.columns // _BLOCK // 4) * 4
        return {
            "values": Blank((weight.rows, weight.columns), weight.values.dtype),
            "scale": Blank((weight.rows // _BLOCK, groups), torch.float32),
        }

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        into["values"].copy_(weight.values)
        into["scale"].fill_(1)
        into["scale"].narrow(1, 0, weight.scale.shape[1]).copy_(weight.scale)

    def settle(self, weight: Weight, case: Case) -> None:
        if isinstance(weight, FloatWeight):
            self._element, self._scale = weight.element, weight.scale.dtype

    def restore(self, held: Mapping[str, Tensor]) -> FloatWeight:
        scale = held["scale"].narrow(1, 0, self.columns // _BLOCK).to(self._scale)
        return FloatWeight(held["values"], self._element, self.columns, scale, (_BLOCK, _BLOCK))

    def multiply_codes(
        self, codes: Tensor, scale: Tensor, held: Mapping[str, Tensor], inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        return multiply_blocks(codes, scale.float(), held["values"], held["scale"], dtype)


def multiply_blocks(codes: Tensor, scale: Tensor, values: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [tokens, columns] of `scale` [tokens, columns / 128] by values [rows, columns] of `factors`.

    Into [tokens, rows] of `dtype`; factors are [rows / 128, a multiple of 4], and all scales of float32. Sums are given
    in bfloat16 or float32, which torch tests.
    """
    by_groups = scale.t().clone(memory_format=torch.contiguous_format).t()
    ours, theirs = _RECIPES
    wide = dtype if dtype == torch.bfloat16 else torch.float32
    y: Tensor = torch.ops.aten._scaled_mm_v2(
        lay_by_rows(codes), values.t(), [by_groups], [ours], [], [factors.t()], [theirs], [], None, wide
    )
    return y.to(dtype)


def multiply_scaled(
    codes: Tensor, scale: Tensor, values: Tensor, factors: Tensor, dtype: torch.dtype, *, by_rows: bool = True
) -> Tensor:
    """codes [tokens, columns] of `scale` by values [rows, columns] of `factors`, into [tokens, rows] of `dtype`.

    scale is one number, or [tokens, 1]; factors [1, 1] or [1, rows]; all of float32. Without `by_rows`, scales of rows
    are not given to the operator.
    """
    codes, weight = lay_by_rows(codes), values.t()
    if scale.numel() == factors.numel() == 1:
        return torch._scaled_mm(codes, weight, scale.reshape(()), factors.reshape(()), out_dtype=dtype)
    if by_rows and dtype == torch.bfloat16:
        # Copied also where it is one number, whose strides would be none.
        scale = scale.expand(len(codes), 1).clone(memory_format=torch.contiguous_format)
        factors = factors.expand(1, len(values)).clone(memory_format=torch.contiguous_format)
        return torch._scaled_mm(codes, weight, scale, factors, out_dtype=dtype)
    one = torch.ones((), device=codes.device)
    sums = torch._scaled_mm(codes, weight, one, one, out_dtype=torch.float32)
    return sums.mul_(scale).mul_(factors).to(dtype)


def _find_rounding(weight: Weight) -> Rounding | None:
    """How inputs are made eight-bit floats for a weight of such; None where they are not."""
    rounding = weight.inputs.rounding
    if not isinstance(weight, FloatWeight) or not _is_small(weight.values.dtype):
        return None
    return rounding if rounding is not None and _is_small(rounding.dtype) else None


def _is_small(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize == 1


def _refuse_any(weight: FloatWeight) -> str | None:
    """What no scaled product can do."""
    rounding = weight.inputs.rounding
    if weight.values.dtype != E4M3 or rounding is None or rounding.dtype != E4M3:
        return f"{weight.element} is not E4M3 without infinities, or its inputs are not"
    if weight.rows % _UNIT or weight.columns % _UNIT:
        return f"{weight.rows} output and {weight.columns} input features are no multiples of {_UNIT}"
    if weight.divides or weight.whole is not None:
        return "its scales are not what sums are times"
    return None
