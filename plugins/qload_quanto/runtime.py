"""Computes with quanto's tensors."""

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import find_rows, scale_groups, take_striped, unpack_striped
from qload.torch.dtypes import torch_dtype
from qload.torch.kernels import FloatWeight, IntegerWeight, Weight, name_element
from qload.torch.nibbles import pair_halves
from qload_quanto import BITS, DTYPES, QuantoScheme, choose_group
from qload_quanto.quantizing import quantize, read_limits


def qload_dequantize(layer: LayerPiece) -> Tensor:
    bits = layer.scheme.bits
    if not layer.scheme.frozen:
        return _round_weight(layer, layer.weight)
    if bits is None:
        return _scale(layer.weight_data, layer.weight_scale)
    return _scale(_unpack(layer, bits), layer.weight_scale, layer.weight_shift)


def qload_weight(layer: LayerPiece) -> Weight | str:
    scheme: QuantoScheme = layer.scheme
    if not scheme.frozen:
        return "its weight is stored unquantized, and rounded whenever it is used"
    if scheme.activations is not None and layer.quantize_activations:
        return "its outputs are quantized"
    if scheme.bits is not None:
        return _find_packed(layer, scheme.bits)
    values, scale, columns = layer.weight_data, layer.weight_scale, layer.in_features
    if values.dtype == torch.int8:
        return IntegerWeight(values, 8, columns, scale, 0, columns)
    return FloatWeight(values, name_element(values), columns, scale, (1, columns))


def _find_packed(layer: LayerPiece, bits: int) -> Weight | str:
    """Shifts of floats are subtracted from what is scaled already, those of integers before."""
    rows, columns, scale, shift = layer.out_features, layer.in_features, layer.weight_scale, layer.weight_shift
    values = pair_halves(layer.weight_data.flatten(), rows, columns, is_first_high=False) if bits == 4 else None
    values = _unpack(layer, bits) if values is None else values
    group = columns // scale.shape[-1]
    if not shift.is_floating_point():
        return IntegerWeight(values, bits, columns, scale, shift, group)
    if shift.dtype != scale.dtype:
        return f"its shifts are {shift.dtype}, and its scales {scale.dtype}"
    return IntegerWeight(values, bits, columns, scale, 0, group, shift=-shift)


def _unpack(layer: LayerPiece, bits: int) -> Tensor:
    values = unpack_striped(layer.weight_data, bits, range(0, 8, bits), layer.out_features * layer.in_features)
    return values.view(layer.out_features, layer.in_features)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    bits = layer.scheme.bits
    if not layer.scheme.frozen:
        return _round_weight(layer, layer.weight[ids])
    if bits is None:
        return _scale(layer.weight_data[ids], layer.weight_scale[ids])
    values = take_striped(layer.weight_data, bits, range(0, 8, bits), find_rows(ids, layer.in_features))
    return _scale(values, layer.weight_scale[ids], layer.weight_shift[ids])


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    dense = qload_dequantize(layer).to(x.dtype)
    kind = layer.scheme.activations
    if kind is None or not layer.quantize_activations:
        return F.linear(x, dense, bias)
    y = F.linear(_round(x, layer.input_scale, kind), dense, bias)
    return _round(y, layer.output_scale, kind)


def qload_quantize(weight: Tensor, scheme: QuantoScheme) -> dict[str, Tensor]:
    return quantize(weight, scheme)


def _scale(values: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """values * scale - shift, by groups of a row; an integer shift is subtracted first, as a zero-point."""
    groups = scale.shape[-1]
    group = values.shape[-1] // groups
    if shift is None or not shift.is_floating_point():
        return scale_groups(values, scale, 0 if shift is None else shift, group)
    scaled: Tensor = scale_groups(values, scale, 0, group).unflatten(-1, (groups, group))
    return scaled.sub_(shift.unsqueeze(-1)).flatten(-2)


def _round_weight(layer: LayerPiece, rows: Tensor) -> Tensor:
    """Rows of a weight that is not frozen, quantized as `AbsmaxOptimizer` or `MaxOptimizer` would, and turned back.

    Rows and groups of one value alone have no scale, and stay as they are.
    """
    kind = layer.scheme.weights
    if kind is None:
        return rows
    if kind not in BITS:
        scale = rows.abs().amax(-1, keepdim=True) / read_limits(kind)[1]
        return _round(rows, scale.masked_fill(scale == 0, 1), kind)
    grouped: Tensor = rows.unflatten(-1, (-1, choose_group(layer.in_features) or layer.in_features))
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    steps = (1 << BITS[kind]) - 1
    scale = (high - low) / steps
    codes = ((grouped - low) / scale.masked_fill(scale == 0, 1)).round().clamp(0, steps)
    return (codes * scale + low).flatten(-2)


def _round(x: Tensor, scale: Tensor, kind: str) -> Tensor:
    """x as values of that type times `scale`, as `quantize_symmetric` rounds it, in its own dtype."""
    dtype = torch_dtype(DTYPES[kind])
    values = (x / scale).to(x.dtype)
    values = values if dtype.is_floating_point else values.round()
    return (values.clamp(*read_limits(kind)).to(dtype).to(x.dtype) * scale).to(x.dtype)
