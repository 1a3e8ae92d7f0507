"""What a model wants of a checkpoint: layers with their sources, and plain tensors."""

from dataclasses import dataclass, replace

from qload.geometry import Geometry, Part, Shard
from qload.quantization import Treatment

Position = tuple[int, int, int | None, int, int, bool]
"""Which rows of which parts of which expert a source has, and how it lies."""


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors stored below `prefix`: `parts` consecutive parts of a layer from `part` on.

    `expert` is the one that they belong to; None means that the layer has no experts, or that all lie in
    one tensor. `before` and `after` are rows of other layers that are stored in the same tensors. `turned` tensors
    have their last two axes in the other order than is declared.
    """

    prefix: str
    part: int = 0
    parts: int = 1
    expert: int | None = None
    before: int = 0
    after: int = 0
    turned: bool = False

    @property
    def position(self) -> Position:
        """What sources share that fill the same share of layers that are alike."""
        return (self.part, self.parts, self.expert, self.before, self.after, self.turned)

    def belongs_to(self, layer: Geometry) -> bool:
        """Whether the layer has those parts, and that expert."""
        has_expert = self.expert is None or 0 <= self.expert < (layer.experts or 0)
        return has_expert and 0 <= self.part < self.part + self.parts <= len(layer.parts)

    def geometry(self, layer: Geometry) -> Geometry:
        """The geometry of the stored tensors. Parts that are fused on disk round as one."""
        parts, interleaved = layer.parts[self.part : self.part + self.parts], layer.interleaved and self.parts > 1
        if not interleaved:
            parts = (Part("", self.before + sum([part.size for part in parts]) + self.after),)
        experts = None if self.expert is not None else layer.experts
        return replace(layer, parts=parts, experts=experts, interleaved=interleaved)

    def has(self, part: int) -> bool:
        """Whether the part of that number is among those stored there."""
        return self.part <= part < self.part + self.parts

    def of_part(self, part: int, layer: Geometry) -> "Source":
        """The same tensors for a layer that is nothing but the part of that number."""
        own = layer.parts[self.part : self.part + self.parts]
        sizes, at = [each.size for each in own], part - self.part
        return replace(
            self, part=0, parts=1, before=self.before + sum(sizes[:at]), after=self.after + sum(sizes[at + 1 :])
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A layer of the model: its name there, whole geometry, treatment, this rank's shard and the sources."""

    name: str
    geometry: Geometry
    treatment: Treatment
    shard: Shard
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class PlainTarget:
    """A tensor that no layer of ours holds: its name in the model and on disk, shape, and dtype to cast to.

    Without a dtype the stored one is kept.
    """

    name: str
    stored_as: str
    shape: tuple[int, ...]
    dtype: str | None
    required: bool = True
