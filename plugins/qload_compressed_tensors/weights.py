"""Weights and inputs in the forms that kernels know."""

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.arithmetic import unpack
from qload.torch.kernels import FloatWeight, Inputs, IntegerWeight, Weight, name_element
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding
from qload.torch.nibbles import reorder, view_pairs
from qload.torch.ordering import sort_columns
from qload_compressed_tensors.config import Strategy
from qload_compressed_tensors.formats import MARLIN_24, MXFP6, NVFP4, PACKED, SMALL_FLOATS
from qload_compressed_tensors.quantizers import Quantizer
from qload_compressed_tensors.schemes import CompressedScheme, Scheme


def find_weight(layer: LayerPiece, zeros: Tensor | int) -> Weight | str:
    """The weight, whose zero-points are `zeros`, or why it has no such form."""
    reason = _refuse(layer.scheme, layer.quantize_activations)
    if reason is not None:
        return reason
    inputs = find_inputs(layer)
    if isinstance(inputs, str):
        return inputs
    scheme: CompressedScheme = layer.scheme
    if scheme.format in SMALL_FLOATS:
        return _find_small_floats(layer, inputs)
    block, scale = _find_blocks(layer, layer.weight_scale)
    if not isinstance(zeros, int):
        zeros = _find_blocks(layer, zeros)[1] if bool(zeros.to(torch.float32).any()) else 0
    if scheme.weights.is_float:
        if not isinstance(zeros, int):
            return "its floats have zero-points"
        values = layer.weight_quantized
        return FloatWeight(values, name_element(values), layer.in_features, scale, block, inputs=inputs)
    rows = layer.out_features
    if block[0] > 1:
        scale = _spread_rows(scale, block[0], rows)
        zeros = zeros if isinstance(zeros, int) else _spread_rows(zeros, block[0], rows)
    return _find_integers(layer, scale, zeros, block[1], inputs)


def find_inputs(layer: LayerPiece) -> Inputs | str:
    """What is done to a layer's inputs, or why kernels cannot do it."""
    scheme: CompressedScheme = layer.scheme
    quantizer = scheme.inputs
    if quantizer is None or not layer.quantize_activations:
        return Inputs()
    if quantizer.dynamic:
        scale = layer.input_global_scale if quantizer.has_global_scale else None
        return Inputs(rounding=make_rounding(quantizer), scale=scale)
    scale, zero = layer.input_scale, layer.input_zero_point
    if zero is None or not bool(zero.to(torch.float32).any()):
        return Inputs(rounding=StaticRounding(quantizer.bits, quantizer.is_float), scale=scale)
    same = zero.to(scale.dtype)
    if not torch.equal(same.double(), zero.double()):
        return "the zero-point of its inputs is none in the dtype of their scale"
    rounding = StaticRounding(quantizer.bits, quantizer.is_float, has_zero=True)
    return Inputs(rounding=rounding, scale=torch.stack((scale.view([]), same.view([]))))


def make_rounding(quantizer: Quantizer) -> DynamicRounding:
    """How inputs are rounded with scales of their own."""
    return DynamicRounding(
        quantizer.bits,
        quantizer.is_float,
        quantizer.symmetric,
        quantizer.group,
        quantizer.strategy is Strategy.TENSOR,
        _find_scale_dtype(quantizer),
        quantizer.scale_dtype == "uint8",
    )


def _find_scale_dtype(quantizer: Quantizer) -> torch.dtype | None:
    if quantizer.scale_dtype is None or quantizer.has_powers:
        return torch.float8_e8m0fnu if quantizer.has_powers else None
    dtype: torch.dtype = getattr(torch, quantizer.scale_dtype)
    return dtype


def _refuse(scheme: Scheme, quantizes: bool) -> str | None:
    if not isinstance(scheme, CompressedScheme):
        return "its weight is not quantized: zeros are left out of it"
    if scheme.sparsity is not None or scheme.format == MARLIN_24:
        return "zeros are left out of its weight"
    if scheme.outputs is not None and quantizes:
        return "its outputs are quantized"
    if scheme.format == MXFP6:
        return "its floats have six bits"
    is_grouped = scheme.inputs is not None and scheme.inputs.group is not None
    if scheme.weights.orders_groups and is_grouped and quantizes:
        return "its columns are ordered by activations, and its inputs are quantized in groups"
    return None


def _find_small_floats(layer: LayerPiece, inputs: Inputs) -> Weight:
    """Scales are powers of two, or E4M3 that are divided by one of the tensor."""
    scheme: CompressedScheme = layer.scheme
    values = layer.weight_packed if scheme.weights.bits == 4 else layer.weight_quantized
    is_fp8 = scheme.format == NVFP4
    scale = layer.weight_scale if is_fp8 else layer.weight_scale.view(torch.float8_e8m0fnu)
    whole = layer.weight_global_scale if scheme.weights.has_global_scale else None
    block = (1, scheme.weights.group or layer.in_features)
    return FloatWeight(
        values, name_element(values), layer.in_features, scale, block, whole, inputs=inputs, over=whole is not None
    )


def _find_blocks(layer: LayerPiece, scale: Tensor) -> tuple[tuple[int, int], Tensor]:
    """The rows and columns that share a scale, or a zero-point; and these, [blocks of rows, blocks of columns]."""
    weights: Quantizer = layer.scheme.weights
    if weights.strategy is Strategy.TENSOR:
        return (layer.out_features, layer.in_features), scale.reshape(1, 1)
    return weights.block or (1, weights.group or layer.in_features), scale


def _spread_rows(blocks: Tensor, block: int, rows: int) -> Tensor:
    """Of each row; as they are where all rows share them."""
    return blocks if block >= rows else blocks.repeat_interleave(block, 0)[:rows]


def _find_integers(
    layer: LayerPiece, scale: Tensor, zeros: Tensor | int, group: int, inputs: Inputs
) -> IntegerWeight | str:
    bits, columns, order = _find_bits(layer), layer.in_features, None
    if layer.scheme.weights.orders_groups and layer.weight_g_idx is not None:
        runs = sort_columns(layer.weight_g_idx, group)
        if isinstance(runs, str):
            return runs
        order, scale = runs.order, scale[:, runs.groups]
        zeros = zeros if isinstance(zeros, int) else zeros[:, runs.groups]
    values = _read_values(layer, order)
    inputs = Inputs(order=order, rounding=inputs.rounding, scale=inputs.scale)
    return IntegerWeight(values, bits, columns, scale, zeros, group, inputs)


def _find_bits(layer: LayerPiece) -> int:
    """Eight where whole bytes hold more than the bits that the config says."""
    bits: int = layer.scheme.weights.bits
    if layer.scheme.format == PACKED or bits == 8:
        return bits
    low, high = layer.weight_quantized.aminmax()
    half = 1 << (bits - 1)
    return bits if -half <= int(low) and int(high) < half else 8


def _read_values(layer: LayerPiece, order: Tensor | None) -> Tensor:
    """The values as they are stored, with their columns in that order: in pairs of four bits, else one to a byte."""
    if layer.scheme.format != PACKED:
        stored: Tensor = layer.weight_quantized
        return stored if order is None else stored.index_select(1, order)
    bits, words, columns = layer.scheme.weights.bits, layer.weight_packed, layer.in_features
    if order is not None and (32 % bits or columns * bits % 32):
        return unpack(words, bits, columns).index_select(1, order)
    words = words if order is None else reorder(words.T.contiguous(), bits, order).T
    is_whole = bits == 8 or (bits == 4 and columns % 2 == 0)
    return view_pairs(words)[:, : columns * bits // 8] if is_whole else unpack(words, bits, columns)
