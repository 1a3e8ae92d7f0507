"""The verdict on a checkpoint: its plan's findings, without the copying."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qload.checkpoint import Checkpoint, open_folder
from qload.errors import CheckpointError, MethodError
from qload.findings import Finding, Severity, report
from qload.outline import Outline, outline
from qload.plan import Target, find_faults
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


def validate(path: str | Path, *, registry: Registry | None = None) -> Report:
    """Validate the checkpoint in the folder or file `path` from its config and headers alone.

    Raises QloadError if there is no such folder; every other fault is a finding.
    """
    registry = registry if registry is not None else Registry.discover()
    checkpoint = open_checkpoint(Path(path), registry)
    method, findings = _find(checkpoint, registry)
    return Report(checkpoint.path, method, len(checkpoint.tensors), checkpoint.nbytes, findings)


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


def _find(checkpoint: Checkpoint, registry: Registry) -> tuple[str | None, tuple[Finding, ...]]:
    if not checkpoint.is_readable and checkpoint.findings:
        return None, checkpoint.findings
    try:
        return _plan(checkpoint, resolve(checkpoint, registry))
    except CheckpointError as error:
        reasons = [fault for fault in error.findings if isinstance(fault, Finding)]
        return None, (*checkpoint.findings, *reasons)
    except MethodError as error:
        return None, (*checkpoint.findings, report("QL104", str(error), file="config.json"))


def _plan(checkpoint: Checkpoint, quantization: Quantization) -> tuple[str, tuple[Finding, ...]]:
    drawn = outline(checkpoint, quantization)
    return quantization.method.name, (*_find_faults(checkpoint, quantization, drawn), *drawn.findings)


def _find_faults(checkpoint: Checkpoint, quantization: Quantization, drawn: Outline) -> tuple[Finding, ...]:
    """The plan's findings; layers that headers cannot tell apart are planned one by one only where one has some."""
    if "qload_check" not in quantization.method.declaration:
        thin = _thin(checkpoint, quantization, drawn)
        if not find_faults(thin, quantization, drawn.samples, drawn.plain):
            return ()
    return find_faults(checkpoint, quantization, drawn.targets, drawn.plain)


def _thin(checkpoint: Checkpoint, quantization: Quantization, drawn: Outline) -> Checkpoint:
    """The checkpoint without the layers that are like another one."""
    names = [name for sample in drawn.samples for name in _names(sample, checkpoint, quantization)]
    names += [tensor.stored_as for tensor in drawn.plain]
    return replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in names})


def _names(layer: Target, checkpoint: Checkpoint, quantization: Quantization) -> Iterator[str]:
    """What a layer stores itself, and what it reads of the modules below it."""
    yield from checkpoint.modules.get(layer.name, {}).values()
    for spec in quantization.declare(layer.treatment, layer.geometry):
        name = f"{layer.name}.{spec.stored_as}"
        if name in checkpoint.tensors:
            yield name
