"""torch's scaled products of small floats in groups of columns, on GPUs that multiply these as they are."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from qload.torch.floats import encode_e8m0
from qload.torch.kernels.coding import Coding
from qload.torch.kernels.gpus import miss_capability, miss_cuda
from qload.torch.kernels.inputs import Inputs, ScaledRounding
from qload.torch.kernels.kernel import Blank, Case
from qload.torch.kernels.operands import count_tiled, tile_scales, untile_scales
from qload.torch.kernels.weights import FloatWeight, Weight, list_tensors

_ROWS, _COLUMNS = 16, 32
"""What rows and columns are multiples of: cuBLAS's operands begin at 16 bytes, also where two values share one."""
_ALIGNMENT = 16
_PAIRS = torch.float4_e2m1fn_x2
_POWERS_OF_FOUR_BITS = 3, 1
"""torch.nn.functional.ScalingType.BlockWise1x32 and SwizzleType.SWIZZLE_32_4_4, as its operators have them."""


class Grouped(Coding):
    """Multiplies codes of x in groups of features by a weight in the same format, with the scales of both in tiles.

    The values are held as they are given, and without a copy where they begin at 16 bytes; the scales as `tile_scales`
    has them. It serves weights alone whose method rounds inputs to that format: other inputs would lose by it.
    """

    devices = "CUDA"
    precision = "codes of inputs and weights are multiplied as they are, sums are of float32"
    knows = frozenset({"dtype", "over"})
    codes: ClassVar[torch.dtype]
    """What the codes of the weight, and of inputs, are stored as."""
    scales: ClassVar[torch.dtype]
    """Of both."""
    group: ClassVar[int]
    """The columns that share a scale."""

    @classmethod
    def serves(cls, weight: Weight, case: Case) -> bool:
        rounding = weight.inputs.rounding
        if case.device.type != "cuda" or not isinstance(weight, FloatWeight) or rounding is None:
            return False
        is_ours = weight.values.dtype == rounding.dtype == cls.codes and weight.scale.dtype == cls.scales
        return is_ours and weight.block == (1, cls.group)

    @classmethod
    def refuse(cls, weight: Weight, case: Case) -> str | None:
        if not isinstance(weight, FloatWeight):
            return "it multiplies by floats"
        rounding = weight.inputs.rounding
        found = (rounding.scale_dtype, rounding.group) if isinstance(rounding, ScaledRounding) else None
        if found != (cls.scales, cls.group):
            return f"its inputs have no scale of {_name(cls.scales)} for every {cls.group} features"
        if weight.rows % _ROWS or weight.columns % _COLUMNS:
            sizes = f"{weight.rows} output and {weight.columns} input features"
            return f"{sizes} are no multiples of {_ROWS} and {_COLUMNS}"
        if weight.divides:
            return "its scales divide"
        return cls.refuse_whole(weight) or cls.miss(case.device)

    @classmethod
    def refuse_whole(cls, weight: FloatWeight) -> str | None:
        """Why it cannot multiply by numbers that belong to all of the weight, or of the inputs; None if it can."""
        is_whole = weight.whole is not None or weight.inputs.scale is not None
        return "all of its scales are times another" if is_whole else None

    @classmethod
    def miss(cls, device: torch.device) -> str | None:
        """Why it does not run there; None if it does."""
        return miss_capability(device, (10, 0)) or miss_cuda((12, 8))

    @classmethod
    def declare(cls, weight: Weight, case: Case) -> Mapping[str, Blank]:
        held = {name: Blank(tuple(each.shape), each.dtype) for name, each in list_tensors(weight).items()}
        count = count_tiled(weight.rows, weight.columns // cls.group)
        return held | {"scale": Blank((count,), weight.scale.dtype)}

    @classmethod
    def adopt(cls, weight: Weight) -> Mapping[str, Tensor]:
        values = weight.values
        is_aligned = values.storage_offset() * values.itemsize % _ALIGNMENT == 0
        return {"values": values.detach()} if is_aligned and values.is_contiguous() else {}

    @classmethod
    def fill(cls, weight: Weight, into: Mapping[str, Tensor]) -> None:
        into["scale"].copy_(tile_scales(weight.scale))
        for name, each in list_tensors(weight).items():
            if name != "scale" and not into[name].is_set_to(each):
                into[name].copy_(each)

    def settle(self, weight: Weight, case: Case) -> None:
        blank: dict[str, Any] = {name: each.new_empty(0) for name, each in list_tensors(weight).items()}
        self._form: Weight = replace(weight, **blank, inputs=Inputs())

    def restore(self, held: Mapping[str, Tensor]) -> Weight:
        found: dict[str, Any] = {**held, "scale": untile_scales(held["scale"], self.rows, self.columns // self.group)}
        return replace(self._form, **found)


class Float4(Grouped):
    """Multiplies codes of x, E2M1 in groups of 16 and E4M3 scales, by such a weight; scales of all of either come last.

    The scale of all of the weight, and that of the inputs, multiply the sums of float32: given to the operator, they
    would go through one number for all GPUs and streams (`get_user_alpha_ptr` in ATen's cuda/detail).
    Source: ATen's native/cuda/ScaledBlas.cpp, `_scaled_mm_out_cuda`, and `scaled_gemm` in cuda/CUDABlas.cpp: x by rows
    and the weight by columns, which are multiples of 32; scales in tiles, contiguous; compute capability 10.0, CUDA
    12.8. That sums may be given in float32 is what the tests of pytorch/ao hold.
    """

    label = "scaled_mm_1x16"
    codes, scales, group = torch.uint8, torch.float8_e4m3fn, 16

    @classmethod
    def refuse_whole(cls, weight: FloatWeight) -> str | None:
        scale = weight.inputs.scale
        if scale is None or (scale.dtype == torch.float32 and scale.numel() == 1):
            return None
        return "the scale of its inputs is not one of float32"

    def multiply_codes(
        self, codes: Tensor, scale: Tensor, held: Mapping[str, Tensor], inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        whole = inputs.scale.reshape(()) if inputs.scale is not None else None
        # Divided by the whole, and rounded, they are E4M3 again once they are multiplied by it.
        steps = (scale if whole is None else scale * whole).to(self.scales)
        sums = _multiply(codes.view(_PAIRS), steps, held["values"].view(_PAIRS), held["scale"], torch.float32)
        factor = self._find_factor(held, whole)
        return (sums if factor is None else sums.mul_(factor)).to(dtype)

    def _find_factor(self, held: Mapping[str, Tensor], whole: Tensor | None) -> Tensor | None:
        """What the sums are times, []: the scale of all of the weight, over that of the inputs."""
        if "whole" not in held:
            return None if whole is None else whole.reciprocal()
        theirs = held["whole"].float().reshape(())
        if isinstance(self._form, FloatWeight) and self._form.over:
            return (theirs if whole is None else theirs * whole).reciprocal()
        return theirs if whole is None else theirs / whole


class PowerFloat8(Grouped):
    """Multiplies codes of x, E4M3 in groups of 32 with powers of two for scales, by such a weight.

    Source: ATen's native/cuda/ScaledBlas.cpp, `_scaled_mm_out_cuda`, and `get_scale_mode` in cuda/CUDABlas.cpp: as
    for `Float4`. On compute capability 12.x it is the one layout that cuBLAS has (pytorch/pytorch#198126).
    """

    label = "scaled_mm_1x32"
    codes, scales, group = torch.float8_e4m3fn, torch.float8_e8m0fnu, 32

    def multiply_codes(
        self, codes: Tensor, scale: Tensor, held: Mapping[str, Tensor], inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        wide = dtype if dtype == torch.bfloat16 else torch.float32
        return _multiply(codes, encode_e8m0(scale), held["values"], held["scale"], wide).to(dtype)


class PowerFloat4(Grouped):
    """Multiplies codes of x, E2M1 in groups of 32 with powers of two for scales, by such a weight.

    Source: ATen's native/cuda/ScaledBlas.cpp, `f4f4bf16`, in which cuBLAS has no part: a build with MSLK, or
    FBGEMM's kernels before it, compute capability 10.x, sums in bfloat16. Compilers take the weight for dense, as
    torch 2.13 declares half of the scales to them (pytorch/pytorch#172627).
    """

    label = "scaled_mm_1x32_e2m1"
    precision = "codes of inputs and weights are multiplied as they are, sums are rounded to bfloat16"
    codes, scales, group = torch.uint8, torch.float8_e8m0fnu, 32

    @classmethod
    def miss(cls, device: torch.device) -> str | None:
        built = torch.__config__.show()
        if "USE_MSLK" not in built and "USE_FBGEMM_GENAI" not in built:
            return "torch is built without MSLK"
        return miss_capability(device, (10, 0), (10, 9)) or miss_cuda((12, 8))

    def is_dense(self, x: Tensor, held: Mapping[str, Tensor], inputs: Inputs) -> bool:
        return super().is_dense(x, held, inputs) or torch.compiler.is_compiling()

    def multiply_codes(
        self, codes: Tensor, scale: Tensor, held: Mapping[str, Tensor], inputs: Inputs, dtype: torch.dtype
    ) -> Tensor:
        kind, tiles = _POWERS_OF_FOUR_BITS
        ours, theirs = tile_scales(encode_e8m0(scale)), held["scale"]
        weight = held["values"].view(_PAIRS).t()
        y: Tensor = torch.ops.aten._scaled_mm_v2(
            codes.view(_PAIRS), weight, [ours], [kind], [tiles], [theirs], [kind], [tiles], None, torch.bfloat16
        )
        return y.to(dtype)


def _multiply(codes: Tensor, scale: Tensor, values: Tensor, tiled: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [tokens, n] of scale [tokens, groups] by values [rows, n] of scales in tiles, into [tokens, rows]."""
    return torch._scaled_mm(codes, values.t(), tile_scales(scale), tiled, out_dtype=dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
