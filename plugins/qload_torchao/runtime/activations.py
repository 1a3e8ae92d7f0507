"""Inputs rounded as torchao's kernels would see them.

torchao multiplies by the reciprocals of scales, which it computes in the inputs' own dtype: the arithmetic here is
its, step by step. Source: `choose_qparams_affine`, `quantize_affine`, `_choose_scale_float8`, `to_mx` and
`nvfp4_quantize`. Where it makes NaN of inputs that are all zero, zero is made of them here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qload.torch.activations import E4M3_MAX, Agree, agree_on_range, join_groups, split_groups
from qload.torch.floats import Float, decode_e8m0
from qload.torch.kernels.roundings import encode
from qload_torchao.schemes import FP4, FP6_BITS, Inputs, Storage
from qload_torchao.values import TENSOR

_E2M1 = Float(2, 1)
_FLOATS = {
    "float8_e4m3fn": Float(4, 3),
    "float8_e5m2": Float(5, 2),
    **{name: Float(*bits) for name, bits in FP6_BITS.items()},
    FP4: _E2M1,
}
Steps = tuple[Tensor, Tensor]
"""How many times its scale each value is, and the scales."""


@dataclass(frozen=True, slots=True)
class TorchaoRounding:
    """As `inputs` of a weight that is stored so say. Of static int8, scale and zero-point are stored together, [2]."""

    inputs: Inputs
    storage: Storage

    @property
    def dtype(self) -> torch.dtype:
        """As `qload.torch.kernels.roundings.choose_dtype` has it."""
        if self.inputs.element == "int8":
            return torch.int8 if self.inputs.symmetric else torch.int16
        return {FP4: torch.uint8, "float8_e5m2": torch.float8_e5m2}.get(self.inputs.element, torch.float8_e4m3fn)

    @property
    def group(self) -> int | None:
        return self.inputs.block[1]

    @property
    def is_static(self) -> bool:
        return self.inputs.static and self.storage is Storage.INT8

    def __call__(self, x: Tensor, scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:
        steps, found = self._count(x, scale, agree)
        codes = encode(join_groups(steps, self.group, x.shape[-1]), self.dtype)
        return codes, found if self.group is None else found.squeeze(-1)

    def fake(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Tensor:
        steps, found = self._count(x, scale, agree)
        return join_groups((steps * found).to(x.dtype), self.group, x.shape[-1])

    def _count(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Steps:
        match self.storage:
            case Storage.INT8 if scale is not None:
                return _count_integers(x, self.inputs, scale[0], scale[1])
            case Storage.INT8:
                return _count_int8(x, self.inputs, torch.float32, torch.finfo(torch.float32).eps, agree)
            case Storage.INTX:
                return _count_int8(x, self.inputs, x.dtype, torch.finfo(x.dtype).smallest_normal, agree)
        grouped = split_groups(x, self.group)
        match self.storage:
            case Storage.MX:
                return _count_mx(grouped.float(), self.inputs)
            case Storage.NVFP4:
                return _count_nvfp4(grouped.float(), _find_whole(x, self.inputs, scale, agree))
        return _count_float8(grouped, self.inputs, agree)


def _count_int8(x: Tensor, inputs: Inputs, scale_dtype: torch.dtype, least_scale: float, agree: Agree) -> Steps:
    """With scales of its own, of that dtype, for each token or the whole of it."""
    low, high = _int8_range(inputs)
    least, greatest = _reduce(x, inputs, torch.amin), _reduce(x, inputs, torch.amax)
    least, greatest = agree_on_range(least, greatest, inputs.symmetric, agree)
    least, greatest = least.clamp_max(0), greatest.clamp_min(0)
    if inputs.symmetric:
        scale = (torch.maximum(-least, greatest) / ((high - low) / 2)).clamp_min(least_scale)
        zero = torch.zeros_like(scale)
    else:
        scale = ((greatest - least) / (high - low)).clamp_min(least_scale)
        zero = (low - (least / scale).round()).clamp(low, high)
    return _count_integers(x, inputs, scale.to(scale_dtype), zero)


def _count_integers(x: Tensor, inputs: Inputs, scale: Tensor, zero: Tensor) -> Steps:
    """With a scale and a zero-point that is in whole steps."""
    low, high = _int8_range(inputs)
    offset = zero.to(scale.dtype)
    # In the wider dtype of the two, also where the scale is a scalar, to which torch would not widen.
    wide = x.to(torch.promote_types(x.dtype, scale.dtype))
    steps = ((wide * (1.0 / scale)).round() + offset).clamp(low, high)
    return steps.to(scale.dtype) - offset, scale


def _count_float8(values: Tensor, inputs: Inputs, agree: Agree) -> Steps:
    """With scales of its own, for each token, group of features, or the whole."""
    number, size = _FLOATS[inputs.element], _reduce(values.abs(), inputs, torch.amax)
    size = agree(size) if inputs.block[1] is None else size
    if inputs.bounds != (None, None):
        size = size.clamp(*inputs.bounds)
    scale = (size / number.greatest).float()
    scale = torch.where(scale == 0, 1.0, scale)
    return number.round(values.float() / scale), scale


def _count_mx(blocks: Tensor, inputs: Inputs) -> Steps:
    """With a scale that is a power of two for each block of features."""
    number = _FLOATS[inputs.element]
    power = _choose_power(blocks.abs().amax(-1, keepdim=True), number, inputs.rounding).clamp(-127, 127)
    scale = torch.exp2(power)
    # The least scale is no normal float; values are divided by the least that is.
    divisor = torch.where(power == -127, 1.0, scale) if inputs.rounding == "RCEIL" else scale.clamp_min(2.0**-126)
    return number.round(blocks / divisor), decode_e8m0((power + 127).to(torch.uint8), torch.float32)


def _find_whole(x: Tensor, inputs: Inputs, stored: Tensor | None, agree: Agree) -> Tensor | None:
    """The scale of the scales of blocks, float32 []: of the whole of x, or the stored one."""
    whole = agree(x.abs().amax()).float() / (E4M3_MAX * _E2M1.greatest) if inputs.scaled_by_tensor else stored
    return None if whole is None else torch.where(whole == 0, 1.0, whole)


def _count_nvfp4(blocks: Tensor, whole: Tensor | None) -> Steps:
    """With E4M3 scales for each block, times that of the whole."""
    scale = blocks.abs().amax(-1, keepdim=True) / _E2M1.greatest
    scale = scale if whole is None else scale / whole
    tiny = torch.finfo(torch.float8_e4m3fn).tiny
    rounded = scale.clamp(tiny, E4M3_MAX).to(torch.float8_e4m3fn).float()
    inverse = (1.0 if whole is None else 1.0 / whole) / rounded
    return _E2M1.round(blocks * inverse), rounded if whole is None else whole * rounded


def _int8_range(inputs: Inputs) -> tuple[int, int]:
    return (-64, 63) if inputs.reduced else (-128, 127)


def _reduce(x: Tensor, inputs: Inputs, function: object) -> Tensor:
    values: Tensor = function(x) if inputs.block == TENSOR else function(x, -1, keepdim=True)  # type: ignore[operator]
    return values


def _choose_power(size: Tensor, number: Float, rounding: str) -> Tensor:
    """The exponent of each block's scale, float32."""
    if rounding == "RCEIL":
        return (size / number.greatest).log2().ceil().nan_to_num(neginf=-127.0)
    if rounding == "EVEN":
        exponent = number.round_exponent(size)
    else:
        bits = size.view(torch.int32)
        exponent = (bits >> 23) - 127
        if rounding == "CEIL":
            exponent = exponent + ((bits & 0x7FFFFF) > 0)
    return (exponent - number.greatest_power).float()
