"""Ranks: groups of a device mesh, and the pairs of what they do together that are each other's gradient."""

from qload.torch.parallel.groups import Group
from qload.torch.parallel.mesh import device_of, group_of, start_mesh
from qload.torch.parallel.pairs import copy, gather, reduce, scatter

__all__ = ["Group", "copy", "device_of", "gather", "group_of", "reduce", "scatter", "start_mesh"]
