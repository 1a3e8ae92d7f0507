"""Paths of a checkpoint's files, as programs that read the output look for them."""

import os
from pathlib import Path
from urllib.parse import quote

from qload.formats.outcome import Outcome
from qload.validation import Report
from qload.validation.lines import locate_file


def relate(outcome: Outcome, report: Report, file: str) -> str:
    """A file's path from the base, if it lies below that; else its whole path, or what a repository calls it."""
    path = locate_file(report, file)
    if not Path(report.place).exists():
        return path
    whole = Path(os.path.abspath(path))  # noqa: PTH100 - without going through links, which resolve() does
    base = Path(os.path.abspath(outcome.base))  # noqa: PTH100
    return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()


def relate_all(outcome: Outcome, report: Report) -> dict[str, str]:
    """The paths of all files that a report has findings in, by what the findings call them."""
    return {file: relate(outcome, report, file) for file in {finding.file for finding in report.findings}}


def write_uri(report: Report, path: str) -> str:
    """A reference to a file whose path is related to the base: relative to that, or with a scheme."""
    if Path(path).is_absolute():
        return f"file://{_quote(path)}"
    return _quote(path) if Path(report.place).exists() else _quote(path, ":@")


def _quote(path: str, also: str = "") -> str:
    return quote(path.encode("utf-8", "surrogatepass"), safe=f"/{also}")
