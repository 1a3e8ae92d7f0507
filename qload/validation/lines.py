"""A report as lines of text: one for each finding, and one with the verdict."""

import os
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

from qload.amounts import describe_bytes, describe_count
from qload.errors import describe, one_line
from qload.findings import Finding, Group, group_alike

if TYPE_CHECKING:
    from qload.validation.report import Report


def write_lines(report: "Report", *, collapse: bool = True) -> Iterator[str]:
    """One line for each finding, or for those that differ only in numbers: `file:line:column: CODE message`."""
    for group in list_groups(report, collapse=collapse):
        first = group.first
        text = describe(first.message, group.where, first.expected, first.found, first.remedy)
        yield one_line(f"{describe_place(report, first)}: {first.code} {text}")


def list_groups(report: "Report", *, collapse: bool = True) -> list[Group]:
    """The findings, those that differ only in numbers together, or each by itself."""
    if collapse:
        return group_alike(report.findings)
    return [Group((finding,)) for finding in report.findings]


def describe_place(report: "Report", finding: Finding) -> str:
    """`file:line:column` as far as it is known; the checkpoint, where no file of it is at fault."""
    position = f":{finding.line}:{finding.column}" if finding.line else ""
    return f"{locate_file(report, finding.file)}{position}"


def locate_file(report: "Report", file: str) -> str:
    """The path of a checkpoint's file, from where the checkpoint was asked for; without a file, the checkpoint's."""
    if not file:
        return str(report.path)
    return os.path.normpath(PurePath(report.place, file)) if report.place else file


def describe_verdict(report: "Report") -> str:
    """How many errors and warnings there are, and in what."""
    counts = [describe_count(len(report.errors), "error")] if report.errors else []
    counts += [describe_count(len(report.warnings), "warning")] if report.warnings else []
    verdict = ", ".join(counts) if counts else "nothing is wrong" if not report.known else "nothing new is wrong"
    known = f", {report.known} known" if report.known else ""
    size = f"{describe_count(report.tensors, 'tensor')}, {describe_bytes(report.nbytes)}"
    return one_line(f"{report.path}: {verdict}{known} ({report.method or 'method unknown'}; {size})")
