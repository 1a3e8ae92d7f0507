"""Computes with ModelOpt's tensors."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.activations import fake_quantize, fake_quantize_dynamic
from qload.torch.arithmetic import pick, scale_blocks, scale_groups, unpack
from qload.torch.floats import decode_e2m1, decode_e8m0
from qload.torch.kernels import Inputs, Weight
from qload_modelopt.inputs import find_inputs
from qload_modelopt.schemes import Form, States
from qload_modelopt.weights import find_weight

NVFP4_GROUP = 16


def qload_dequantize(layer: LayerPiece) -> Tensor:
    """With the scale of the inputs in its columns, so that it is the whole of what the layer does to them."""
    return _smooth(layer, _weight(layer))


def qload_weight(layer: LayerPiece) -> Weight | str:
    return find_weight(layer, find_inputs(layer))


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _weight(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    inputs: Inputs = find_inputs(layer)
    if inputs.rounding is None:
        return F.linear(x, qload_dequantize(layer).to(x.dtype), bias)
    weight = _weight(layer)
    if layer.scheme.double:
        weight = fake_quantize(weight, layer.weight_scale_2, None, 8, is_float=True)
    return F.linear(inputs.round(inputs.arrange(x), layer.agree), weight.to(x.dtype), bias)


def qload_cache(layer: LayerPiece, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Source: ModelOpt's `_QuantAttention`, which rounds what its attention multiplies, once positions are in it."""
    states = layer.scheme.states
    return _quantize_states(states, keys, layer.k_scale), _quantize_states(states, values, layer.v_scale)


def _quantize_states(states: States, x: Tensor, scale: Tensor) -> Tensor:
    if states is States.NVFP4:
        return fake_quantize_dynamic(x, 4, is_float=True, group=NVFP4_GROUP, global_scale=1 / scale.float())
    return fake_quantize(x, scale, None, 8, is_float=states is States.FP8)


def _smooth(layer: LayerPiece, weight: Tensor) -> Tensor:
    """A weight [out_features, in_features] times the scale of the inputs, where the layer has one."""
    scale = cast("Tensor | None", layer.pre_quant_scale) if layer.scheme.smooth else None
    return weight if scale is None else weight * scale


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
