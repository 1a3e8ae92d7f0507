"""What is done to the inputs of ModelOpt's layers."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.activations import Agree, join_groups, split_groups
from qload.torch.floats import Float
from qload.torch.kernels import Inputs, Rounding
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding, choose_dtype, encode
from qload_modelopt import schemes

MX_GROUP = 32


@dataclass(frozen=True, slots=True)
class PowerRounding:
    """To floats of 4 or 8 bits, with the least power of two for each group that holds it: ModelOpt's rule for mx."""

    bits: int

    @property
    def dtype(self) -> torch.dtype:
        return choose_dtype(self.bits, is_float=True, symmetric=True)

    @property
    def group(self) -> int:
        return MX_GROUP

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.float8_e8m0fnu

    @property
    def is_static(self) -> bool:
        return False

    def __call__(self, x: Tensor, scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        steps, found = self._count(x)
        return encode(join_groups(steps, MX_GROUP, x.shape[-1]), self.dtype), found.squeeze(-1)

    def fake(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Tensor:  # noqa: ARG002
        steps, found = self._count(x)
        return join_groups(steps * found, MX_GROUP, x.shape[-1]).to(x.dtype)

    def _count(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """How many times its scale each value is, and the scales; in groups."""
        number, grouped = Float(2, 1) if self.bits == 4 else Float(4, 3), split_groups(x.float(), MX_GROUP)
        size = grouped.abs().amax(-1, keepdim=True) / number.greatest
        scale = torch.exp2(size.log2().ceil().clamp(-127, 127))
        return number.round(grouped / scale), scale


def find_inputs(layer: LayerPiece) -> Inputs:
    """The scale that inputs are multiplied by, where there is one; and how they are rounded, where they are to be."""
    factor = cast("Tensor | None", layer.pre_quant_scale) if layer.scheme.smooth else None
    rounding, scale = _find_rounding(layer) if layer.quantize_activations else (None, None)
    return Inputs(factor, rounding=rounding, scale=scale)


def _find_rounding(layer: LayerPiece) -> tuple[Rounding | None, Tensor | None]:
    inputs: schemes.Inputs = layer.scheme.inputs
    if inputs.may_have_scale:
        scale = cast("Tensor | None", layer.input_scale)
        return (_round_without_scale(inputs), None) if scale is None else _round_by_scale(layer, inputs, scale)
    match inputs:
        case schemes.Inputs.FP8_TOKEN:
            return DynamicRounding(8, is_float=True), None
        case schemes.Inputs.FP8_GROUP:
            return DynamicRounding(8, is_float=True, group=layer.scheme.size), None
        case schemes.Inputs.MXFP4:
            return PowerRounding(4), None
        case schemes.Inputs.MXFP8:
            return PowerRounding(8), None
    return None, None


def _round_by_scale(layer: LayerPiece, inputs: schemes.Inputs, scale: Tensor) -> tuple[Rounding, Tensor]:
    if inputs is schemes.Inputs.NVFP4:
        rounding = DynamicRounding(4, is_float=True, group=layer.scheme.size, scale_dtype=torch.float8_e4m3fn)
        return rounding, 1 / scale
    return StaticRounding(8, is_float=inputs is not schemes.Inputs.INT8), scale


def _round_without_scale(inputs: schemes.Inputs) -> Rounding | None:
    """Uncalibrated inputs have the scale of their tensor; a head that is tied to a table without one has none."""
    if inputs is not schemes.Inputs.FP8_TENSOR:
        return None
    return DynamicRounding(8, is_float=True, by_tensor=True)
