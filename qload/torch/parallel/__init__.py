"""Ranks: how they are started and fail, groups of a mesh, and the pairs of what they do together."""

from qload.torch.parallel.agreement import agree, agreeing
from qload.torch.parallel.counts import SharedCount
from qload.torch.parallel.groups import Group
from qload.torch.parallel.mesh import device_of, group_of, make_mesh, start_mesh
from qload.torch.parallel.pairs import copy, gather, maximize, reduce, scatter
from qload.torch.parallel.partitions import gather_shares, make_share, take_share
from qload.torch.parallel.processes import run_ranks

__all__ = [
    "Group",
    "SharedCount",
    "agree",
    "agreeing",
    "copy",
    "device_of",
    "gather",
    "gather_shares",
    "group_of",
    "make_mesh",
    "make_share",
    "maximize",
    "reduce",
    "run_ranks",
    "scatter",
    "start_mesh",
    "take_share",
]
