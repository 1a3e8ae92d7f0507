"""The verdict on a checkpoint: everything that was found, and in what."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qload.catalogue import Severity
from qload.examination import Examination, examine
from qload.findings import Finding
from qload.registry import Registry
from qload.validation.data import find_bad_values
from qload.validation.divisions import find_splits
from qload.validation.finders import FINDERS
from qload.validation.pieces import Progress


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
        """Whether nothing was found that is an error."""
        return not self.errors


def validate(
    path: str | Path,
    *,
    registry: Registry | None = None,
    tp: Sequence[int] = (),
    probe: bool = False,
    deep: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Validate the checkpoint in the folder or file `path` from its config and headers alone.

    `tp` are numbers of ranks that it is to be divided over. With `probe`, a few bytes of its data are read too; with
    `deep`, all of them, and `progress` is told how many have been, and how many there are. Raises QloadError if there
    is no such folder; every other fault is a finding.
    """
    found = examine(path, registry if registry is not None else Registry.discover())
    checkpoint = found.checkpoint
    findings = tuple(_find(found, tp, probe=probe, deep=deep, progress=progress))
    return Report(checkpoint.path, found.method, len(checkpoint.tensors), checkpoint.nbytes, findings)


def _find(
    found: Examination,
    tp: Iterable[int],
    *,
    probe: bool,
    deep: bool,
    progress: Progress | None = None,
) -> Iterator[Finding]:
    yield from found.findings
    if found.quantization is None or found.outline is None:
        return
    for find in FINDERS:
        yield from find(found)
    yield from find_splits(found, tuple(tp))
    if probe or deep:
        yield from find_bad_values(found, deep=deep, progress=progress)
