"""What the commands share: options, the form of sizes and findings."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from qload.catalogue import Severity
from qload.findings import Finding, collapse

checkpoint_argument = click.argument("path", type=click.Path(path_type=Path))
format_option = click.option(
    "--format",
    "output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print the result.",
)

_COLORS = {Severity.ERROR: "red", Severity.WARNING: "yellow"}


def print_json(value: Any) -> None:
    """Print a dataclass or plain value as one JSON object."""
    click.echo(json.dumps(value, default=_encode, indent=2))


def print_findings(findings: Iterable[Finding], *, err: bool = False) -> None:
    """Print one line for each finding; those that differ only in a module's number are one."""
    for finding in collapse(findings):
        code = click.style(finding.code, fg=_COLORS[finding.severity], bold=True)
        click.echo(f"{code} {finding.severity.value}: {finding}", err=err)


def describe_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it: 1.67 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def describe_count(count: int, noun: str) -> str:
    """A number with its noun: 1 error, 2 errors."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return str(value)
