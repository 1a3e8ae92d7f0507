"""Everything that is known of each finding, with the line of a JSON file that it points at, for people to read."""

from collections.abc import Iterator
from unicodedata import combining, east_asian_width

import click

from qload.amounts import describe_count
from qload.catalogue import Severity
from qload.errors import one_line
from qload.findings import Group
from qload.formats.outcome import Outcome
from qload.validation import Report
from qload.validation.excerpts import Excerpt
from qload.validation.lines import describe_place

_COLORS = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


def write(outcome: Outcome) -> str:
    """A block for each finding, with escapes of a terminal for colours."""
    blocks = (block for report in outcome.reports for block in _write_blocks(outcome, report))
    return "".join(f"{block}\n\n" for block in blocks)


def _write_blocks(outcome: Outcome, report: Report) -> Iterator[str]:
    excerpts = {(each.file, each.line, each.column): each for each in report.excerpts}
    for group in outcome.groups(report):
        first = group.first
        yield _write_block(report, group, excerpts.get((first.file, first.line, first.column)))


def _write_block(report: Report, group: Group, excerpt: Excerpt | None) -> str:
    first = group.first
    margin = len(str(excerpt.line)) if excerpt else 2
    heading = click.style(f"{first.severity.value}[{one_line(first.code)}]", fg=_COLORS[first.severity], bold=True)
    lines = [f"{heading}: {click.style(one_line(first.message), bold=True)}"]
    lines.append(f"{' ' * margin}{_dim('-->')} {_describe_places(report, group)}")
    lines += _draw(excerpt, first.severity) if excerpt else []
    lines += [f"{' ' * margin} {_dim('=')} {label}: {one_line(text)}" for label, text in _list_facts(group)]
    return "\n".join(lines)


def _describe_places(report: Report, group: Group) -> str:
    others = len(group.files) - 1
    more = f" and {describe_count(others, 'other file')}" if others else ""
    return f"{one_line(describe_place(report, group.first))}{more}"


def _list_facts(group: Group) -> Iterator[tuple[str, str]]:
    first = group.first
    facts = {"where": group.where, "expected": first.expected, "found": first.found, "help": first.remedy}
    yield from ((label, text) for label, text in facts.items() if text)


def _draw(excerpt: Excerpt, severity: Severity) -> list[str]:
    """The line with its number, and below it carets under what is meant."""
    margin = " " * len(str(excerpt.line))
    bar = _dim("|")
    before, meant = _split(excerpt)
    cut = "..." if excerpt.begin > 1 else ""
    carets = click.style("^" * max(_measure(_show(meant)), 1), fg=_COLORS[severity], bold=True)
    return [
        f"{margin} {bar}",
        f"{_dim(str(excerpt.line))} {bar} {cut}{_show(excerpt.text)}",
        f"{margin} {bar} {' ' * _measure(cut + _show(before))}{carets}",
    ]


def _split(excerpt: Excerpt) -> tuple[str, str]:
    start = excerpt.column - excerpt.begin
    return excerpt.text[:start], excerpt.text[start : start + excerpt.length]


def _show(text: str) -> str:
    """The text without tabs, whose width depends on where they are, nor what a terminal would obey."""
    return one_line(text.replace("\t", "    "))


def _measure(text: str) -> int:
    """The columns that a text takes on a terminal: wide characters take two, and accents that go onto others none."""
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)


def _dim(text: str) -> str:
    return click.style(text, fg="blue", bold=True)
