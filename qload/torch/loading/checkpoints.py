"""Opens a checkpoint for loading, and picks what reads its data."""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qload.catalogue import Severity
from qload.checkpoint import Checkpoint, TensorEntry
from qload.errors import CheckpointError, QloadError
from qload.examination import check_local, open_checkpoint
from qload.findings import report
from qload.registry import Registry
from qload.torch.feeding import describe
from qload.torch.loading.holding import MemoryReader
from qload.torch.loading.orders import Reader
from qload.torch.loading.reading import FileReader


def open_for_loading(
    path: str | Path, registry: Registry, device: torch.device, *, allow_pickle: bool = False
) -> tuple[Checkpoint, Reader]:
    """The checkpoint in a folder, and the reader of its data.

    Pickled weights are read only with `allow_pickle`, and then by torch's unpickler for weights, which runs
    no code of theirs. Raises CheckpointError where they are not allowed, and QloadError for a repository on the hub.
    """
    check_local(path)
    checkpoint = open_checkpoint(path, registry)
    if not checkpoint.pickled:
        return checkpoint, FileReader(checkpoint.folder, device)
    if not allow_pickle:
        finding = report(
            "QL001",
            "the weights are pickled, and unpickling can run code",
            file=", ".join(checkpoint.pickled),
            remedy="convert them to safetensors, or load with allow_pickle=True",
        )
        raise CheckpointError(str(path), [replace(finding, severity=Severity.ERROR)])
    return _unpickle(checkpoint)


def list_entries(tensors: Mapping[str, Tensor], file: str = "memory") -> dict[str, TensorEntry]:
    """What a header would say of tensors that are in memory."""
    return {name: describe(tensor, name, file) for name, tensor in tensors.items()}


def _unpickle(checkpoint: Checkpoint) -> tuple[Checkpoint, Reader]:
    tensors: dict[str, Tensor] = {}
    entries: dict[str, TensorEntry] = {}
    for file in checkpoint.pickled:
        loaded = _load_pickled(checkpoint.path / file, file)
        found = {name: value for name, value in loaded.items() if _is_weight(name, value)}
        tensors |= found
        entries |= list_entries(found, file)
    opened = Checkpoint(checkpoint.path, checkpoint.config, entries, checkpoint.files, checkpoint.findings)
    return opened, MemoryReader(tensors)


def _is_weight(name: object, value: object) -> bool:
    """Whether an entry is a named tensor whose data are there, and lie in memory as a file's would."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not value.is_meta and not value.is_quantized


def _load_pickled(path: Path, name: str) -> dict[str, Any]:
    try:
        # Files of torch's first format, which is no archive, cannot be mapped.
        state = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise QloadError("the pickled weights cannot be read safely", where=name, found=reason) from error
    if not isinstance(state, dict):
        raise QloadError("the pickled file holds no weights", where=name, found=type(state).__name__)
    return state
