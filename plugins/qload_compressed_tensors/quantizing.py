"""Quantizes weights as compressed-tensors does with the least and greatest value of what a scale serves.

Source of the arithmetic: `calculate_qparams`, `generate_gparam`, `generate_mxfp4_scales` and `_quantize` of the
compressed-tensors package, in the weight's own dtype; and its compressors' packing.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch.activations import E4M3_MAX, choose_power, choose_scale, round_scale, value_range
from qload.torch.arithmetic import pack
from qload.torch.floats import E2M1, encode_e2m1
from qload.torch.strips import quantize_by_strips
from qload_compressed_tensors.config import Strategy
from qload_compressed_tensors.formats import MXFP4, MXFP8, NVFP4, PACKED, PLAIN_FORMATS, SMALL_FLOATS
from qload_compressed_tensors.quantizers import Quantizer
from qload_compressed_tensors.schemes import CacheScheme, CompressedScheme, Scheme, SparseScheme

_ROWS = 32
"""Rows whose packed zero-points of any width fill whole words."""


def quantize(weight: Tensor, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of one of the formats. Raises ValueError where it needs calibration data."""
    if isinstance(scheme, CacheScheme):
        raise ValueError("the scales of keys and values need calibration data")
    if isinstance(scheme, SparseScheme):
        raise ValueError("which weights are to be left out needs calibration data")
    _check(scheme)
    if scheme.format in SMALL_FLOATS:
        return _quantize_small(weight, scheme)
    if scheme.weights.strategy is Strategy.TENSOR:
        return _quantize(weight, scheme)
    unit = _ROWS if scheme.weights.block is None else math.lcm(_ROWS, scheme.weights.block[0])
    return quantize_by_strips(weight, unit, partial(_quantize, scheme=scheme))


def _quantize(weight: Tensor, scheme: CompressedScheme) -> dict[str, Tensor]:
    tiles = _tile(weight, scheme.weights)
    scale, zero = _choose_scales(tiles, scheme.weights)
    values = _untile(_round(tiles, scale, zero, scheme.weights), weight)
    return _store(values, scale.amax((1, 3)), None if zero is None else zero.amax((1, 3)), scheme)


def _check(scheme: CompressedScheme) -> None:
    for what, states in (("inputs", scheme.inputs), ("outputs", scheme.outputs)):
        if states is not None and (not states.dynamic or states.has_global_scale):
            raise ValueError(f"the scales of {what} need calibration data")
    if scheme.sparsity is not None:
        raise ValueError("which weights are to be left out needs calibration data")
    if scheme.weights.orders_groups:
        raise ValueError("the order of activations needs calibration data")
    is_small = scheme.format in (MXFP4, MXFP8) or (scheme.format == NVFP4 and scheme.weights.has_global_scale)
    if not is_small and scheme.format not in (PACKED, *PLAIN_FORMATS):
        raise ValueError(f"{scheme.format} of {scheme.weights} is not supported")
    if scheme.weights.is_float and not scheme.weights.symmetric:
        raise ValueError(f"{scheme.weights} is not supported")


def _tile(weight: Tensor, weights: Quantizer) -> Tensor:
    """[rows / height, height, columns / width, width]: one scale serves a tile of height x width; zeros fill up."""
    rows, columns = weight.shape
    height, width = _extent(weights, rows, columns)
    padded = F.pad(weight, (0, -columns % width, 0, -rows % height))
    tiles: Tensor = padded.unflatten(1, (-1, width)).unflatten(0, (-1, height))
    return tiles


def _untile(tiles: Tensor, weight: Tensor) -> Tensor:
    rows, columns = weight.shape
    return tiles.flatten(2).flatten(0, 1)[:rows, :columns]


def _extent(weights: Quantizer, rows: int, columns: int) -> tuple[int, int]:
    if weights.strategy is Strategy.TENSOR:
        return rows, columns
    return weights.block or (1, weights.group or columns)


def _choose_scales(tiles: Tensor, weights: Quantizer) -> tuple[Tensor, Tensor | None]:
    low, high = (edge((1, 3), keepdim=True) for edge in (tiles.amin, tiles.amax))
    return choose_scale(low.clamp_max(0), high.clamp_min(0), weights.bits, weights.is_float, weights.symmetric)


def _round(tiles: Tensor, scale: Tensor, zero: Tensor | None, weights: Quantizer) -> Tensor:
    scaled = tiles / scale
    if zero is not None:
        scaled += zero
    clamped = scaled.clamp_(*value_range(weights.bits, weights.is_float))
    return clamped.to(torch.float8_e4m3fn) if weights.is_float else clamped.round_().to(torch.int8)


def _store(values: Tensor, scale: Tensor, zero: Tensor | None, scheme: CompressedScheme) -> dict[str, Tensor]:
    weights = scheme.weights
    scale = scale.view(1) if weights.strategy is Strategy.TENSOR else scale
    zeros = {} if zero is None else {"weight_zero_point": zero.to(torch.int8).view_as(scale)}
    if scheme.format != PACKED:
        return {"weight_quantized": values, "weight_scale": scale, **zeros}
    half, bits = 1 << (weights.bits - 1), weights.bits
    if weights.strategy in (Strategy.CHANNEL, Strategy.GROUP):
        # Packed along the rows, which are stored as the first axis nevertheless.
        zeros = {name: pack(each.T + half, bits, torch.int32).T for name, each in zeros.items()}
    return {"weight_packed": pack(values + half, bits, torch.int32), "weight_scale": scale, **zeros}


def _quantize_small(weight: Tensor, scheme: CompressedScheme) -> dict[str, Tensor]:
    """Floats by groups: with powers of two as scales, or scales of E4M3 that a global one brings into its range."""
    if scheme.format != NVFP4:
        return quantize_by_strips(weight, 1, partial(_quantize_groups, scheme=scheme))
    low, high = weight.aminmax()
    greatest = torch.maximum(-low, high).clamp_min(torch.finfo(weight.dtype).tiny)
    global_scale = (E4M3_MAX * E2M1[-1] / greatest).float().view(1)
    made = quantize_by_strips(weight, 1, partial(_quantize_groups, scheme=scheme, global_scale=global_scale))
    return {**made, "weight_global_scale": global_scale}


def _quantize_groups(weight: Tensor, scheme: CompressedScheme, global_scale: Tensor | None = None) -> dict[str, Tensor]:
    weights = scheme.weights
    tiles = _tile(weight, weights)
    if global_scale is None:
        scale = choose_power(tiles.abs().amax((1, 3), keepdim=True).float(), weights.bits, rounds_up=True)
        stored = scale.to(torch.float8_e8m0fnu).view(torch.uint8)
    else:
        scale = round_scale(global_scale * _choose_scales(tiles, weights)[0])
        stored, scale = scale.to(torch.float8_e4m3fn), scale / global_scale
    made = {"weight_scale": stored.flatten(2).flatten(0, 1)}
    if scheme.format == MXFP8:
        return {**made, "weight_quantized": _untile(_round(tiles, scale, None, weights), weight)}
    return {**made, "weight_packed": pack(_untile(encode_e2m1(tiles / scale), weight), 4, torch.uint8)}
