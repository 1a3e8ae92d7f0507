"""The verdict on a checkpoint: everything that was found, and in what."""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qload.catalogue import Severity
from qload.checkpoint import Checkpoint, Folder, Storage
from qload.errors import CheckpointError
from qload.examination import Examination, examine
from qload.findings import Finding
from qload.preview.planning import check_sizes
from qload.registry import Registry
from qload.validation.data import find_bad_values
from qload.validation.divisions import find_splits
from qload.validation.excerpts import Excerpt, locate
from qload.validation.finders import FINDERS
from qload.validation.lines import describe_verdict, write_lines
from qload.validation.prefixes import drop_explained
from qload.validation.selection import UNREADABLE, Selection, split_codes

_CHECKING = "qload.torch.models.checking"
"""Imports torch, which nothing else here needs."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in the checkpoint at `path`; `method` is None where it could not be had.

    `asked` is what validating was asked for, and `place` where the files lie: a folder, or a repository with its
    commit. `excerpts` are the lines that findings point at. `known` is how many findings a baseline has, which are not
    among `findings`. Its text is a line for each finding, then the verdict.
    """

    path: Path
    method: str | None
    tensors: int
    nbytes: int
    findings: tuple[Finding, ...]
    asked: str = field(default="", compare=False)
    place: str = field(default="", compare=False)
    excerpts: tuple[Excerpt, ...] = field(default=(), repr=False)
    known: int = 0

    def __str__(self) -> str:
        return "\n".join([*write_lines(self), describe_verdict(self)])

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.WARNING)

    @property
    def unreadable(self) -> tuple[Finding, ...]:
        """What could not be read, so that nothing is known of it."""
        return tuple(finding for finding in self.findings if finding.code == UNREADABLE)

    @property
    def ok(self) -> bool:
        """Whether nothing was found that is an error."""
        return not self.errors

    def select(self, select: Iterable[str] = (), ignore: Iterable[str] = ()) -> "Report":
        """The report with the findings of some rules alone, by their codes or the beginnings of these.

        Where both have one for a code, the longer decides. What could not be read is always kept.
        """
        wanted = Selection(split_codes(select), split_codes(ignore))
        return replace(self, findings=tuple(finding for finding in self.findings if wanted.wants(finding.code)))

    def raise_for_errors(self) -> None:
        """Raise CheckpointError with all errors, if there are any: for tools that validate what they have saved."""
        if self.errors:
            raise CheckpointError(str(self.path), self.errors)


def validate(
    path: str | Path,
    *,
    registry: Registry | None = None,
    tp: Sequence[int] = (),
    probe: bool = False,
    deep: bool = False,
    model: bool = False,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Validate the checkpoint in the folder or file `path` from its config and headers alone.

    `tp` are numbers of ranks that it is to be divided over. With `model`, it is held against its architecture, which
    transformers builds without memory, as `qload.load` does before it reads; a checkpoint with errors is not. With
    `probe`, a few bytes of its data are read too; with `deep`, all of them, and `progress` is told how many of how many
    bytes have been. `select` and `ignore` are codes of rules, or beginnings of them, as in `Report.select`.

    Raises ParallelError for what is no number of ranks, and QloadError if there is no such folder; every other fault is
    a finding.
    """
    sizes = check_sizes(tp)
    found = examine(path, registry if registry is not None else Registry.discover())
    checkpoint = found.checkpoint
    storage = _storage_of(checkpoint)
    noticed = list(drop_explained(_find(found, sizes, probe=probe, deep=deep, progress=progress), found))
    if model and all(finding.severity is not Severity.ERROR for finding in noticed):
        noticed += _find_misfits(found)
    findings, excerpts = locate(tuple(noticed), storage)
    report = Report(
        checkpoint.path,
        found.method,
        len(checkpoint.tensors),
        checkpoint.nbytes,
        findings,
        asked=str(path),
        place=storage.place,
        excerpts=excerpts,
    )
    return report.select(select, ignore)


def _find_misfits(found: Examination) -> Iterable[Finding]:
    """What does not fit the architecture, beside what is said already."""
    if found.quantization is None or found.outline is None or found.registry is None:
        return ()
    said = {(finding.code, finding.where) for finding in found.findings}
    checking = importlib.import_module(_CHECKING)
    faults = checking.find_model_faults(found.checkpoint, found.quantization, found.registry)
    return [fault for fault in faults if (fault.code, fault.where) not in said]


def _storage_of(checkpoint: Checkpoint) -> Storage:
    return checkpoint.storage if checkpoint.storage is not None else Folder(checkpoint.folder)


def _find(
    found: Examination, sizes: Sequence[int], *, probe: bool, deep: bool, progress: Callable[[int, int], None] | None
) -> Iterator[Finding]:
    yield from found.findings
    if found.quantization is None or found.outline is None:
        return
    for find in FINDERS:
        yield from find(found)
    yield from find_splits(found, sizes)
    if probe or deep:
        yield from find_bad_values(found, deep=deep, progress=progress)
