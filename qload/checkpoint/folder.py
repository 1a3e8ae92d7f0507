"""A folder in Hugging Face layout: config.json, one weight file or several with an index."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qload.checkpoint.documents import find_pointers, read_json
from qload.checkpoint.header import TensorEntry
from qload.checkpoint.index import INDEX
from qload.checkpoint.names import Modules, group_tensors, group_texts
from qload.checkpoint.sets import SINGLE, SUFFIX
from qload.checkpoint.storage import Folder, Storage
from qload.checkpoint.weights import find_weights, read_headers
from qload.findings import Finding, report

CONFIG = "config.json"
ADAPTER = "adapter_model.safetensors"
_PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_PERHAPS_PICKLED = (".bin", ".pt", ".pth")
_OF_TRAINING = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|adapter_model).*")
"""Pickled files that trainers leave, none of which holds the weights of a model."""
_PERHAPS_POINTERS = (".json", ".model")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint without its data: config, the entry of every stored tensor, and what is wrong so far.

    `files` are the folder's names. `pickled` are weight files that only unpickling can read.
    `metadata` is that of the weight files, by file. `lost` are tensors that the index places in files that
    cannot be read. `path` may be one of the files itself. `tokenizer` is what transformers' AutoTokenizer has to be
    told to find one in the folder that is not in files of its own. `storage` is where the files lie, a folder where it
    is None.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    files: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    pickled: tuple[str, ...] = ()
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    storage: Storage | None = field(default=None, compare=False)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.path.parent if self.path.is_file() else self.path

    @property
    def config_path(self) -> Path:
        """The file that the config comes from: config.json, or whatever else the checkpoint is."""
        return self.path / CONFIG if CONFIG in self.files else self.path

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A side file's object, or None where the folder lacks it or it is no JSON object."""
        if name not in self.files:
            return None
        value, _ = read_json(self.storage or Folder(self.folder), name)
        return value

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum([entry.stop - entry.start for entry in self.tensors.values()])

    @property
    def is_readable(self) -> bool:
        """Whether there is enough to plan with: a config, and some tensors."""
        return bool(self.config and self.tensors)

    @cached_property
    def modules(self) -> Modules:
        """The tensors stored below each module: their names below it, and those that they are stored under."""
        return group_tensors(self.tensors, [name for name, entry in self.tensors.items() if len(entry.shape) > 2])

    @cached_property
    def descriptions(self) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
        """What the files' metadata says of names below each module: every text that any file has for it, once."""
        return group_texts(self.metadata.values())


def open_folder(storage: Storage) -> Checkpoint:
    """Read a checkpoint's config, index and headers; whatever is wrong is a finding."""
    config, fault = _read_config(storage)
    weights = find_weights(storage)
    stored = read_headers(storage, weights)
    pickled = () if weights.files else _find_pickled(storage.names)
    findings = (
        *([fault] if fault is not None else []),
        *weights.findings,
        *stored.findings,
        *_check_presence(storage.names, weights.files, pickled),
        *_find_pointers(storage, pickled),
    )
    return Checkpoint(
        Path(storage.place),
        config or {},
        stored.tensors,
        storage.names,
        findings,
        pickled,
        stored.metadata,
        stored.lost(weights),
        storage=storage,
    )


def _find_pickled(files: tuple[str, ...]) -> tuple[str, ...]:
    """Files named as pickled weights are; without any, whatever may be some, for trainers leave others beside."""
    named = tuple(name for name in files if _PICKLED.fullmatch(name))
    perhaps = (name for name in files if name.endswith(_PERHAPS_PICKLED) and not _OF_TRAINING.fullmatch(name))
    return named or tuple(perhaps)


def _choose_side_files(files: tuple[str, ...], pickled: tuple[str, ...]) -> Iterator[str]:
    """The files besides config and weights that git-LFS keeps: an index is only among them where it is not read."""
    for name in files:
        if name in pickled or (name.endswith(_PERHAPS_POINTERS) and name not in (CONFIG, INDEX)):
            yield name


def _find_pointers(storage: Storage, pickled: tuple[str, ...]) -> tuple[Finding, ...]:
    """Small files that git-LFS has not replaced; a storage that is no folder gives what they point to."""
    if not isinstance(storage, Folder):
        return ()
    return tuple(find_pointers(storage, _choose_side_files(storage.names, pickled)))


def _read_config(storage: Storage) -> tuple[dict[str, Any] | None, Finding | None]:
    if CONFIG not in storage.names:
        return None, report(
            "QL012", "there is no config.json", file=CONFIG, remedy="download it too, beside the weights"
        )
    config, fault = read_json(storage, CONFIG)
    # A link that leads nowhere is a config that is not there.
    return config, replace(fault, code="QL012") if fault is not None and fault.code == "QL005" else fault


def _check_presence(files: tuple[str, ...], names: tuple[str, ...], pickled: tuple[str, ...]) -> Iterator[Finding]:
    if names:
        return
    if pickled:
        yield report(
            "QL001",
            "the weights are pickled, and unpickling can run code",
            file=pickled[0],
            remedy="convert them to safetensors, or load with allow_pickle=True",
        )
    else:
        yield _report_absence([name for name in files if name.endswith(SUFFIX)])


def _report_absence(others: list[str]) -> Finding:
    expected = f"{SINGLE}, or {INDEX} and its files"
    if others == [ADAPTER]:
        remedy = "give the folder of the model that the adapter is for"
        return report("QL011", "there is only an adapter", file=ADAPTER, expected=expected, remedy=remedy)
    remedy = f"if these are the weights, name the file {SINGLE}, or write an index" if others else ""
    return report("QL011", "there are no weights", expected=expected, found=", ".join(others[:3]), remedy=remedy)
