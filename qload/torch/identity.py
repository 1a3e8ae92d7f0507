"""What a parameter is: the tensor of a layer that it holds, and whose share of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qload.declare import ParameterSpec
from qload.geometry import Geometry, Shard
from qload.plan import Source
from qload.quantization import Treatment
from qload.sharding import match_share
from qload.torch.dtypes import make_filled

PartOfExpert = tuple[int, int | None]
"""The numbers of a part and of the expert that it belongs to; None for a layer that has no experts."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a parameter is: the declared tensor `spec` of the layer of that name and geometry, cut for one rank.

    `aliases` are further names of the layer's parts, in their order. `order` has the axes of the declaration in the
    order in which the parameter has them.
    """

    layer: str
    spec: ParameterSpec
    geometry: Geometry
    shard: Shard
    treatment: Treatment
    aliases: tuple[str, ...] = ()
    order: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """The parameter's name, its layer's before it."""
        return f"{self.layer}.{self.spec.name}" if self.layer else self.spec.name

    @property
    def owned(self) -> frozenset[PartOfExpert]:
        """The parts of the experts that the rank has a share of."""
        experts = None if self.geometry.experts is None else range(self.shard.experts.start, self.shard.experts.stop)
        return list_parts(Source("", parts=len(self.geometry.parts)), experts)

    def arrange(self, tensor: Tensor) -> Tensor:
        """The parameter's tensor with its axes in the declaration's order."""
        if not self.order:
            return tensor
        return tensor.permute([self.order.index(axis) for axis in range(len(self.order))])

    def make_blank(self, dtype: str, device: torch.device, length: int | None = None) -> Tensor:
        """The rank's share, in the declaration's order, before anything is loaded: padding is zero.

        Everything else holds what cannot pass for data. `length` is that of an axis that only stored tensors know.
        """
        spec = self.spec if length is None else self.spec.measure(length)
        shape = spec.layout.local_shape(self.geometry.extents, self.shard.local(self.geometry).extents)
        if not any(cut.padding for cut in self.shard.out):
            return make_filled(shape, dtype, spec.fill, device)
        blank = make_filled(shape, dtype, 0, device)
        for _, region in match_share(spec.layout, self.geometry, self.shard):
            sizes = tuple(interval.size for interval in region)
            blank[tuple(interval.slice for interval in region)] = make_filled(sizes, dtype, spec.fill, device)
        return blank


def list_parts(source: Source, experts: range | None) -> frozenset[PartOfExpert]:
    """The parts that a source stores, of its expert, or of all `experts` of the layer."""
    numbers = range(source.part, source.part + source.parts)
    owners = [source.expert] if source.expert is not None or experts is None else experts
    return frozenset((part, expert) for part in numbers for expert in owners)
