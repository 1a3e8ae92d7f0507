"""Computes with torchao's tensors."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import extend_sign, pick, scale_groups, unpack
from qload.torch.floats import decode_e2m1, decode_e8m0, decode_float
from qload_torchao.declarations import TILE_GROUPS, TILE_ROWS
from qload_torchao.quantizing import quantize
from qload_torchao.runtime.activations import fake_quantize_int8, round_float8, round_int8, round_mx, round_nvfp4
from qload_torchao.schemes import FP4, FP6_BITS, Storage, TorchaoScheme

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def qload_dequantize(layer: LayerPiece) -> Tensor:
    weight, smoothing = _weigh(layer), _smoothing(layer)
    return weight if smoothing is None else weight * smoothing


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _weigh(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    smoothing = _smoothing(layer)
    if smoothing is not None:
        x = (x * smoothing).to(x.dtype)
    if layer.scheme.inputs is not None and layer.quantize_activations:
        x = _quantize_input(layer, x)
    return F.linear(x, _weigh(layer).to(x.dtype), bias)


def qload_quantize(weight: Tensor, scheme: TorchaoScheme) -> dict[str, Tensor]:
    return quantize(weight, scheme)


def _smoothing(layer: LayerPiece) -> Tensor | None:
    """What inputs are multiplied by before all else: whose weights were divided by it."""
    return cast("Tensor | None", getattr(layer, "input_pre_scale", None))


def _weigh(layer: LayerPiece, ids: Tensor | None = None) -> Tensor:
    """The weight, or those rows of it, without the scales of inputs."""
    match layer.scheme.storage:
        case Storage.INT8 | Storage.INTX:
            return _scale_integers(layer, ids)
        case Storage.FLOAT8:
            return _scale(layer, _rows(layer, ids).float(), _extend(layer, layer.weight_scale, ids))
        case Storage.INT4:
            return _scale_packed(layer, ids)
    return _scale(layer, _small_floats(layer, ids), _small_scale(layer, ids))


def _scale_integers(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    # The producer multiplies values of the weight's own dtype by scales of another in the wider of the two.
    dtype = torch.promote_types(_DTYPES[layer.scheme.dtype], layer.weight_scale.dtype)
    scale = _extend(layer, layer.weight_scale, ids).to(dtype)
    zero = cast("Tensor | None", getattr(layer, "weight_zero_point", None))
    return _scale(layer, _rows(layer, ids), scale, 0 if zero is None else _extend(layer, zero, ids))


def _scale_packed(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    """q * scale + zero, rounded once; q is in two's complement, the even column in the low nibble.

    Source: `pack_int4` and `int4_row_quantize_zp` of FBGEMM's `gen_ai` and MSLK, which pack for torchao.
    """
    values = extend_sign(unpack(_rows(layer, ids), 4, layer.in_features), 4)
    scale, zero = (
        tensor if ids is None else tensor[:, ids] for tensor in (layer.weight_scale, layer.weight_zero_point)
    )
    group = _columns(layer)
    spread = zero.T.float().repeat_interleave(group, -1)[..., : layer.in_features]
    return scale_groups(values, scale.T.float(), 0, group).add_(spread).to(scale.dtype)


def _scale(layer: LayerPiece, values: Tensor, scale: Tensor, zero: Tensor | int = 0) -> Tensor:
    return scale_groups(values, scale, zero, _columns(layer))


def _columns(layer: LayerPiece) -> int:
    scheme: TorchaoScheme = layer.scheme
    return scheme.block[1] or layer.in_features


def _rows(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    return pick(layer.weight_quantized, ids)


def _extend(layer: LayerPiece, tensor: Tensor, ids: Tensor | None) -> Tensor:
    """Scales or zero-points [rows, blocks of columns], or [1, blocks] where all rows share them."""
    height = layer.scheme.block[0]
    if height is None:
        return tensor.reshape(1, -1)
    if ids is not None:
        return tensor[ids // height]
    return tensor if height == 1 else tensor.repeat_interleave(height, 0)[: layer.out_features]


def _small_floats(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    rows, element = _rows(layer, ids), layer.scheme.element
    dtype = torch.float32 if layer.scheme.storage is Storage.NVFP4 else torch.bfloat16
    if element == FP4:
        return decode_e2m1(unpack(rows, 4, layer.in_features), dtype)
    # A byte holds six bits, of which the others may be anything.
    return decode_float(rows & 63, *FP6_BITS[element], dtype) if element in FP6_BITS else rows.to(dtype)


def _small_scale(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    stored = layer.weight_scale
    if layer.scheme.swizzled:
        rows = torch.arange(layer.out_features, device=stored.device) if ids is None else ids
        stored = unswizzle(stored, rows, -(-layer.in_features // _columns(layer)))
    elif ids is not None:
        stored = stored[ids]
    if layer.scheme.storage is Storage.MX:
        return decode_e8m0(stored, torch.bfloat16)
    whole = cast("Tensor | None", getattr(layer, "weight_global_scale", None))
    return stored.float() if whole is None else whole * stored.float()


def unswizzle(scale: Tensor, rows: Tensor, groups: int) -> Tensor:
    """The scales [n, groups] of some rows, from tiles [rows / 128, groups / 4, 512].

    In a tile, row r is the 16 bytes of its place in its quarter, r % 32, and of these the four of its quarter.
    Source: torchao's `to_blocked`, which is cuBLAS's layout of block scaling factors.
    """
    quarter = TILE_ROWS // 4
    tiles = scale.view(torch.uint8).unflatten(-1, (quarter, 4, TILE_GROUPS))
    place = rows % TILE_ROWS
    chosen: Tensor = tiles[rows // TILE_ROWS, :, place % quarter, place // quarter].flatten(1)
    return chosen[:, :groups].contiguous().view(scale.dtype)


def _quantize_input(layer: LayerPiece, x: Tensor) -> Tensor:
    scheme: TorchaoScheme = layer.scheme
    inputs = scheme.inputs
    if inputs is None:
        return x
    match scheme.storage:
        case Storage.INT8 if inputs.static:
            zero = cast("Tensor | None", getattr(layer, "input_zero_point", None))
            return fake_quantize_int8(x, inputs, layer.input_scale, zero)
        case Storage.INT8:
            return round_int8(x, inputs, torch.float32, torch.finfo(torch.float32).eps, layer.agree)
        case Storage.INTX:
            return round_int8(x, inputs, x.dtype, torch.finfo(x.dtype).smallest_normal, layer.agree)
        case Storage.MX:
            return round_mx(x, inputs)
        case Storage.NVFP4:
            return round_nvfp4(x, inputs, layer.input_global_scale if inputs.static else None, layer.agree)
    return round_float8(x, inputs, layer.agree)
