"""Reads a checkpoint's config and headers, chooses its method, draws its outline, and finds what is wrong so far."""

from dataclasses import dataclass
from pathlib import Path

from qload.checkpoint import Checkpoint, Folder, Storage, open_folder
from qload.errors import CheckpointError, MethodError
from qload.findings import Finding, report
from qload.outline import Outline, outline, thin
from qload.plan import find_faults
from qload.quantization import Quantization, resolve
from qload.registry import Registry


@dataclass(frozen=True, slots=True)
class Examination:
    """A checkpoint with what its headers say of its model, and what is wrong with it.

    `quantization` and `outline` are None where they could not be had.
    """

    checkpoint: Checkpoint
    findings: tuple[Finding, ...]
    quantization: Quantization | None = None
    outline: Outline | None = None

    @property
    def method(self) -> str | None:
        """The name of the checkpoint's method."""
        return None if self.quantization is None else self.quantization.method.name


def examine(path: str | Path, registry: Registry) -> Examination:
    """Read a checkpoint's headers, draw its outline and find its faults.

    Raises QloadError if there is no such folder; every other fault is a finding.
    """
    checkpoint = open_checkpoint(path, registry)
    if not checkpoint.is_readable and checkpoint.findings:
        return Examination(checkpoint, checkpoint.findings)
    try:
        return _plan(checkpoint, resolve(checkpoint, registry))
    except CheckpointError as error:
        reasons = [fault for fault in error.findings if isinstance(fault, Finding)]
        return Examination(checkpoint, (*checkpoint.findings, *reasons))
    except MethodError as error:
        fault = report("QL104", str(error), file="config.json")
        return Examination(checkpoint, (*checkpoint.findings, fault))


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
    return opened if opened is not None else open_folder(storage)


def open_storage(path: str | Path) -> tuple[Storage, str]:
    """Where the files of a checkpoint lie, and the one of them that `path` names, if it names one.

    Raises QloadError if there is no such folder.
    """
    place = Path(path)
    return (Folder(place.parent), place.name) if place.is_file() else (Folder(place), "")


def _plan(checkpoint: Checkpoint, quantization: Quantization) -> Examination:
    drawn = outline(checkpoint, quantization)
    findings = (*_find_faults(checkpoint, quantization, drawn), *drawn.findings, *quantization.findings)
    return Examination(checkpoint, findings, quantization, drawn)


def _find_faults(checkpoint: Checkpoint, quantization: Quantization, drawn: Outline) -> tuple[Finding, ...]:
    """The plan's findings; layers that headers cannot tell apart are planned one by one only where one has some."""
    if "qload_check" not in quantization.method.declaration:
        samples = thin(checkpoint, quantization, drawn)
        if not find_faults(samples, quantization, drawn.samples, drawn.plain):
            return ()
    return find_faults(checkpoint, quantization, drawn.targets, drawn.plain)
