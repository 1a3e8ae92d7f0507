"""torch's grouped products: rows that are sorted by expert, each times the weight of its own, all in one operator.

What they ask for is in ATen's native/GroupedMMUtils.h, native/cuda/GroupedBlas.cpp, GroupMM.cu and ScaledGroupMM.cu.
Rows beyond the last end are not computed: what is there is what the memory had.
"""

import platform

import torch
from torch import Tensor

from qload.torch.activations import Agree, keep
from qload.torch.kernels.coding import Coding
from qload.torch.kernels.gpus import miss_capability
from qload.torch.kernels.groups import Groups
from qload.torch.kernels.inputs import Rounding
from qload.torch.kernels.operands import lay_by_rows

GROUPED = "grouped_mm"
SCALED = "scaled_grouped_mm"
_MOST_EXPERTS = 1023
"""Each has a thread of one block."""
_ALIGNMENT = 16
"""Of strides, in bytes."""
_ON_CPU = (torch.bfloat16, torch.float16, torch.float32)
_FEW = 8
"""Rows for each expert. Measured on a CPU: the operator takes about 0.9 of a loop's time up to here, and 1.2 at 128."""
_SCALE = "input_scale"


def refuse_grouped(weight: Tensor) -> str | None:
    """Why `multiply_grouped` does not serve a weight [experts, rows, columns]; None if it does.

    On GPUs of other capabilities torch multiplies by one expert after another, and waits for the ends.
    """
    experts, rows, columns = weight.shape
    if weight.dtype not in (_ON_CPU if weight.device.type == "cpu" else _ON_CPU[:1]):
        return f"it does not multiply {str(weight.dtype).removeprefix('torch.')}"
    unit = _ALIGNMENT // weight.itemsize
    if rows % unit or columns % unit or not weight.is_contiguous():
        return f"{rows} output and {columns} input features are no multiples of {unit}, one after another"
    if weight.device.type == "cpu":
        return _refuse_count(experts)
    if weight.device.type != "cuda":
        return f"it is not for {weight.device.type}"
    return _refuse_count(experts) or _miss_gpu(weight.device, (10, 9))


def is_ahead(x: Tensor, rows: int, experts: int) -> bool:
    """Whether `rows` of x's kind are multiplied by `experts` at once sooner than by one after another.

    On CPUs the operator is a loop itself. It is ahead for few rows, and in compiled code, which cannot ask which
    experts are chosen; compilers know its bfloat16 alone (torch/_meta_registrations.py, `_meta_grouped_mm_common`).
    """
    if x.device.type != "cpu":
        return True
    return x.dtype == torch.bfloat16 if torch.compiler.is_compiling() else rows <= _FEW * experts


def multiply_grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x [rows, columns] times a weight [experts, outputs, columns], each by its own expert, into [rows, outputs]."""
    return torch._grouped_mm(lay_by_rows(x), weight.transpose(1, 2), offs=ends)


class ScaledGroups(Coding):
    """Of a kernel that holds E4M3 `values` and a `scale` for each row of them, or for all: grouped products of codes.

    Each row of x has a scale of its own, found in it, or stored for its expert. ATen's `_scaled_grouped_mm_cuda` asks
    for capability 9.x (ScaledGroupMM.cu is compiled for no other), rows and columns by 16, and scales of float32,
    [tokens] and [experts, rows]; what comes out is of bfloat16.
    """

    grouped = SCALED

    def refuse_groups(self, dtype: torch.dtype) -> str | None:
        """Why groups of x in that dtype are not multiplied; None if they are."""
        if dtype != torch.bfloat16:
            return f"it gives bfloat16, not {str(dtype).removeprefix('torch.')}"
        if self.experts is None or self.rounding is None or set(self._arranged) - {_SCALE}:
            return "inputs are arranged for each expert, or not rounded"
        scale = self.get_buffer(_SCALE) if _SCALE in self._arranged else None
        if not _is_by_rows(self.rounding, scale, self.columns):
            return "inputs have other scales than one for each token"
        device = self.get_buffer("values").device
        return _refuse_count(self.experts) or _miss_gpu(device, (9, 9))

    def multiply_groups(self, x: Tensor, groups: Groups, agree: Agree) -> Tensor:
        inputs = self.inputs()
        if inputs.rounding is None:
            raise ValueError("groups are multiplied with inputs that are rounded")
        scale = None if inputs.scale is None else inputs.scale.reshape(-1, 1).index_select(0, groups.experts)
        codes, found = inputs.rounding(x, scale, agree)
        values, factors = self.get_buffer("values"), self.get_buffer("scale")
        return multiply_scaled_groups(codes, found.float(), values, factors, groups.ends)


def multiply_scaled_groups(codes: Tensor, scale: Tensor, values: Tensor, factors: Tensor, ends: Tensor) -> Tensor:
    """codes [rows, columns] of `scale` [rows, 1] by values [experts, outputs, columns] of `factors`, in bfloat16.

    factors are [experts, 1, outputs] or [experts, 1, 1]; all scales of float32.
    """
    factors = factors.squeeze(1).expand(values.shape[:2]).clone(memory_format=torch.contiguous_format)
    return torch._scaled_grouped_mm(
        lay_by_rows(codes),
        values.transpose(1, 2),
        scale.flatten().contiguous(),
        factors,
        offs=ends,
        out_dtype=torch.bfloat16,
    )


def _is_by_rows(rounding: Rounding, scale: Tensor | None, columns: int) -> bool:
    """Whether each row is rounded by a scale of its own, whatever the others are: tried on two."""
    if rounding.is_static is (scale is None) or (scale is not None and scale.numel() != len(scale)):
        return False
    stored = None if scale is None else torch.ones(2, 1, dtype=scale.dtype)
    return tuple(rounding(torch.ones(2, columns), stored, keep)[1].shape) == (2, 1)


def _miss_gpu(device: torch.device, most: tuple[int, int]) -> str | None:
    """Why CUTLASS' kernels, which torch builds for Hopper on, do not run there; None if they do."""
    if device.type == "meta":
        return "it is not for meta"
    if platform.system() == "Windows":
        return "torch does not build it for Windows"
    return miss_capability(device, (9, 0), most)


def _refuse_count(experts: int) -> str | None:
    return None if 0 < experts <= _MOST_EXPERTS else f"it multiplies by 1 to {_MOST_EXPERTS} experts, not {experts}"
