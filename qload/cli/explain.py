"""`qload explain`: what a rule finds, why it matters, and how to mend it."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from textwrap import wrap
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from qload.catalogue import RULES, Severity
from qload.cli.rules import COLORS, describe_added, describe_catalogue
from qload.cli.shared import format_option, print_json
from qload.errors import QloadError
from qload.registry import Registry
from qload.rules import PluginRule, choose_rule

_PARAGRAPHS = {"failure": "why it matters", "cure": "how to mend it", "limits": "where it is silent"}
_INDENT = "  "


@click.command(name="explain")
@click.argument("codes", metavar="CODE...", nargs=-1, required=True)
@format_option
def command(codes: tuple[str, ...], output: str) -> None:
    """Explain the rules of the given codes, as QL201: what they find, why it matters, and how to mend it.

    `qload rules` lists them all.
    """
    rows = _find_rows(list(dict.fromkeys(code.upper() for code in codes)))
    if output == "json":
        print_json(rows)
        return
    console = Console()
    for number, row in enumerate(rows):
        if number:
            console.print()
        _print(row, console)


def _find_rows(codes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of these rules; plugins are asked only where the core's catalogue does not do."""
    known = {row["code"]: row for row in describe_catalogue()}
    added = () if set(codes) <= known.keys() else Registry.discover().rules()
    return [known[code] if code in known else _find_added(code, added) for code in codes]


def _find_added(code: str, added: Iterable[PluginRule]) -> dict[str, Any]:
    found = choose_rule(added, code)
    if found is None:
        raise _unknown(code, [*RULES, *(each.code for each in added)])
    return describe_added(found)


def _unknown(code: str, known: list[str]) -> QloadError:
    near = " or ".join(sorted(get_close_matches(code, known)))
    advice = f"did you mean {near}? " if near else ""
    return QloadError(f"there is no rule {code!r}", remedy=f"{advice}`qload rules` lists all")


def _print(row: dict[str, Any], console: Console) -> None:
    color = COLORS[Severity(row["severity"])]
    console.print(Text.assemble((row["code"], f"bold {color}"), f" {row['severity']}: {row['title']}"))
    waived = "; a load may ignore it" if row["waivable"] else ""
    source = "" if row["from"] == "qload" else f"; from {row['from']}"
    _print_paragraph(f"reads {row['reads']}; found by `{row['found_by']}`{waived}{source}", console)
    for field, heading in _PARAGRAPHS.items():
        if row[field]:
            console.print(Text(f"\n{_INDENT}{heading}", style="bold"))
            _print_paragraph(row[field], console)


def _print_paragraph(text: str, console: Console) -> None:
    lines = wrap(text, console.width - len(_INDENT), break_long_words=False, break_on_hyphens=False)
    console.print(Text("\n".join(f"{_INDENT}{line}" for line in lines)), soft_wrap=True)
