"""Pieces: one part of one expert of a layer, which is what a method's hooks compute with.

A method never sees fused parts or stacks of experts. A layer whose parts are stored alike, each ending with
a whole unit, is one piece; otherwise every part is one. Only the tensors that a layer has count.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qload.declare import ParameterSpec
from qload.geometry import Geometry
from qload.layout import Axis, Cut, Dim

Index = tuple[int | slice, ...]


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
    if _is_uniform(specs, local, solid):
        return (Selection(rows.out_features, {spec.name: () for spec in specs}),)
    return tuple(
        Selection(part.size, {spec.name: _index(spec, geometry, local, number) for spec in specs})
        for number, part in enumerate(rows.parts)
    )


def pick_expert(tensor: Tensor, expert: int | Tensor | None) -> Tensor:
    """One expert's of a stack; all of what is none. A number that is on the device picks without being waited for."""
    if expert is None:
        return tensor
    if isinstance(expert, Tensor):
        return tensor.index_select(0, expert.reshape(1)).squeeze(0)
    return tensor[expert]


def _is_uniform(specs: tuple[ParameterSpec, ...], local: Geometry, solid: bool) -> bool:
    if any(spec.layout.follows(Dim.PART) for spec in specs):
        return False
    if len(local.parts) == 1:
        return True
    if solid:
        return False
    units = [spec.layout.unit(Dim.OUT) for spec in specs]
    if local.interleaved:
        # Rows that each stand for themselves are computed in the order in which they lie.
        return all(unit == 1 for unit in units)
    return all(part.size % unit == 0 for part in local.parts[:-1] for unit in units)


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
