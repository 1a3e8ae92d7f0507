"""Computes with GPTQ's tensors."""

from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch import Layer
from qload.torch.arithmetic import scale_by_index, scale_groups, take, unpack
from qload.torch.kernels import Inputs, IntegerWeight, Weight
from qload.torch.nibbles import reorder, view_pairs
from qload.torch.ordering import settle_group_index, sort_columns
from qload_gptq import GptqScheme

# One in every packed value. Zero-points were lessened as whole words, so that adding it restores borrows too.
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


def qload_dequantize(layer: LayerPiece) -> Tensor:
    values = unpack(layer.qweight.T, layer.scheme.bits, layer.in_features)
    zeros = _restore(unpack(_words(layer), layer.scheme.bits, layer.out_features), layer.scheme)
    return _scale(layer, values, layer.scales.T, zeros.T)


def qload_weight(layer: LayerPiece) -> Weight | str:
    scheme: GptqScheme = layer.scheme
    group = scheme.group_size or layer.in_features
    zeros = _restore(unpack(_words(layer), scheme.bits, layer.out_features), scheme).T
    scales = layer.scales.T
    if layer.g_idx is None:
        return IntegerWeight(_values(layer, None), scheme.bits, layer.in_features, scales, zeros, group)
    runs = sort_columns(layer.g_idx, group)
    if isinstance(runs, str):
        return runs
    scales, zeros = scales[:, runs.groups], zeros[:, runs.groups]
    values = _values(layer, runs.order)
    return IntegerWeight(values, scheme.bits, layer.in_features, scales, zeros, group, Inputs(order=runs.order))


def _values(layer: LayerPiece, order: Tensor | None) -> Tensor:
    """The values with their columns in that order: of four bits in the words that are stored, else one to a byte."""
    bits, words, columns = layer.scheme.bits, layer.qweight, layer.in_features
    if order is not None and (bits == 3 or columns * bits % 32):
        return unpack(words.T, bits, columns).index_select(1, order)
    words = words if order is None else reorder(words, bits, order)
    if bits == 4 and columns % 8 == 0:
        return words
    is_whole = bits == 8 or (bits == 4 and columns % 2 == 0)
    return view_pairs(words.T)[:, : columns * bits // 8] if is_whole else unpack(words.T, bits, columns)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    values = unpack(layer.qweight[:, ids].T, layer.scheme.bits, layer.in_features)
    zeros = _restore(take(_words(layer), layer.scheme.bits, ids), layer.scheme)
    return _scale(layer, values, layer.scales[:, ids].T, zeros.T)


def qload_process_weights_after_loading(layer: Layer) -> None:
    scheme: GptqScheme = layer.scheme
    settle_group_index(layer, "g_idx", scheme.group_size or layer.geometry.in_features, ordered=scheme.desc_act)


def _words(layer: LayerPiece) -> Tensor:
    ones = _ONES.get(layer.scheme.bits, 0)
    return layer.qzeros + ones if layer.scheme.less_one else layer.qzeros


def _restore(zeros: Tensor, scheme: GptqScheme) -> Tensor:
    """Three-bit values straddle words, and are lessened one by one."""
    return (zeros + 1) & 7 if scheme.less_one and scheme.bits == 3 else zeros


def _scale(layer: LayerPiece, values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    if layer.g_idx is not None:
        return scale_by_index(values, scales, zeros, layer.g_idx)
    return scale_groups(values, scales, zeros, layer.scheme.group_size or layer.in_features)
