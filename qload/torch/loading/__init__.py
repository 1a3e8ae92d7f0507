"""Carries plans out: opens checkpoints, reads what copies name, and fills layers one after another."""

from qload.torch.loading.modules import load_tensors, load_weights
from qload.torch.loading.progress import LoadReport, Progress

__all__ = ["LoadReport", "Progress", "load_tensors", "load_weights"]
