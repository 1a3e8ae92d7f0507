"""Opens GGUF files as checkpoints: one file, or the files that one was split into."""

import importlib
import re
from pathlib import Path

from qload.checkpoint import Checkpoint, Storage
from qload.findings import Finding, report

SUFFIX = ".gguf"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_NO_MODEL = re.compile(r"mmproj|imatrix", re.IGNORECASE)
"""Files of llama.cpp that lie beside models: projectors of images and sound, and statistics of activations."""
MAX_SPLITS = 1024


def qload_open_checkpoint(storage: Storage, file: str) -> Checkpoint | None:
    """A GGUF file, or a folder that has weights of no other kind."""
    if file:
        return _open(storage, file, _find_siblings(file)) if file.endswith(SUFFIX) else None
    names = storage.names
    models = [name for name in names if name.endswith(SUFFIX) and not _NO_MODEL.search(name)]
    if not models or any(name.startswith("model") and name.endswith(_WEIGHTS) for name in names):
        return None
    groups = {_find_siblings(name) for name in models}
    if len(groups) > 1:
        return Checkpoint(Path(storage.place), {}, {}, tuple(models), (_ambiguous(models),), storage=storage)
    return _open(storage, "", groups.pop())


def _find_siblings(name: str) -> tuple[str, ...]:
    """The names of all the files that one was split into, itself alone where it was not."""
    match = _SPLIT.fullmatch(name)
    if match is None or not 0 < int(match["count"]) <= MAX_SPLITS:
        return (name,)
    count = int(match["count"])
    return tuple(f"{match['stem']}-{number:05d}-of-{count:05d}{SUFFIX}" for number in range(1, count + 1))


def _open(storage: Storage, file: str, names: tuple[str, ...]) -> Checkpoint:
    """What reads the files is imported for them alone: whatever is opened, this plugin is asked first."""
    opened: Checkpoint = importlib.import_module("qload_gguf.checkpoint").read_checkpoint(storage, file, names)
    return opened


def _ambiguous(models: list[str]) -> Finding:
    return report(
        "QL011",
        "there are several models in the folder",
        found=", ".join(models[:8]),
        remedy="give the path of one file in place of the folder",
    )
