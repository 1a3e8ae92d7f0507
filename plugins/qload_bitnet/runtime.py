"""Computes with BitNet's tensors, as transformers' `BitLinear` and `AutoBitLinear` do."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.activations import Agree
from qload.torch.arithmetic import find_rows, take_striped, unpack_striped
from qload.torch.kernels import Inputs, IntegerWeight, Weight
from qload_bitnet import BITS, BitNetScheme, Sense

_PLACES = range(0, 8, BITS)
"""Of the quarters of the rows in a byte."""
_LEAST = 1e-5
"""The least size of values that a scale is made for."""


@dataclass(frozen=True, slots=True)
class BitNetRounding:
    """To int8: times 127 over the greatest size of each token's values, and turned back by dividing."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8

    @property
    def group(self) -> None:
        return None

    @property
    def is_static(self) -> bool:
        return False

    def __call__(self, x: Tensor, scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        found = _choose_scale(x.float(), agree)
        return _round(x.float(), found).to(torch.int8), 1 / found

    def fake(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Tensor:  # noqa: ARG002
        found = _choose_scale(x.float(), agree)
        return (_round(x.float(), found) / found).to(x.dtype)


def qload_dequantize(layer: LayerPiece) -> Tensor:
    if layer.scheme.sense is Sense.ONLINE:
        return _make_ternary(layer.weight_latent)
    return _scale(layer, _unpack(layer))


def qload_weight(layer: LayerPiece) -> Weight | str:
    if layer.scheme.sense is Sense.ONLINE:
        return "its weight is made ternary while computing"
    if layer.scheme.norm_epsilon is not None:
        return "its inputs are normed first"
    scale = layer.weight_scale.view(1, 1)
    # Dividing -1, 0 and 1 by a scale, and multiplying them by its reciprocal, are the same.
    scale = 1 / scale if layer.scheme.sense is Sense.DIVIDES else scale
    inputs = Inputs(rounding=BitNetRounding()) if layer.quantize_activations else Inputs()
    return IntegerWeight(_unpack(layer), BITS, layer.in_features, scale, 1, layer.in_features, inputs)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    if layer.scheme.sense is Sense.ONLINE:
        return qload_dequantize(layer)[ids]
    return _scale(layer, take_striped(layer.weight_packed, BITS, _PLACES, find_rows(ids, layer.in_features)))


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    scheme: BitNetScheme = layer.scheme
    if scheme.norm_epsilon is not None:
        x = _norm(x, layer.rms_norm_weight, scheme.norm_epsilon)
    if scheme.sense is Sense.DIVIDES:
        return _divide_product(layer, x, bias)
    if layer.quantize_activations:
        x = BitNetRounding().fake(x, None, layer.agree)
    if scheme.sense is Sense.ONLINE:
        return F.linear(x, _make_ternary(layer.weight_latent).to(x.dtype), bias)
    return _add((_multiply(layer, x) * layer.weight_scale).to(x.dtype), bias)


def _divide_product(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    """BitLinear's way: both sides are integers, and the product is divided by both scales.

    It is compiled, and so computes in float32 between what it stores, of which the scale is one.
    """
    if not layer.quantize_activations:
        return _add((_multiply(layer, x) / layer.weight_scale).to(x.dtype), bias)
    # Scales of small inputs, and sums of integers, are beyond float16.
    dtype = torch.float32 if x.dtype == torch.float16 else x.dtype
    scale = _choose_scale(x.float(), layer.agree).to(dtype).float()
    y = _multiply(layer, _round(x.float(), scale).to(dtype)).float() / (layer.weight_scale.float() * scale)
    return _add(y.to(x.dtype), bias)


def _multiply(layer: LayerPiece, x: Tensor) -> Tensor:
    """x and the weights of -1, 0 and 1: the scale is left to the product, which rounds once."""
    return F.linear(x, _unpack(layer).to(x.dtype) - 1)


def _add(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias


def _choose_scale(x: Tensor, agree: Agree) -> Tensor:
    """127 over the greatest size of each token's values."""
    return 127 / agree(x.abs().amax(-1, keepdim=True)).clamp_min(_LEAST)


def _round(x: Tensor, scale: Tensor) -> Tensor:
    return (x * scale).round().clamp(-128, 127)


def _unpack(layer: LayerPiece) -> Tensor:
    """Values with 1 added, uint8 [rows, columns]: a quarter of the rows from each pair of bits."""
    rows, columns = layer.out_features, layer.in_features
    return unpack_striped(layer.weight_packed, BITS, _PLACES, rows * columns).view(rows, columns)


def _scale(layer: LayerPiece, values: Tensor) -> Tensor:
    ternary = values.to(layer.weight_scale.dtype) - 1
    return ternary / layer.weight_scale if layer.scheme.sense is Sense.DIVIDES else ternary * layer.weight_scale


def _make_ternary(weight: Tensor) -> Tensor:
    """A dense weight as its mean size times -1, 0 and 1."""
    wide = weight.float()
    scale = 1.0 / wide.abs().mean().clamp_min(_LEAST)
    return ((wide * scale).round().clamp(-1, 1) / scale).to(weight.dtype)


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * normed.to(x.dtype)
