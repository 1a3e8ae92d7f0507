"""Quantizes to fp8 as transformers' fine-grained fp8 does: by the greatest magnitude of each block, or of the tensor.

Source of the arithmetic: `Fp8Quantize` of transformers' `integrations/finegrained_fp8.py`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.activations import E4M3_MAX
from qload.torch.arithmetic import scale_blocks
from qload.torch.strips import quantize_by_strips
from qload_fp8 import Fp8Scheme


def quantize(weight: Tensor, scheme: Fp8Scheme) -> dict[str, Tensor]:
    """The weight by blocks or as a whole, with what it is to be multiplied by, or divided, in float32."""
    if scheme.inputs == "static":
        raise ValueError("the scales of static inputs need calibration data")
    if scheme.block is None:
        return _quantize(weight, scheme, *weight.shape)
    height, width = scheme.block
    return quantize_by_strips(weight, height, lambda strip: _quantize(strip, scheme, height, width))


def _quantize(weight: Tensor, scheme: Fp8Scheme, height: int, width: int) -> dict[str, Tensor]:
    factor = _choose_factors(weight.float(), height, width)
    scaled = scale_blocks(weight, factor, (height, width)).clamp_(-E4M3_MAX, E4M3_MAX)
    name, scale = ("weight_scale", 1 / factor[0, 0]) if scheme.block is None else ("weight_scale_inv", 1 / factor)
    return {
        "weight_quantized": scaled.to(torch.float8_e4m3fn),
        name: factor if scheme.divides else scale,
    }


def _choose_factors(weight: Tensor, height: int, width: int) -> Tensor:
    """What brings the greatest magnitude of each block to that of E4M3; a block of zeros stays as it is."""
    rows, columns = weight.shape
    padded = F.pad(weight.abs(), (0, -columns % width, 0, -rows % height))
    greatest = padded.unflatten(1, (-1, width)).unflatten(0, (-1, height)).amax((1, 3))
    return torch.where(greatest > 0, E4M3_MAX / torch.where(greatest > 0, greatest, 1), 1)
