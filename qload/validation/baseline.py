"""Findings that are known, in a file beside whatever is checked, so that only new ones are reported."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from qload.errors import QloadError
from qload.findings import Finding
from qload.validation.report import Report
from qload.validation.selection import UNREADABLE

_VERSION = 1


def fingerprint(finding: Finding) -> str:
    """What a finding is known by in other runs: its rule, its place and its message, not the line that it is on."""
    keys = [key for key in finding.pointer if isinstance(key, str)]
    parts = [finding.code, finding.where, finding.file, finding.message, *keys]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The known findings' fingerprints, by checkpoint: a path from the folder of the file, or what else was asked for.

    What could not be read is never known.
    """

    folder: Path
    known: dict[str, frozenset[str]]

    def apply(self, report: Report) -> Report:
        """The report without what is known."""
        known = self.known.get(_name(report, self.folder), frozenset())
        new = tuple(each for each in report.findings if each.code == UNREADABLE or fingerprint(each) not in known)
        return replace(report, findings=new, known=report.known + len(report.findings) - len(new))


def read_baseline(path: Path) -> Baseline:
    """Read a file that `write_baseline` wrote. Raises QloadError if it is none."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("a pipe would be waited for")
        document = json.loads(path.read_bytes())
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']}")
        checkpoints = document["checkpoints"].items()
        known = {name: frozenset(entry["fingerprint"] for entry in entries) for name, entries in checkpoints}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = error.strerror if isinstance(error, OSError) else f"is no baseline of version {_VERSION}"
        remedy = "write it with --write-baseline"
        raise QloadError(f"the baseline cannot be read: {what}", where=str(path), remedy=remedy) from error
    return Baseline(path.parent, known)


def format_baseline(path: Path, reports: Iterable[Report]) -> str:
    """The text of a baseline at `path` that has all findings of these reports but what could not be read."""
    checkpoints = {_name(report, path.parent): _describe(report.findings) for report in reports}
    document = {"version": _VERSION, "checkpoints": dict(sorted(checkpoints.items()))}
    return json.dumps(document, indent=2) + "\n"


def _describe(findings: Iterable[Finding]) -> list[dict[str, str]]:
    entries = {
        fingerprint(each): {"code": each.code, "where": each.where, "file": each.file, "message": each.message}
        for each in findings
        if each.code != UNREADABLE
    }
    listed = [{**entry, "fingerprint": key} for key, entry in entries.items()]
    return sorted(listed, key=lambda entry: [*entry.values()])


def _name(report: Report, folder: Path) -> str:
    """A local checkpoint's path from the baseline's folder, and what was asked for of any other."""
    if not report.path.exists():
        return report.asked
    return Path(os.path.relpath(report.path, folder)).as_posix()
