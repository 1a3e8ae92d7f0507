"""Computes with ModelOpt's tensors."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.activations import by_groups, fake_quantize, fake_quantize_dynamic
from qload.torch.arithmetic import pick, scale_blocks, scale_groups, unpack
from qload.torch.floats import Float, decode_e2m1, decode_e8m0
from qload_modelopt.schemes import Form, Inputs, States

MX_GROUP = 32
NVFP4_GROUP = 16


def qload_dequantize(layer: LayerPiece) -> Tensor:
    """With the scale of the inputs in its columns, so that it is the whole of what the layer does to them."""
    return _smooth(layer, _weight(layer))


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _weight(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    if layer.scheme.inputs is Inputs.NONE or not layer.quantize_activations:
        return F.linear(x, qload_dequantize(layer).to(x.dtype), bias)
    weight = _weight(layer)
    if layer.scheme.double:
        weight = fake_quantize(weight, layer.weight_scale_2, None, 8, is_float=True)
    return F.linear(_quantize_input(layer, _smooth(layer, x)), weight.to(x.dtype), bias)


def qload_cache(layer: LayerPiece, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Source: ModelOpt's `_QuantAttention`, which rounds what its attention multiplies, once positions are in it."""
    states = layer.scheme.states
    return _quantize_states(states, keys, layer.k_scale), _quantize_states(states, values, layer.v_scale)


def _quantize_states(states: States, x: Tensor, scale: Tensor) -> Tensor:
    if states is States.NVFP4:
        return fake_quantize_dynamic(x, 4, is_float=True, group=NVFP4_GROUP, global_scale=1 / scale.float())
    return fake_quantize(x, scale, None, 8, is_float=states is States.FP8)


def _smooth(layer: LayerPiece, x: Tensor) -> Tensor:
    """x [..., in_features], inputs or weights, times the scale of the inputs, where the layer has one."""
    scale = cast("Tensor | None", layer.pre_quant_scale) if layer.scheme.smooth else None
    return x if scale is None else x * scale.to(x.dtype)


def _weight(layer: LayerPiece, ids: Tensor | None = None) -> Tensor:
    """All rows, or those of `ids`, as they were before the inputs' scale was taken out of them."""
    form, size = layer.scheme.form, layer.scheme.size or layer.in_features
    if form is Form.PLAIN:
        return pick(layer.weight, ids)
    values = _values(layer, ids)
    if form is Form.FP8_TENSOR:
        return values.to(layer.weight_scale.dtype) * layer.weight_scale
    if form is Form.FP8_BLOCK:
        return scale_blocks(values, layer.weight_scale, (size, size), rows=ids)
    return scale_groups(values, _scale(layer, ids), 8 if form is Form.INT4 else 0, size)


def _values(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    stored = layer.weight_quantized
    if layer.scheme.form is Form.INT4:
        return _unpack_rows(stored, ids)
    rows = pick(stored, ids)
    if layer.scheme.form in (Form.NVFP4, Form.MXFP4):
        return decode_e2m1(unpack(rows, 4, layer.in_features), torch.bfloat16)
    return rows


def _unpack_rows(pairs: Tensor, ids: Tensor | None) -> Tensor:
    """Pairs of rows, the even one low, in two's complement: 0 to 15, which are the values and eight."""
    if ids is None:
        rows = torch.stack((pairs & 15, pairs >> 4), 1).flatten(0, 1)
    else:
        rows = (pairs[ids // 2] >> (ids % 2 * 4).to(torch.uint8)[:, None]) & 15
    return rows ^ 8


def _scale(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    """The scales [rows, groups]: those of mx formats are powers of two, which bfloat16 holds."""
    stored = pick(layer.weight_scale, ids)
    match layer.scheme.form:
        case Form.NVFP4:
            return stored.to(torch.float32) * layer.weight_scale_2
        case Form.MXFP4 | Form.MXFP8:
            return decode_e8m0(stored, torch.bfloat16)
        case Form.INT4:
            return stored
        case _:
            return stored[:, None]


def _quantize_input(layer: LayerPiece, x: Tensor) -> Tensor:
    inputs = layer.scheme.inputs
    if inputs.may_have_scale:
        scale = cast("Tensor | None", layer.input_scale)
        return _quantize_without_scale(layer, x) if scale is None else _quantize_by_scale(layer, x, scale)
    match inputs:
        case Inputs.FP8_TOKEN:
            return fake_quantize_dynamic(x, 8, is_float=True, agree=layer.agree)
        case Inputs.FP8_GROUP:
            return fake_quantize_dynamic(x, 8, is_float=True, group=layer.scheme.size)
        case Inputs.MXFP4:
            return _quantize_by_powers(x, Float(2, 1))
        case _:
            return _quantize_by_powers(x, Float(4, 3))


def _quantize_by_scale(layer: LayerPiece, x: Tensor, scale: Tensor) -> Tensor:
    if layer.scheme.inputs is Inputs.NVFP4:
        return fake_quantize_dynamic(x, 4, is_float=True, group=layer.scheme.size, global_scale=1 / scale)
    return fake_quantize(x, scale, None, 8, is_float=layer.scheme.inputs is not Inputs.INT8)


def _quantize_without_scale(layer: LayerPiece, x: Tensor) -> Tensor:
    """Uncalibrated inputs have the scale of their tensor; a head that is tied to a table without one has none."""
    if layer.scheme.inputs is not Inputs.FP8_TENSOR:
        return x
    return fake_quantize_dynamic(x, 8, is_float=True, by_tensor=True, agree=layer.agree)


def _quantize_by_powers(x: Tensor, number: Float) -> Tensor:
    """x rounded with the least power of two for each group that holds it: ModelOpt's rule for mx scales."""

    def quantize(values: Tensor) -> Tensor:
        size = values.abs().amax(-1, keepdim=True) / number.greatest
        scale = torch.exp2(size.log2().ceil().clamp(-127, 127))
        return number.round(values / scale) * scale

    return by_groups(x.float(), MX_GROUP, quantize).to(x.dtype)
