"""Computes with torchao's tensors."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import extend_sign, pick, scale_groups, unpack
from qload.torch.floats import decode_e2m1, decode_e8m0, decode_float
from qload.torch.kernels import FloatWeight, Inputs, IntegerWeight, Weight, name_element
from qload_torchao.declarations import TILE_GROUPS, TILE_ROWS
from qload_torchao.quantizing import quantize
from qload_torchao.runtime.activations import TorchaoRounding
from qload_torchao.schemes import FP4, FP6_BITS, Storage, TorchaoScheme

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return Inputs(_smoothing(layer)).restore(_weigh(layer))


def qload_weight(layer: LayerPiece) -> Weight | str:
    inputs = _inputs(layer)
    match layer.scheme.storage:
        case Storage.INT8 | Storage.INTX:
            return _find_integers(layer, inputs)
        case Storage.INT4:
            return _find_packed(layer, inputs)
        case Storage.FLOAT8:
            return _find_floats(layer, layer.weight_scale, inputs)
    if layer.scheme.element in FP6_BITS:
        return "its values are floats of 6 bits"
    return _find_floats(layer, _order_scale(layer, None), inputs)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    return _weigh(layer, ids)


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    inputs = _inputs(layer)
    x = inputs.round(inputs.arrange(x), layer.agree)
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


def _find_integers(layer: LayerPiece, inputs: Inputs) -> Weight:
    values, zero = layer.weight_quantized, cast("Tensor | None", getattr(layer, "weight_zero_point", None))
    scale = _extend(layer, layer.weight_scale, None).to(_find_dtype(layer))
    zeros = 0 if zero is None else _extend(layer, zero, None)
    return IntegerWeight(values, _count_bits(layer), layer.in_features, scale, zeros, _columns(layer), inputs)


def _count_bits(layer: LayerPiece) -> int:
    """Of values that are stored as bytes: as few as the scheme says, if none of them is beyond that."""
    if layer.scheme.storage is Storage.INT8:
        return 8
    bits = int(layer.scheme.element.removeprefix("int"))
    half = 1 << (bits - 1)
    low, high = layer.weight_quantized.aminmax()
    return bits if -half <= int(low) and int(high) < half else 8


def _find_packed(layer: LayerPiece, inputs: Inputs) -> Weight:
    """Values in two's complement as such of 0 to 15, which are 8 more."""
    values = layer.weight_quantized.view(torch.uint8) ^ 0x88
    scale, shift = layer.weight_scale.T, layer.weight_zero_point.T
    return IntegerWeight(values, 4, layer.in_features, scale, 8, _columns(layer), inputs, shift, wide=True)


def _find_floats(layer: LayerPiece, scale: Tensor, inputs: Inputs) -> Weight:
    height, values = layer.scheme.block[0], layer.weight_quantized
    block = (layer.out_features if height is None else height, _columns(layer))
    is_wide = layer.scheme.storage is Storage.NVFP4
    return FloatWeight(
        values,
        name_element(values),
        layer.in_features,
        scale.reshape(1, -1) if height is None else scale,
        block,
        cast("Tensor | None", getattr(layer, "weight_global_scale", None)),
        inputs=inputs,
        dtype=torch.float32 if is_wide else torch.bfloat16,
    )


def _find_dtype(layer: LayerPiece) -> torch.dtype:
    """The producer multiplies values of the weight's own dtype by scales of another in the wider of the two."""
    return torch.promote_types(_DTYPES[layer.scheme.dtype], layer.weight_scale.dtype)


def _scale_integers(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    scale = _extend(layer, layer.weight_scale, ids).to(_find_dtype(layer))
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
    stored = _order_scale(layer, ids)
    if layer.scheme.storage is Storage.MX:
        return decode_e8m0(stored, torch.bfloat16)
    whole = cast("Tensor | None", getattr(layer, "weight_global_scale", None))
    return stored.float() if whole is None else whole * stored.float()


def _order_scale(layer: LayerPiece, ids: Tensor | None) -> Tensor:
    """The scales of small floats as they are stored [rows, groups], those of some rows or of all."""
    stored = layer.weight_scale
    if layer.scheme.swizzled:
        rows = torch.arange(layer.out_features, device=stored.device) if ids is None else ids
        return unswizzle(stored, rows, -(-layer.in_features // _columns(layer)))
    return pick(stored, ids)


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


def _inputs(layer: LayerPiece) -> Inputs:
    scheme: TorchaoScheme = layer.scheme
    if scheme.inputs is None or not layer.quantize_activations:
        return Inputs(_smoothing(layer))
    return Inputs(_smoothing(layer), rounding=TorchaoRounding(scheme.inputs, scheme.storage), scale=_input_scale(layer))


def _input_scale(layer: LayerPiece) -> Tensor | None:
    """What is stored of it; of int8 with the zero-point, [2]."""
    if not layer.scheme.inputs.static:
        return None
    if layer.scheme.storage is not Storage.INT8:
        return layer.input_global_scale
    scale, zero = layer.input_scale, cast("Tensor | None", getattr(layer, "input_zero_point", None))
    return torch.stack((scale, torch.zeros_like(scale) if zero is None else zero.to(scale.dtype)))
