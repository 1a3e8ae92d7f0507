"""What the commands share: options, the form of sizes and findings."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from qload.amounts import describe_bytes as describe_bytes
from qload.amounts import describe_count as describe_count
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


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return str(value)
