"""The readers that can be asked for by name."""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qload.errors import QloadError
from qload.torch.loading.caching import is_cold
from qload.torch.loading.direct import THREADS, DirectFile, open_file
from qload.torch.loading.imaging import ImageReader
from qload.torch.loading.orders import Reader, ReaderFactory
from qload.torch.loading.reading import FileReader
from qload.torch.loading.slices import SliceReader
from qload.torch.loading.streaming import StreamedFile

AUTO = "auto"
_LEAST = 16 << 20
"""Smaller files hold few weights, or are read in no time."""
_READERS: dict[str, Callable[[Path, torch.device, bool], Reader]] = {
    AUTO: lambda folder, device, alone: _choose(folder, device, alone),
    "buffered": lambda folder, device, alone: FileReader(folder, device),
    "direct": lambda folder, device, alone: FileReader(folder, device, threads=THREADS, open_file=DirectFile),
    "safetensors": lambda folder, device, alone: SliceReader(folder, device),
    "runai": lambda folder, device, alone: FileReader(
        folder, device, open_file=partial(StreamedFile, _import("runai-model-streamer"))
    ),
    "fastsafetensors": lambda folder, device, alone: ImageReader(_import("fastsafetensors"), folder, device),
}


def make_reader(asked: str | ReaderFactory, folder: Path, device: torch.device, *, alone: bool) -> Reader:
    """The reader of that name, or of the caller's own, for the files in a folder.

    `alone` says that no other rank reads them too. Raises QloadError for a name that none has, and for a reader whose
    package is not installed.
    """
    if callable(asked):
        return asked(folder, device)
    if asked not in _READERS:
        raise QloadError("no reader has that name", found=repr(asked), expected=", ".join(_READERS))
    return _READERS[asked](folder, device, alone)


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        found, remedy = str(error), f"pip install {package}"
        raise QloadError("the reader's package is not installed", where=package, found=found, remedy=remedy) from error


def _choose(folder: Path, device: torch.device, alone: bool) -> Reader:
    """Past the page cache, if no other rank is to find the files there, and most of them are not."""
    if alone and device.type in ("cpu", "cuda") and _is_mostly_cold(folder):
        return FileReader(folder, device, threads=THREADS, open_file=open_file)
    return FileReader(folder, device)


def _is_mostly_cold(folder: Path) -> bool:
    sizes = {path: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    cold = sum(size for path, size in sizes.items() if size >= _LEAST and is_cold(path))
    return cold * 2 > sum(sizes.values())
