"""Inputs rounded to what Quark's kernels would see.

Source: Quark's observers (`calculate_int_quant_params`, `get_scale`, `even_round`) and `DynamicScaledQuantizer`.
A dynamic scale for each channel of the inputs is one for each token, as vLLM reads it.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.activations import Agree, join_groups, split_groups
from qload.torch.floats import Float
from qload.torch.kernels import Rounding
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding, encode
from qload_quark.numbers import Number
from qload_quark.schemes import Extent, Quantizer

_KNOWN_FLOATS = ("fp8_e4m3", "fp4")
"""Those that the shared arithmetic rounds to."""


@dataclass(frozen=True, slots=True)
class QuarkRounding:
    """To floats with powers of two for scales, or to those that the shared arithmetic does not know."""

    inputs: Quantizer

    @property
    def dtype(self) -> torch.dtype:
        """As `qload.torch.kernels.roundings.choose_dtype` has it."""
        return {"fp4": torch.uint8, "fp8_e5m2": torch.float8_e5m2}.get(self.inputs.dtype, torch.float8_e4m3fn)

    @property
    def group(self) -> int | None:
        return self.inputs.group

    @property
    def scale_dtype(self) -> torch.dtype | None:
        return None if self.inputs.scales is None or self.is_static else torch.float8_e8m0fnu

    @property
    def is_static(self) -> bool:
        return not self.inputs.dynamic

    def __call__(self, x: Tensor, scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:
        steps, found = self._count(split_groups(x.float(), self.group), scale, agree)
        codes = encode(join_groups(steps, self.group, x.shape[-1]), self.dtype)
        return codes, found if self.group is None else found.squeeze(-1)

    def fake(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Tensor:
        steps, found = self._count(split_groups(x.float(), self.group), scale, agree)
        return join_groups((steps * found).to(x.dtype), self.group, x.shape[-1])

    def _count(self, values: Tensor, stored: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:
        """How many times its scale each value is, and the scales, float32."""
        scale = self._choose_scale(values.abs(), agree) if stored is None else stored.float()
        return _float(self.inputs.number).round(values / scale), scale

    def _choose_scale(self, sizes: Tensor, agree: Agree) -> Tensor:
        """Powers of two for groups; or what takes the greatest of a group, token or tensor to the greatest float."""
        number = self.inputs.number
        size = sizes.amax() if self.inputs.extent is Extent.TENSOR else sizes.amax(-1, keepdim=True)
        if self.inputs.scales is not None:
            return choose_power(size, number, self.inputs.mode)
        size = size if self.group is not None else agree(size)
        scale = size / _float(number).greatest
        return torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)


def quantize_activations(layer: LayerPiece, name: str, inputs: Quantizer, x: Tensor) -> Tensor:
    """x rounded as the scheme of the inputs says, or whatever the name of their scale says it is, in its own dtype."""
    rounding, scale = find_rounding(layer, name, inputs)
    return rounding.fake(x, scale, layer.agree)


def find_rounding(layer: LayerPiece, name: str, inputs: Quantizer) -> tuple[Rounding, Tensor | None]:
    """How they are rounded, and the scale that is stored for that."""
    number = inputs.number
    if inputs.dynamic:
        is_scaled = name == "input" and layer.scheme.inputs_scaled
        scale_dtype = torch.float8_e4m3fn if is_scaled else None
        return _round_dynamic(inputs, scale_dtype), 1 / layer.input_scale_2.float() if is_scaled else None
    scale = cast("Tensor", getattr(layer, f"{name}_scale"))
    if number.is_float:
        known = inputs.dtype in _KNOWN_FLOATS
        return StaticRounding(number.bits, is_float=True) if known else QuarkRounding(inputs), scale
    zero = cast("Tensor | None", getattr(layer, f"{name}_zero_point"))
    if zero is None:
        return StaticRounding(number.bits, is_float=False), scale
    # Unsigned values are signed ones half their range higher.
    zero = zero.to(scale.dtype) - (0 if number.signed else 1 << (number.bits - 1))
    return StaticRounding(number.bits, is_float=False, has_zero=True), torch.stack((scale, zero))


def _round_dynamic(inputs: Quantizer, scale_dtype: torch.dtype | None) -> Rounding:
    number = inputs.number
    if inputs.scales is not None or (number.is_float and inputs.dtype not in _KNOWN_FLOATS):
        return QuarkRounding(inputs)
    by_tensor = inputs.extent is Extent.TENSOR
    return DynamicRounding(number.bits, number.is_float, inputs.symmetric, inputs.group, by_tensor, scale_dtype)


def choose_power(greatest: Tensor, number: Number, mode: str) -> Tensor:
    """The power of two by which values of up to `greatest`, float32, are divided before they are rounded.

    `even` rounds `greatest` to the mantissa's bits before it takes its exponent, `floor` and `ceil` its logarithm.
    """
    if mode == "even":
        exponent = _float(number).round_exponent(greatest).float()
    else:
        logarithm = greatest.clamp_min(torch.finfo(torch.float32).tiny).log2()
        exponent = logarithm.floor() if mode == "floor" else logarithm.ceil()
    return torch.exp2((exponent - _float(number).greatest_power).clamp(-127, 127))


def _float(number: Number) -> Float:
    return Float(number.exponent, number.mantissa)
