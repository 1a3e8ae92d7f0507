"""Computes with HQQ's tensors."""

from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch import Layer
from qload.torch.arithmetic import find_rows, scale_groups, take_striped, unpack_striped
from qload.torch.kernels import IntegerWeight, Weight
from qload.torch.nibbles import pair_halves
from qload_hqq import SETTINGS, WIDTHS, HqqScheme
from qload_hqq.quantizing import quantize


def qload_dequantize(layer: LayerPiece) -> Tensor:
    scale, zero = _read_scales(layer)
    bits, shifts = _read_places(layer)
    values = unpack_striped(layer.W_q, bits, shifts, layer.out_features * layer.in_features)
    if layer.scheme.axis == 1:
        group = layer.scheme.group_size or layer.in_features
        weight = scale_groups(values.view(-1, group), scale.unsqueeze(1), zero.unsqueeze(1), group)
    else:
        weight = scale_groups(values.view(-1, len(scale)), scale.unsqueeze(0), zero.unsqueeze(0), 1)
    return weight.view(layer.out_features, layer.in_features)


def qload_weight(layer: LayerPiece) -> Weight | str:
    columns, group = layer.in_features, layer.scheme.group_size or layer.in_features
    if layer.scheme.axis == 0:
        return "its rows share scales, column by column"
    if columns % group:
        return f"groups of {group} run over the ends of rows of {columns}"
    scale, zero = (each.view(layer.out_features, -1) for each in _read_scales(layer))
    return IntegerWeight(_read_values(layer), _read_places(layer)[0], columns, scale, zero, group)


def _read_values(layer: LayerPiece) -> Tensor:
    """The values: in pairs of four bits, else one to a byte."""
    (bits, shifts), rows, columns = _read_places(layer), layer.out_features, layer.in_features
    pairs = pair_halves(layer.W_q.flatten(), rows, columns, is_first_high=True) if bits == 4 else None
    return unpack_striped(layer.W_q, bits, shifts, rows * columns).view(rows, columns) if pairs is None else pairs


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    scale, zero = _read_scales(layer)
    index = find_rows(ids, layer.in_features)
    values = take_striped(layer.W_q, *_read_places(layer), index)
    group = layer.scheme.group_size or layer.in_features
    places = index // group if layer.scheme.axis == 1 else index % len(scale)
    return scale_groups(values, scale[places], zero[places], 1)


def qload_quantize(weight: Tensor, scheme: HqqScheme) -> dict[str, Tensor]:
    return quantize(weight, scheme)


def qload_process_weights_after_loading(layer: Layer) -> None:
    """The settings have been checked by now, and are not needed."""
    for name in SETTINGS & layer.declared.keys():
        layer.set_tensor(name, None)


def _read_places(layer: LayerPiece) -> tuple[int, list[int]]:
    """The bits of a value, and the places of the stripes in a word, of which the first is the highest."""
    return WIDTHS[layer.scheme.count], layer.scheme.places


def _read_scales(layer: LayerPiece) -> tuple[Tensor, Tensor]:
    """Scales and zero-points, one after another."""
    if layer.scheme.joined:
        zero, scale = layer.zero_scale.flatten(1)
        return scale, zero
    return layer.scale.flatten(), layer.zero.flatten()
