"""Divides a model that one process has, built whole, over the ranks of a device mesh."""

from qload.torch.spmd.backends import Backend
from qload.torch.spmd.divisions import Plan
from qload.torch.spmd.model import shard_model
from qload.torch.spmd.tensors import TensorBackend
from qload.torch.spmd.ways import Way

__all__ = ["Backend", "Plan", "TensorBackend", "Way", "shard_model"]
