"""A model's config without its weights, or a file that producers write beside one: what it says by itself."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qload.checkpoint import Checkpoint, Folder
from qload.checkpoint.documents import read_json
from qload.checkpoint.folder import CONFIG
from qload.configs import Section, find_sections
from qload.errors import QloadError
from qload.findings import Finding
from qload.probes import find_refusals
from qload.quantization import Quantization
from qload.registry import UNQUANTIZED, Registry
from qload.resolution import resolve, resolve_side_file

_MARKS = ("architectures", "model_type")
"""One of these has every model's config."""


def open_config(path: str | Path) -> Checkpoint | None:
    """The checkpoint of which a JSON file alone is known, without a look at any other; None where `path` is none."""
    place = Path(path)
    if place.suffix != ".json" or not place.is_file():
        return None
    folder = Folder(place.parent)
    written, fault = read_json(folder, place.name)
    config = written if written is not None and _is_config(place.name, written) else {}
    files = (CONFIG if config or place.name == CONFIG else place.name,)
    return Checkpoint(place, config, {}, files, () if fault is None else (fault,), storage=folder)


def _is_config(name: str, written: Mapping[str, Any]) -> bool:
    return name == CONFIG or bool(find_sections(written)) or not written.keys().isdisjoint(_MARKS)


def read_config_file(checkpoint: Checkpoint, registry: Registry) -> Quantization:
    """What the file of a checkpoint from `open_config` says, with what is wrong with it.

    Raises CheckpointError or MethodError where it cannot be told, QloadError where it says nothing of a model.
    """
    name = checkpoint.path.name
    if CONFIG in checkpoint.files:
        sections = find_sections(checkpoint.config)
        quantization = resolve(checkpoint, registry)
        section = sections[0] if sections else Section({})
    else:
        quantization = _resolve_beside(checkpoint, name, registry)
        section = Section(checkpoint.read_json(name), name)
    refused = find_refusals(quantization, checkpoint.config, section) if _is_quantized(quantization) else ()
    return replace(quantization, findings=name_file((*refused, *quantization.findings), name))


def name_file(findings: tuple[Finding, ...], name: str) -> tuple[Finding, ...]:
    """Findings of the config, in the file that is the config here."""
    return tuple(replace(each, file=name) if each.file == CONFIG else each for each in findings)


def _is_quantized(quantization: Quantization) -> bool:
    return quantization.method.name != UNQUANTIZED


def _resolve_beside(checkpoint: Checkpoint, name: str, registry: Registry) -> Quantization:
    found = resolve_side_file(checkpoint, name, registry)
    if found is None:
        raise QloadError(
            "is neither a model's config nor a quantization config",
            where=str(checkpoint.path),
            expected=f"{CONFIG}, or what a producer writes beside it",
            remedy="give the config, or the folder of the checkpoint",
        )
    return found
