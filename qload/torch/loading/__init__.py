"""Carries plans out: opens checkpoints, has readers fill what copies name, and finishes layers one after another."""

from qload.torch.loading.modules import load_tensors, load_weights
from qload.torch.loading.orders import Order, Reader, ReaderFactory
from qload.torch.loading.progress import LoadReport, Progress
from qload.torch.loading.reading import FileReader

__all__ = [
    "FileReader",
    "LoadReport",
    "Order",
    "Progress",
    "Reader",
    "ReaderFactory",
    "load_tensors",
    "load_weights",
]
