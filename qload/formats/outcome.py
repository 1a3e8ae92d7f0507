"""What came of checking several checkpoints, and the exit status that says so."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from qload.findings import Group
from qload.validation import Report
from qload.validation.lines import list_groups

CLEAN, FOUND, UNCHECKED = 0, 1, 2


class FailOn(StrEnum):
    """The least severity of a finding that makes the status 1."""

    ERROR = "error"
    WARNING = "warning"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Failure:
    """A checkpoint that could not be checked at all, and why."""

    asked: str
    message: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reports on several checkpoints, in the order in which they were asked for.

    `base` is the folder that paths in the output are relative to. With `collapses`, findings that differ only in the
    numbers of their modules are written as one.
    """

    reports: tuple[Report, ...]
    failures: tuple[Failure, ...] = ()
    base: Path = Path()
    collapses: bool = True

    @property
    def is_complete(self) -> bool:
        """Whether everything could be read."""
        return not self.failures and not any(report.unreadable for report in self.reports)

    def groups(self, report: Report) -> list[Group]:
        """The findings of a report, as they are to be written."""
        return list_groups(report, collapse=self.collapses)

    def status(self, fail_on: FailOn = FailOn.WARNING) -> int:
        """0 where nothing is wrong, 1 where something is, 2 where something could not be read, whatever else is."""
        if not self.is_complete:
            return UNCHECKED
        match fail_on:
            case FailOn.NEVER:
                return CLEAN
            case FailOn.ERROR:
                return FOUND if any(report.errors for report in self.reports) else CLEAN
            case FailOn.WARNING:
                return FOUND if any(report.findings for report in self.reports) else CLEAN
