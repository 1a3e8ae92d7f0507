"""Checkpoints as they lie on disk: headers, index, config and side files; never tensor data."""

from qload.checkpoint.folder import Checkpoint, list_files, open_folder
from qload.checkpoint.header import Header, Interleaving, TensorEntry, read_header
from qload.checkpoint.names import Modules

__all__ = [
    "Checkpoint",
    "Header",
    "Interleaving",
    "Modules",
    "TensorEntry",
    "list_files",
    "open_folder",
    "read_header",
]
