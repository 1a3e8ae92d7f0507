"""Reads a checkpoint's config and headers, chooses its method, draws its outline, and finds what is wrong so far."""

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from qload.checkpoint import Checkpoint, Folder, Storage, open_folder
from qload.config_file import name_file, open_config, read_config_file
from qload.configs import find_sections
from qload.errors import CheckpointError, MethodError, QloadError
from qload.findings import Finding, report
from qload.outline import Outline, outline, thin
from qload.plan import find_faults
from qload.quantization import Quantization
from qload.registry import Registry
from qload.resolution import resolve

Read = TypeVar("Read")

REMOTE = "hf:"
"""What an address begins with that is no path: of a repository on the hub."""
_WEIGHTS = (".safetensors", ".json")
"""The endings of the files that stand for the folder in which they lie."""


@dataclass(frozen=True, slots=True)
class Examination:
    """A checkpoint with what its headers say of its model, and what is wrong with it.

    `quantization` and `outline` are None where they could not be had.
    """

    checkpoint: Checkpoint
    findings: tuple[Finding, ...]
    quantization: Quantization | None = None
    outline: Outline | None = None
    registry: Registry | None = field(default=None, compare=False, repr=False)

    @property
    def method(self) -> str | None:
        """The name of the checkpoint's method."""
        return None if self.quantization is None else self.quantization.method.name


def examine(path: str | Path, registry: Registry) -> Examination:
    """Read a checkpoint's headers, draw its outline and find its faults; of a JSON file the config's alone.

    Raises QloadError if there is no such folder, or the file says nothing of a model; every other fault is a finding.
    """
    config = None if is_remote(path) else open_config(path)
    if config is not None:
        found = _examine_config(config, registry)
    else:
        found = _examine(open_checkpoint(path, registry), registry)
    return replace(found, registry=registry)


def _examine(checkpoint: Checkpoint, registry: Registry) -> Examination:
    if not checkpoint.is_readable and checkpoint.findings:
        return Examination(checkpoint, checkpoint.findings)
    found = _read(lambda: _plan(checkpoint, resolve(checkpoint, registry)))
    return found if isinstance(found, Examination) else Examination(checkpoint, (*checkpoint.findings, *found))


def _examine_config(checkpoint: Checkpoint, registry: Registry) -> Examination:
    if checkpoint.findings and not checkpoint.config:
        return Examination(checkpoint, checkpoint.findings)
    found = _read(lambda: read_config_file(checkpoint, registry))
    if isinstance(found, Quantization):
        return Examination(checkpoint, (*checkpoint.findings, *found.findings), found)
    return Examination(checkpoint, (*checkpoint.findings, *name_file(tuple(found), checkpoint.path.name)))


def _read(read: Callable[[], Read]) -> Read | list[Finding]:
    """What is read, or why it cannot be."""
    try:
        return read()
    except CheckpointError as error:
        return [fault for fault in error.findings if isinstance(fault, Finding)]
    except MethodError as error:
        return [report("QL104", str(error), file="config.json")]


def read_quantization(path: str | Path, *, registry: Registry | None = None) -> Quantization:
    """What the checkpoint in the folder or file `path` is quantized with, for building layers before loading them.

    Raises CheckpointError or MethodError where that cannot be told.
    """
    registry = registry if registry is not None else Registry.discover()
    return resolve(open_checkpoint(path, registry), registry)


def open_checkpoint(path: str | Path, registry: Registry) -> Checkpoint:
    """Open a checkpoint through the plugin that knows its format, or as a folder of safetensors."""
    storage, file = open_storage(path)
    opened: Checkpoint | None = registry.call_plugins("qload_open_checkpoint", storage, file)
    if opened is None and file and not file.endswith(_WEIGHTS):
        raise QloadError(
            "is no checkpoint that anybody knows how to open",
            where=str(path),
            expected="a folder of safetensors, one of its files, or a file that a plugin knows",
            remedy="give the folder that the checkpoint was downloaded into",
        )
    return opened if opened is not None else open_folder(storage)


def open_storage(path: str | Path) -> tuple[Storage, str]:
    """Where the files of a checkpoint lie, and the one of them that `path` names, if it names one.

    A path may be the address of a repository on the hub, `hf:org/name@revision`. Raises QloadError if there is no such
    folder or repository.
    """
    if is_remote(path):
        opened: tuple[Storage, str] = importlib.import_module("qload.hub").open_repository(path)
        return opened
    place = Path(path)
    # Path.is_file raises for a name that is too long, which is as absent as any other.
    return (Folder(place.parent), place.name) if os.path.isfile(place) else (Folder(place), "")  # noqa: PTH113


def is_remote(path: str | Path) -> bool:
    """Whether a path is the address of a repository, of which no more than headers can be read."""
    return str(path).startswith(REMOTE)


def check_local(path: str | Path) -> None:
    """Raise QloadError for the address of a repository: weights are loaded from files of this machine."""
    if is_remote(path):
        name, _, revision = str(path).removeprefix(REMOTE).partition("@")
        repository, file = "/".join(name.split("/")[:2]), " ".join(name.split("/", 2)[2:])
        words = ("hf download", repository, file, f"--revision {revision}" if revision else "")
        raise QloadError(
            "a checkpoint on the hub can be validated and planned, and not loaded from there",
            where=str(path),
            remedy=f"run `{' '.join(filter(None, words))}`, and load what it prints the path of",
        )


def _plan(checkpoint: Checkpoint, quantization: Quantization) -> Examination:
    drawn = outline(checkpoint, quantization)
    # What is wrong with the config comes first, for the rest may come of it.
    findings = (
        *quantization.findings,
        *_point(drawn.findings, checkpoint),
        *_find_faults(checkpoint, quantization, drawn),
    )
    return Examination(checkpoint, findings, quantization, drawn)


def _point(findings: Iterable[Finding], checkpoint: Checkpoint) -> Iterator[Finding]:
    """What a method refuses, with the section of the config that asks for it."""
    path = next((section.path for section in find_sections(checkpoint.config)), ())
    return (replace(each, pointer=path) if each.code == "QL104" and not each.pointer else each for each in findings)


def _find_faults(checkpoint: Checkpoint, quantization: Quantization, drawn: Outline) -> tuple[Finding, ...]:
    """The plan's findings; layers that headers cannot tell apart are planned one by one only where one has some."""
    if "qload_check" not in quantization.method.declaration:
        samples = thin(checkpoint, quantization, drawn)
        if not find_faults(samples, quantization, drawn.samples, drawn.plain):
            return ()
    return find_faults(checkpoint, quantization, drawn.targets, drawn.plain)
