"""Layouts: the axes of one stored tensor, and what of it holds a piece of its layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from qload.errors import LayoutError
from qload.layout.axes import Axis
from qload.layout.intervals import Cut, Dim, Extents, Interval, Region


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies: the segment of each dimension, and the cut inside it.

    A dimension without an entry means its first segment, whole.
    """

    segments: Mapping[Dim, int] = field(default_factory=dict)
    cuts: Mapping[Dim, Cut] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes of one stored tensor, in the order of its shape."""

    axes: tuple[Axis, ...]

    def shape(self, extents: Extents) -> tuple[int, ...]:
        """The whole tensor's shape in a layer with those extents."""
        return tuple(axis.length(extents) for axis in self.axes)

    def local_shape(self, extents: Extents, local: Extents) -> tuple[int, ...]:
        """A rank's shape: axes that are not cut follow the layer's `extents`, the others the rank's `local` ones."""
        return tuple(axis.length(extents if axis.is_uncut else local) for axis in self.axes)

    def region(self, extents: Extents, place: Place, whole: Extents | None = None) -> Region:
        """The entries of a tensor with those extents that hold the piece at `place`.

        `whole` are the extents that axes follow that are not cut, where they are not `extents`: those of the
        layer while `extents` are a rank's. Raises LayoutError where the piece splits a unit.
        """
        return tuple(
            _interval(axis, whole if whole is not None and axis.is_uncut else extents, place) for axis in self.axes
        )

    def pack(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The stored sizes of that many elements along each axis; also of where a share begins, instead of its size.

        Raises LayoutError where they do not fill whole entries, or are not one for each axis.
        """
        if len(sizes) != len(self.axes):
            raise LayoutError("a size is needed for each axis", expected=f"{len(self.axes)}", found=f"{len(sizes)}")
        return tuple(axis.pack(size) for axis, size in zip(self.axes, sizes, strict=True))

    def permute(self, *dims: int) -> "Layout":
        """The layout with its axes in another order, as `torch.permute` has it; negative ones count from the end.

        Raises LayoutError unless each axis is named once.
        """
        count = len(self.axes)
        order = [dim + count if dim < 0 else dim for dim in dims]
        if sorted(order) != list(range(count)):
            raise LayoutError(
                "the axes cannot be put in that order",
                expected=f"each of {count} axes once",
                found=str(list(dims)),
            )
        return Layout(tuple(self.axes[dim] for dim in order))

    @property
    def ratio(self) -> tuple[int, int]:
        """How many elements of a layer how many entries hold, all axes together."""
        return prod(axis.logical for axis in self.axes), prod(axis.stored for axis in self.axes)

    @property
    def is_matrix(self) -> bool:
        """Whether there are two axes beside one of experts, which can lie in either order."""
        return sum(axis.dim is not Dim.EXPERT for axis in self.axes) == 2

    def follows(self, dim: Dim) -> bool:
        """Whether any axis follows `dim`."""
        return any(axis.dim is dim for axis in self.axes)

    def is_solid(self, dim: Dim) -> bool:
        """Whether all elements of `dim` must stay together."""
        return any(axis.solid for axis in self.axes if axis.dim is dim)

    def unit(self, dim: Dim) -> int:
        """The number of elements of `dim` that must stay together on a rank, where they are not solid."""
        return max((axis.logical for axis in self.axes if axis.dim is dim and not axis.whole), default=1)

    def solidify(self, *dims: Dim) -> "Layout":
        """The layout with the axes along those dimensions solid."""
        return Layout(tuple(replace(axis, solid=axis.solid or axis.dim in dims) for axis in self.axes))

    @property
    def is_measured(self) -> bool:
        """Whether only what is stored says how long one of the axes is."""
        return any(axis.measured for axis in self.axes)

    def measure(self, length: int) -> "Layout":
        """The layout with that length where only what is stored has one."""
        return Layout(tuple(replace(axis, size=length) if axis.measured else axis for axis in self.axes))


def _interval(axis: Axis, extents: Extents, place: Place) -> Interval:
    if axis.dim is None:
        return Interval(0, axis.size)
    extent = extents[axis.dim]
    segment = place.segments.get(axis.dim, 0)
    whole = Cut(0, extent.sizes[segment])
    return axis.run(extent, segment, whole if axis.whole else place.cuts.get(axis.dim, whole))
