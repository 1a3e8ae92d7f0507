"""Copies regions of whole tensors that are in memory into regions of parameters."""

from torch import Tensor

from qload.layout import Region


def copy_region(stored: Tensor, source: Region, destination: Tensor, *, turned: bool = False) -> int:
    """Copy a region of `stored` into a parameter's region, cast by value; returns the bytes read.

    `destination` may have axes of one entry besides, and is `turned` where its last two are in the other order.
    """
    region = stored[tuple(interval.slice for interval in source)]
    shape_as(destination, source, turned).copy_(region)
    return region.nbytes


def shape_as(destination: Tensor, region: Region, turned: bool) -> Tensor:
    """A region of a parameter, with the axes of the region of a stored tensor."""
    sizes = [interval.size for interval in region]
    if not turned:
        return destination.view(sizes)
    return destination.view(*sizes[:-2], sizes[-1], sizes[-2]).mT
