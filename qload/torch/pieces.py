"""Pieces: one part of one expert of a layer, which is what a method's hooks compute with.

A method never sees fused parts or stacks of experts. A layer whose parts are stored alike, each ending with
a whole unit, is one piece; otherwise every part is one. Only the tensors that a layer has count.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from torch import Tensor

from qload.declare import ParameterKind, ParameterSpec
from qload.geometry import Geometry
from qload.layout import Axis, Cut, Dim, Layout, Place

Index = tuple[int | slice, ...]
_SAMPLE = 128
"""Rows that show what all of them would, where no unit is longer."""


class Piece:
    """The tensors of one part of one expert, as attributes of their names; see `qload.hookspecs.LayerPiece`."""

    def __init__(
        self,
        scheme: Any,
        out_features: int,
        in_features: int,
        quantize_activations: bool,
        agree: Callable[[Tensor], Tensor],
        tensors: Mapping[str, Tensor | None],
    ) -> None:
        self.scheme = scheme
        self.out_features = out_features
        self.in_features = in_features
        self.quantize_activations = quantize_activations
        self.agree = agree
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the method declares no tensor {name!r}")


@dataclass(frozen=True, slots=True)
class Selection:
    """How many rows a piece has, and what to index each tensor with, the expert's axis aside."""

    out_features: int
    indices: Mapping[str, Index]


def select_pieces(specs: Iterable[ParameterSpec], geometry: Geometry, local: Geometry) -> tuple[Selection, ...]:
    """The pieces of a layer that has tensors of `specs`, and of which a rank holds `local`.

    Solid tensors have no room for padding: pieces of them have the rows that are stored.
    """
    specs = tuple(specs)
    solid = any(spec.layout.is_solid(Dim.OUT) for spec in specs)
    rows = geometry if solid else local
    if len(local.parts) == 1 or _is_uniform(specs, local, solid):
        return (Selection(rows.out_features, {spec.name: _index_first(spec.layout) for spec in specs}),)
    return tuple(
        Selection(part.size, {spec.name: _index(spec, geometry, local, number) for spec in specs})
        for number, part in enumerate(rows.parts)
    )


def select_sample(specs: Iterable[ParameterSpec], geometry: Geometry, local: Geometry) -> Selection | None:
    """Some rows of the first part that has so many, as a rank of more would hold them; None where rows hold together.

    `specs`, `geometry` and `local` are as for `select_pieces`.
    """
    layouts = [(spec.name, spec.layout) for spec in specs]
    if any(axis.is_uncut for _, layout in layouts for axis in layout.axes if axis.dim is Dim.OUT):
        return None
    rows = lcm(_SAMPLE, *(layout.unit(Dim.OUT) for _, layout in layouts))
    number = next((number for number, part in enumerate(local.parts) if part.size > rows), None)
    if number is None:
        return None
    place = Place({Dim.OUT: number, Dim.PART: number}, {Dim.OUT: Cut(0, rows)})
    return Selection(rows, {name: _place(layout, geometry, local, place) for name, layout in layouts})


def pick_expert(tensor: Tensor, expert: int | Tensor | None) -> Tensor:
    """One expert's of a stack; all of what is none. A number that is on the device picks without being waited for."""
    if expert is None:
        return tensor
    if isinstance(expert, Tensor):
        # Floats of one byte are no indexed dtype on every device.
        whole = tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
        return whole.index_select(0, expert.reshape(1)).squeeze(0).view(tensor.dtype)
    return tensor[expert]


def cast_scale(tensor: Tensor, spec: ParameterSpec, dtype: torch.dtype) -> Tensor:
    """Scales, and what is computed with like them.

    8-bit floats keep the dtype that gives them meaning, and float32 is not narrowed: who stores it computes in it.
    """
    computed = spec.kind.is_scale or spec.kind in (ParameterKind.ZERO_POINT, ParameterKind.WEIGHT)
    return tensor.to(dtype) if computed and tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _is_uniform(specs: tuple[ParameterSpec, ...], local: Geometry, solid: bool) -> bool:
    if any(spec.layout.follows(Dim.PART) for spec in specs):
        return False
    if solid:
        return False
    units = [spec.layout.unit(Dim.OUT) for spec in specs]
    if local.interleaved:
        # Rows that each stand for themselves are computed in the order in which they lie.
        return all(unit == 1 for unit in units)
    return all(part.size % unit == 0 for part in local.parts[:-1] for unit in units)


def _place(layout: Layout, geometry: Geometry, local: Geometry, place: Place) -> Index:
    region = layout.region(local.extents, place, geometry.extents)
    return tuple(
        interval.start if axis.dim is Dim.PART else slice(None) if axis.dim in (None, Dim.IN) else interval.slice
        for axis, interval in zip(layout.axes, region, strict=True)
        if axis.dim is not Dim.EXPERT
    )


def _index_first(layout: Layout) -> Index:
    """What to index the tensor of a single piece with: all of it, but for the axis of parts."""
    if not layout.follows(Dim.PART):
        return ()
    return tuple(0 if axis.dim is Dim.PART else slice(None) for axis in layout.axes if axis.dim is not Dim.EXPERT)


def _index(spec: ParameterSpec, geometry: Geometry, local: Geometry, part: int) -> Index:
    axes = [axis for axis in spec.layout.axes if axis.dim is not Dim.EXPERT]
    return tuple(_axis_index(axis, geometry if axis.is_uncut else local, part) for axis in axes)


def _axis_index(axis: Axis, holder: Geometry, part: int) -> int | slice:
    if axis.dim is Dim.PART:
        return part
    if axis.dim is not Dim.OUT:
        return slice(None)
    extent = holder.extents[Dim.OUT]
    return axis.run(extent, part, Cut(0, extent.sizes[part])).slice
