"""Quantizes as quanto does: rows by their greatest magnitude, or groups by their least and greatest value.

Source of the arithmetic: optimum-quanto's `AbsmaxOptimizer`, `MaxOptimizer`, `quantize_symmetric`, `quantize_affine`
and `pack_weights`, in the weight's own dtype.
"""

import torch
from torch import Tensor

from qload.torch.arithmetic import pack_striped
from qload.torch.dtypes import torch_dtype
from qload.torch.strips import quantize_by_strips
from qload_quanto import BITS, DTYPES, QuantoScheme, choose_group


def quantize(weight: Tensor, scheme: QuantoScheme) -> dict[str, Tensor]:
    """The stored tensors of a frozen weight. Raises ValueError where activations are quantized, too."""
    if scheme.activations is not None:
        raise ValueError("the scales of inputs and outputs need calibration data")
    kind = str(scheme.weights)
    if kind not in BITS:
        return quantize_by_strips(weight, 1, lambda strip: _quantize_rows(strip, kind))
    bits = BITS[kind]
    groups = weight.reshape(-1, choose_group(weight.shape[1]) or weight.shape[1])
    made = quantize_by_strips(groups, 1, lambda strip: _quantize_groups(strip, bits))
    return {**made, "weight_data": pack_striped(made["weight_data"], range(0, 8, bits), torch.uint8)}


def read_limits(kind: str) -> tuple[float, float]:
    """The least and the greatest value of a type."""
    dtype = torch_dtype(DTYPES[kind])
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return info.min, info.max


def _quantize_rows(rows: Tensor, kind: str) -> dict[str, Tensor]:
    """A row of zeros has no scale, and stays zero."""
    dtype, (least, greatest) = torch_dtype(DTYPES[kind]), read_limits(kind)
    scale = rows.abs().amax(1, keepdim=True) / greatest
    values = rows / scale.masked_fill(scale == 0, 1)
    values = values if dtype.is_floating_point else values.round_()
    return {"weight_data": values.clamp_(least, greatest).to(dtype), "weight_scale": scale}


def _quantize_groups(groups: Tensor, bits: int) -> dict[str, Tensor]:
    """A group of one value alone has no scale, and is its shift."""
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    steps = (1 << bits) - 1
    scale = (high - low) / steps
    values = ((groups - low) / scale.masked_fill(scale == 0, 1)).round_().clamp_(0, steps)
    return {"weight_data": values.to(torch.uint8), "weight_scale": scale, "weight_shift": -low}
