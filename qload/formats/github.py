"""Commands to a GitHub workflow, which shows them beside the lines of the files.

Source: docs.github.com, "Workflow commands for GitHub Actions", and the escapes of actions/toolkit.
"""

from qload.errors import describe, one_line
from qload.findings import Group
from qload.formats.outcome import Failure, Outcome
from qload.formats.paths import relate_all
from qload.validation import Report

_TEXT = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY = {**_TEXT, ":": "%3A", ",": "%2C"}


def write(outcome: Outcome) -> str:
    """A line for each finding, and one for each checkpoint that could not be checked."""
    found = [line for report in outcome.reports for line in _write_report(outcome, report)]
    return "".join(f"{line}\n" for line in [*found, *map(_write_failure, outcome.failures)])


def _write_report(outcome: Outcome, report: Report) -> list[str]:
    paths = relate_all(outcome, report)
    return [_write_group(group, paths[group.first.file]) for group in outcome.groups(report)]


def _write_group(group: Group, path: str) -> str:
    first = group.first
    position = {"line": str(first.line), "col": str(first.column)} if first.line else {}
    properties = {"file": path, **position, "title": first.code}
    text = describe(first.message, group.where, first.expected, first.found, first.remedy)
    return _write_command(first.severity.value, properties, text)


def _write_failure(failure: Failure) -> str:
    return _write_command("error", {"title": "not checked"}, failure.message)


def _write_command(name: str, properties: dict[str, str], text: str) -> str:
    listed = ",".join(f"{key}={_escape(one_line(value), _PROPERTY)}" for key, value in properties.items())
    return f"::{name} {listed}::{_escape(one_line(text), _TEXT)}"


def _escape(text: str, escapes: dict[str, str]) -> str:
    return "".join(escapes.get(each, each) for each in text)
