"""What all forms of a weight share: their tensors, and scales that rows share."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from qload.torch.kernels.inputs import Inputs


def leave_inputs() -> Inputs:
    """Inputs to which nothing is done; a class as the factory would be beyond the compiler."""
    return Inputs()


def describe_group(group: int, columns: int) -> str:
    """The columns of a row that share a scale, in words."""
    return "per channel" if group >= columns else f"in groups of {group}"


def cut_rows(shared: Tensor, start: int, stop: int) -> Tensor:
    """Some rows of scales; all, where all rows share them."""
    return shared if len(shared) == 1 else shared[start:stop]


def cast_half(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In another float of 16 bits, if it is of one."""
    return tensor.to(dtype) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def move_tensors(held: Any, device: torch.device) -> dict[str, Any]:
    """What a weight, or its inputs, has of tensors, by its fields, on a device."""
    moved: dict[str, Any] = {name: each.to(device) for name, each in list_tensors(held).items()}
    inputs = getattr(held, "inputs", None)
    return moved if inputs is None else {**moved, "inputs": replace(inputs, **move_tensors(inputs, device))}


def list_tensors(held: Any) -> dict[str, Tensor]:
    """The fields of a weight, or of what is done to inputs, that are tensors."""
    named = ((each.name, getattr(held, each.name)) for each in fields(held))
    return {name: each for name, each in named if isinstance(each, Tensor)}
