"""Checkpoints as they lie on disk: headers, index, config and side files; never tensor data."""

from qload.checkpoint.folder import Checkpoint, open_folder
from qload.checkpoint.header import Header, Interleaving, TensorEntry, read_header
from qload.checkpoint.names import Modules
from qload.checkpoint.storage import Folder, Storage, list_files

__all__ = [
    "Checkpoint",
    "Folder",
    "Header",
    "Interleaving",
    "Modules",
    "Storage",
    "TensorEntry",
    "list_files",
    "open_folder",
    "read_header",
]
