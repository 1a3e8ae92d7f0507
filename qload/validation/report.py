"""The verdict on a checkpoint: its plan's findings, without the copying."""

from dataclasses import dataclass
from pathlib import Path

from qload.checkpoint import Checkpoint, open_folder
from qload.errors import CheckpointError, MethodError
from qload.findings import Finding, Severity, report
from qload.outline import Outline, outline, thin
from qload.plan import find_faults
from qload.quantization import Quantization, resolve
from qload.registry import Registry


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in the checkpoint at `path`; `method` is None where it could not be had."""

    path: Path
    method: str | None
    tensors: int
    nbytes: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def ok(self) -> bool:
        """Whether nothing was found that stops a load."""
        return not self.errors


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


def validate(path: str | Path, *, registry: Registry | None = None) -> Report:
    """Validate the checkpoint in the folder or file `path` from its config and headers alone.

    Raises QloadError if there is no such folder; every other fault is a finding.
    """
    found = examine(path, registry if registry is not None else Registry.discover())
    checkpoint = found.checkpoint
    return Report(checkpoint.path, found.method, len(checkpoint.tensors), checkpoint.nbytes, found.findings)


def examine(path: str | Path, registry: Registry) -> Examination:
    """Read a checkpoint's headers, draw its outline and find its faults; raises as `validate` does."""
    checkpoint = open_checkpoint(Path(path), registry)
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
    return resolve(open_checkpoint(Path(path), registry), registry)


def open_checkpoint(path: Path, registry: Registry) -> Checkpoint:
    """Open a checkpoint through the plugin that knows its format, or as a folder of safetensors."""
    opened: Checkpoint | None = registry.call_plugins("qload_open_checkpoint", path)
    return opened if opened is not None else open_folder(path)


def _plan(checkpoint: Checkpoint, quantization: Quantization) -> Examination:
    drawn = outline(checkpoint, quantization)
    findings = (*_find_faults(checkpoint, quantization, drawn), *drawn.findings)
    return Examination(checkpoint, findings, quantization, drawn)


def _find_faults(checkpoint: Checkpoint, quantization: Quantization, drawn: Outline) -> tuple[Finding, ...]:
    """The plan's findings; layers that headers cannot tell apart are planned one by one only where one has some."""
    if "qload_check" not in quantization.method.declaration:
        samples = thin(checkpoint, quantization, drawn)
        if not find_faults(samples, quantization, drawn.samples, drawn.plain):
            return ()
    return find_faults(checkpoint, quantization, drawn.targets, drawn.plain)
