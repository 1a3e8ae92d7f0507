"""`qload rules`: every rule of the catalogue, and those that the installed plugins add."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qload.catalogue import FAMILIES, Rule, Severity
from qload.cli.shared import format_option, print_json
from qload.registry import Registry
from qload.rules import PluginRule

COLORS = {Severity.ERROR: "red", Severity.WARNING: "yellow"}
_WIDTH = 240
"""The columns of what is no terminal, so that no line is folded there."""


@click.command(name="rules")
@format_option
def command(output: str) -> None:
    """List the rules that checkpoints are held to, by what they are about, and those that plugins add.

    `qload explain CODE` says more of one.
    """
    rows = [*describe_catalogue(), *map(describe_added, Registry.discover().rules())]
    if output == "json":
        print_json(rows)
    else:
        _print(rows)


def describe_catalogue() -> Iterator[dict[str, Any]]:
    """A row for each rule of the core."""
    for family, rules in FAMILIES.items():
        yield from (_describe(rule, family, "qload") for rule in rules)


def describe_added(added: PluginRule) -> dict[str, Any]:
    """The row of a rule that a plugin adds."""
    source = f"{added.origin.distribution} {added.origin.version}".strip()
    return _describe(added.rule, f"added by {added.origin.method}", source)


def _describe(rule: Rule, family: str, source: str) -> dict[str, Any]:
    return {
        "code": rule.code,
        "severity": rule.severity.value,
        "family": family,
        "from": source,
        "reads": rule.tier.reads,
        "found_by": rule.found_by,
        "waivable": rule.waivable,
        "title": rule.title,
        "failure": rule.failure,
        "cure": rule.cure,
        "limits": rule.limits,
    }


def _print(rows: Iterable[dict[str, Any]]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for number, ((family, source), group) in enumerate(groupby(rows, lambda row: (row["family"], row["from"]))):
        heading = family if source == "qload" else f"{family} ({source})"
        console.print(Text(f"\n{heading}" if number else heading, style="bold"))
        console.print(_tabulate(group))


def _tabulate(rows: Iterable[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True, style="dim")
    for row in rows:
        severity = Text(row["severity"], style=COLORS[Severity(row["severity"])])
        table.add_row(Text(row["code"]), severity, Text(row["title"]), Text(row["found_by"]))
    return table
