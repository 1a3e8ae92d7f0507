"""`qload validate`: what is wrong with checkpoints, from their configs and headers."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from qload.amounts import describe_count
from qload.catalogue import RULES
from qload.cli.sizes import read_sizes
from qload.cli.targets import choose_targets
from qload.cli.writing import write_file
from qload.errors import QloadError, one_line
from qload.formats import FOR_PEOPLE, FORMATS, FailOn, Failure, Outcome, find_writer
from qload.registry import Registry
from qload.validation import Report, validate
from qload.validation.lines import describe_verdict
from qload.validation.selection import split_codes

_OWN = "QL"
"""How the codes of the catalogue begin; those of plugins begin otherwise."""
_FOREIGN = re.compile(r"[A-Z]+[0-9]*")
_BASELINE, _REPAIRS = "qload.validation.baseline", "qload.repair"
"""Modules that most calls have no use for."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the command was asked for: an attribute for each of its parameters."""

    paths: tuple[str, ...]
    output_format: str
    output: Path | None
    select: tuple[str, ...]
    ignore: tuple[str, ...]
    fail_on: str
    baseline: Path | None
    write_baseline: Path | None
    tp: tuple[int, ...]
    model: bool
    probe: bool
    deep: bool
    fix: bool
    diff: bool
    collapse: bool
    whole: bool
    quiet: bool


def _read_codes(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> tuple[str, ...]:
    codes = split_codes(values)
    for code in codes:
        known = any(each.startswith(code) for each in RULES)
        if not known and (code.startswith(_OWN) or not _FOREIGN.fullmatch(code)):
            raise click.BadParameter(f"there is no rule {one_line(repr(code))}; qload rules lists them", ctx, param)
    return codes


_file = click.Path(path_type=Path, dir_okay=False)


@click.command(name="validate")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--format", "output_format", type=click.Choice([*FORMATS]), default="full", show_default=True, help="How to report."
)
@click.option("--output", "-o", type=_file, metavar="FILE", help="Write the report there, and the verdict here.")
@click.option(
    "--select",
    multiple=True,
    callback=_read_codes,
    metavar="CODES",
    help="Only these rules: QL201, or all that begin so, QL2. With commas.",
)
@click.option(
    "--ignore",
    multiple=True,
    callback=_read_codes,
    metavar="CODES",
    help="All rules but these; the longer beginning decides.",
)
@click.option(
    "--fail-on",
    type=click.Choice([each.value for each in FailOn]),
    default=FailOn.WARNING.value,
    show_default=True,
    help="The least severity that makes the exit status 1.",
)
@click.option("--baseline", type=_file, metavar="FILE", help="Leave out the findings that this file has.")
@click.option("--write-baseline", type=_file, metavar="FILE", help="Write all findings there, as known from now on.")
@click.option("--tp", callback=read_sizes, metavar="SIZES", help="Divide it over ranks, too: 1,2,4,8.")
@click.option("--model", is_flag=True, help="Build the architecture, without memory, and compare it, too.")
@click.option("--probe", is_flag=True, help="Read a few bytes of the weights, too.")
@click.option("--deep", is_flag=True, help="Read all of the weights, too.")
@click.option("--fix", is_flag=True, help="Mend what can be in JSON files, then validate.")
@click.option("--diff", is_flag=True, help="Show what --fix would change, change nothing, and validate.")
@click.option("--collapse/--no-collapse", default=True, help="Write findings as one that differ only in numbers.")
@click.option("--whole", is_flag=True, help="A JSON file means the checkpoint in its folder, not itself alone.")
@click.option("--quiet", "-q", is_flag=True, help="Findings alone, without a verdict or progress.")
@click.pass_context
def command(ctx: click.Context, /, **parameters: Any) -> None:
    """Find what is wrong with the checkpoints at each PATH, a folder or a file, without reading their weights.

    Exits with 0 where nothing is wrong, 1 where something is, 2 where something could not be read.
    """
    request = Request(**parameters)
    if request.diff and request.output_format not in FOR_PEOPLE and not request.output:
        raise click.UsageError(f"--diff would write into the {request.output_format}; give that an --output")
    outcome = _check(request)
    for failure in outcome.failures:
        click.echo(f"Error: {one_line(failure.message)}", err=True)
    if request.write_baseline is not None:
        _write_baseline(request, request.write_baseline, outcome)
        ctx.exit(outcome.status(FailOn.NEVER))
    _publish(request, outcome)
    ctx.exit(outcome.status(FailOn(request.fail_on)))


def _check(request: Request) -> Outcome:
    """Validate each checkpoint; one that cannot be checked does not keep the others from it."""
    registry = Registry.discover()
    known = importlib.import_module(_BASELINE).read_baseline(request.baseline) if request.baseline else None
    reports: list[Report] = []
    failures: list[Failure] = []
    for path in choose_targets(request.paths, whole=request.whole):
        try:
            report = _check_one(request, path, registry)
        except QloadError as error:
            failures.append(Failure(path, str(error)))
        else:
            reports.append(known.apply(report) if known else report)
    return Outcome(tuple(reports), tuple(failures), Path.cwd(), request.collapse)


def _check_one(request: Request, path: str, registry: Registry) -> Report:
    if request.fix or request.diff:
        _repair(request, path, registry)
    with _show_progress(request, path) as progress:
        return validate(
            path,
            registry=registry,
            tp=request.tp,
            model=request.model,
            probe=request.probe,
            deep=request.deep,
            select=request.select,
            ignore=request.ignore,
            progress=progress,
        )


def _repair(request: Request, path: str, registry: Registry) -> None:
    """Show what can be mended, or mend it."""
    repairs = importlib.import_module(_REPAIRS)
    planned = repairs.plan_repairs(path, registry)
    if request.diff:
        for repair in planned:
            click.echo("".join(f"{one_line(line)}\n" for line in repair.diff().split("\n")[:-1]), nl=False)
        return
    repairs.apply(planned)
    for repair in planned if not request.quiet else ():
        click.echo(one_line(f"fixed {repair.file}: {repair.what}"), err=True)


@contextmanager
def _show_progress(request: Request, path: str) -> Iterator[Callable[[int, int], None] | None]:
    """What to tell of progress, if that is shown: with --deep alone, and on a terminal."""
    if not request.deep or request.quiet or not _is_terminal():
        yield None
        return
    with importlib.import_module("qload.cli.bars").ByteBar(one_line(path)) as bar:
        yield bar.show


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def _publish(request: Request, outcome: Outcome) -> None:
    text = find_writer(request.output_format)(outcome)
    if request.output is not None:
        write_file(request.output, click.unstyle(text))
    else:
        click.echo(text, nl=False)
    if not request.quiet and (request.output is not None or request.output_format in FOR_PEOPLE):
        _say_verdict(request, outcome)


def _say_verdict(request: Request, outcome: Outcome) -> None:
    for report in outcome.reports:
        click.echo(describe_verdict(report))
    codes = dict.fromkeys(finding.code for report in outcome.reports for finding in report.findings)
    if codes and request.output_format == "full":
        click.echo(one_line(f"to know more: qload explain {' '.join(codes)}"))


def _write_baseline(request: Request, path: Path, outcome: Outcome) -> None:
    write_file(path, importlib.import_module(_BASELINE).format_baseline(path, outcome.reports))
    if not request.quiet:
        count = sum(len(report.findings) - len(report.unreadable) for report in outcome.reports)
        click.echo(one_line(f"{path}: {describe_count(count, 'finding')} written"))
