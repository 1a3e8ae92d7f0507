"""Computes with QQQ's tensors, put into the order of rows and columns once they are loaded."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.declare import channel_scale, group_scale, packed
from qload.hookspecs import LayerPiece
from qload.layout import in_, out
from qload.torch import Layer
from qload.torch.activations import Agree, count_steps, fake_quantize
from qload.torch.arithmetic import pack, scale_groups, unpack
from qload.torch.kernels import Inputs, IntegerWeight
from qload.torch.strips import STRIP
from qload_qqq import BITS, ROWS, ROWS_OF_CHANNELS, TILE

_HALF = 1 << (BITS - 1)
_INT8 = (-128, 127)
_BYTE = 16
"""What four bits are times where they are the high ones of eight."""


@dataclass(frozen=True, slots=True)
class QqqRounding:
    """To int8, with a scale of float32 for each token that takes its greatest size to 127."""

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
        found = _choose_scale(x, agree)
        return count_steps(x, found, None, 8, is_float=False).to(torch.int8), found

    def fake(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Tensor:  # noqa: ARG002
        return fake_quantize(x, _choose_scale(x, agree), None, 8, is_float=False)


def qload_dequantize(layer: LayerPiece) -> Tensor:
    return _scale(layer, layer.values, layer.row_scale, getattr(layer, "row_group_scale", None))


def qload_weight(layer: LayerPiece) -> IntegerWeight:
    groups, scale = getattr(layer, "row_group_scale", None), layer.row_scale[:, None]
    columns, inputs = layer.in_features, _inputs(layer)
    if groups is None:
        # Two's complement as values of 0 to 15, which are 8 more; a scale times a power of two is as exact.
        return IntegerWeight(layer.values ^ 0x88, BITS, columns, scale * _BYTE, _HALF, columns, inputs)
    strip = max(1, STRIP // columns)
    values = torch.empty(len(scale), columns, dtype=torch.int8, device=scale.device)
    for into, words, each in zip(values.split(strip), layer.values.split(strip), groups.split(strip), strict=True):
        into.copy_(_round_groups(unpack(words, BITS, columns), each, layer.scheme.group_size))
    return IntegerWeight(values, 8, columns, scale, 0, columns, inputs)


def qload_embedding(layer: LayerPiece, ids: Tensor) -> Tensor:
    groups = getattr(layer, "row_group_scale", None)
    return _scale(layer, layer.values[ids], layer.row_scale[ids], None if groups is None else groups[ids])


def qload_apply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(_inputs(layer).round(x, layer.agree), qload_dequantize(layer).to(x.dtype), bias)


def qload_process_weights_after_loading(layer: Layer) -> None:
    """Store values and scales by rows: the same bytes in the plain order."""
    if getattr(layer, "B", None) is None:
        return
    grouped = "s_group" in layer.declared
    values = _order_values(layer.get_parameter("B"), grouped)
    scales = _order_rows(layer.get_parameter("s_channel"), _order_of_channels()).squeeze(-2)
    layer.derive(packed("values", out(), in_(2), dtypes=("U8",)), pack(values, BITS, torch.uint8))
    layer.derive(channel_scale("row_scale", out(), dtypes=("F32",)), scales.contiguous())
    if grouped:
        groups = _order_rows(layer.get_parameter("s_group"), _order_of_groups()).mT.contiguous()
        group = layer.scheme.group_size
        layer.derive(group_scale("row_group_scale", out(), in_(group), dtypes=("F16",)), groups)
        layer.set_tensor("s_group", None)
    layer.set_tensor("B", None)
    layer.set_tensor("s_channel", None)


def _scale(layer: LayerPiece, words: Tensor, rows: Tensor, groups: Tensor | None) -> Tensor:
    values = unpack(words, BITS, layer.in_features)
    if groups is None:
        # Four bits as the high ones of eight, two's complement.
        return (values << BITS).view(torch.int8).float() * rows[:, None]
    return _round_groups(values, groups, layer.scheme.group_size) * rows[:, None]


def _round_groups(values: Tensor, scales: Tensor, group: int) -> Tensor:
    """Values of four bits times the scales of their groups, as the whole numbers of int8, in float32."""
    rounded = scale_groups(values, scales.float(), _HALF, group).round_()
    # Adding zero leaves one zero of the two, as whole numbers have.
    return rounded.clamp_(*_INT8).add_(0.0)


def _inputs(layer: LayerPiece) -> Inputs:
    return Inputs(rounding=QqqRounding()) if layer.quantize_activations else Inputs()


def _choose_scale(x: Tensor, agree: Agree) -> Tensor:
    scale = agree(x.abs().amax(-1, keepdim=True)).float() / _INT8[1]
    return scale.clamp_min(torch.finfo(torch.float32).tiny)


def _order_values(words: Tensor, grouped: bool) -> Tensor:
    """Values [..., rows, columns] of words [..., columns / 16, rows * 2]."""
    stored = unpack(words, BITS, words.shape[-1] * 8)
    tiles = stored.unflatten(-1, (-1, ROWS * TILE))[..., _order_of_tiles(grouped).to(words.device)]
    square = tiles.flatten(-2).unflatten(-1, (-1, TILE, TILE))
    # [columns / 16, rows / 16, column, row] to [rows, columns].
    ordered: Tensor = square.movedim(-4, -3).movedim(-1, -3).flatten(-2).flatten(-3, -2)
    return ordered


def _order_rows(scales: Tensor, order: Tensor) -> Tensor:
    ordered: Tensor = scales.unflatten(-1, (-1, len(order)))[..., order.to(scales.device)].flatten(-2)
    return ordered


def _order_of_tiles(grouped: bool) -> Tensor:
    """Where each of the 4 * 16 * 16 values of four tiles lies: each of 32 threads holds eight of each tile."""
    thread, tile, block, step = torch.meshgrid(*map(torch.arange, (32, 4, 2, 4)), indexing="ij")
    places = 16 * (4 * (thread % 4) + step) + thread // 4 + 8 * block + 256 * tile
    interleave = (0, 2, 4, 6, 1, 3, 5, 7) if grouped else (4, 0, 5, 1, 6, 2, 7, 3)
    return places.reshape(-1, 8)[:, list(interleave)].flatten().argsort()


def _order_of_groups() -> Tensor:
    return torch.arange(ROWS).view(8, 8).T.flatten().argsort()


def _order_of_channels() -> Tensor:
    thread, pair = torch.meshgrid(torch.arange(4), torch.tensor((0, 1, 8, 9, 16, 17, 24, 25)), indexing="ij")
    return (2 * thread + pair).reshape(ROWS_OF_CHANNELS).argsort()
