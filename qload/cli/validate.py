"""`qload validate`: what is wrong with a checkpoint, from its config and headers."""

from pathlib import Path

import click

from qload.cli.shared import (
    checkpoint_argument,
    describe_bytes,
    describe_count,
    format_option,
    print_findings,
    print_json,
)
from qload.errors import one_line
from qload.validation import Report, validate

FOUND = 1


@click.command(name="validate")
@checkpoint_argument
@format_option
@click.pass_context
def command(ctx: click.Context, path: Path, output: str) -> None:
    """Find what is wrong with the checkpoint in the folder or file PATH, without reading its weights.

    Exits with 0 where nothing is wrong, 1 where something is, 2 where it could not be told.
    """
    report = validate(path)
    if output == "json":
        print_json(report)
    else:
        print_findings(report.findings)
        click.echo(_verdict(report))
    ctx.exit(FOUND if report.findings else 0)


def _verdict(report: Report) -> str:
    warnings = len(report.findings) - len(report.errors)
    counts = [describe_count(len(report.errors), "error")] if report.errors else []
    counts += [describe_count(warnings, "warning")] if warnings else []
    verdict = ", ".join(counts) if counts else "nothing is wrong"
    size = f"{describe_count(report.tensors, 'tensor')}, {describe_bytes(report.nbytes)}"
    return one_line(f"{report.path}: {verdict} ({report.method or 'method unknown'}; {size})")
