"""`qload plan`: what each rank of a load would read and hold, and the numbers of ranks that do not do."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qload.cli.shared import (
    checkpoint_argument,
    describe_bytes,
    describe_count,
    format_option,
    print_findings,
    print_json,
)
from qload.cli.sizes import read_sizes
from qload.errors import one_line
from qload.preview import Group, Obstacle, RankPlans, SizePlan, plan_ranks

OBSTRUCTED, UNTOLD = 1, 2
_WIDTH = 240
"""The columns of what is no terminal, so that no line is folded there."""
_SHOWN = 8
"""How many of the numbers of ranks are named that would do."""


@click.command(name="plan")
@checkpoint_argument
@click.option("--tp", "sizes", default="1,2,4,8", show_default=True, callback=read_sizes, help="The numbers of ranks.")
@click.option("--expert-parallel", is_flag=True, help="Divide mixtures of experts by experts.")
@format_option
@click.pass_context
def command(ctx: click.Context, path: Path, sizes: tuple[int, ...], expert_parallel: bool, output: str) -> None:
    """Say what each rank would read and hold of the checkpoint in the folder or file PATH, without reading its weights.

    Exits with 0 where every number of ranks does, 1 where one does not, 2 where it could not be told.
    """
    plans = plan_ranks(path, sizes, expert_parallel=expert_parallel)
    if output == "json":
        print_json({**asdict(plans), "sizes": [_describe(plan) for plan in plans.sizes]})
    else:
        print_findings(plans.findings)
        _print(plans)
    ctx.exit(UNTOLD if not plans.is_told else 0 if plans.fits else OBSTRUCTED)


def _describe(plan: SizePlan) -> dict[str, Any]:
    groups = [{**asdict(group), "replicated": group.replicated} for group in plan.groups]
    sums = {"fits": plan.fits, "read": plan.read, "replicated": plan.replicated}
    return {**asdict(plan), **sums, "groups": groups}


def _print(plans: RankPlans) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    size = f"{describe_count(plans.tensors, 'tensor')}, {describe_bytes(plans.nbytes)}"
    verdict = "" if plans.sizes else ": nothing is planned for a broken checkpoint"
    click.echo(one_line(f"{plans.path} ({plans.method or 'method unknown'}; {size}){verdict}"))
    if plans.sizes:
        console.print()
        console.print(_tabulate_sizes(plans.sizes))
    fitting = [plan for plan in plans.sizes if plan.fits]
    if fitting:
        console.print()
        console.print(_tabulate_groups(fitting, plans.method or ""))
    for plan in plans.sizes:
        if not plan.fits:
            click.echo(f"\n{describe_count(plan.size, 'rank')} cannot share it:")
            _print_lines(map(explain, plan.obstacles))
    if plans.untold:
        click.echo("\nneither headers nor config tell the sizes of these, which count as whole on each rank:")
        _print_lines(plans.untold)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(one_line(f"  {line}"))


def _tabulate_sizes(plans: Iterable[SizePlan]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("ranks", "each reads", "each holds", "all read", "read again"):
        table.add_column(heading, justify="right", no_wrap=True)
    for plan in plans:
        table.add_row(str(plan.size), *(_sum_up(plan) if plan.fits else ["[red]does not fit[/red]"]))
    return table


def _sum_up(plan: SizePlan) -> list[str]:
    read, held = [share.read for share in plan.ranks], [share.held for share in plan.ranks]
    return [_span(read), _span(held), describe_bytes(plan.read), describe_bytes(plan.replicated)]


def _span(counts: list[int]) -> str:
    least, most = describe_bytes(min(counts)), describe_bytes(max(counts))
    return most if least == most else f"{least} to {most}"


def _tabulate_groups(plans: list[SizePlan], method: str) -> Table:
    """A row for each group, and a column for each number of ranks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("modules", overflow="fold")
    table.add_column("stored as", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    for plan in plans:
        table.add_column(describe_count(plan.size, "rank"), no_wrap=True)
    for groups in zip(*(plan.groups for plan in plans), strict=True):
        first = groups[0]
        count = f" ({first.count})" if first.count > 1 else ""
        label = first.label.removeprefix(f"{method} ")
        cells = (escape(one_line(f"{first.where}{count}")), escape(one_line(label)), describe_bytes(first.stored))
        table.add_row(*cells, *map(_describe_split, groups))
    return table


def _describe_split(group: Group) -> str:
    again = f" +{describe_bytes(group.replicated)}" if group.replicated else ""
    return f"{group.split.value}{again}"


def explain(obstacle: Obstacle) -> str:
    """An obstacle in one line, with the numbers of ranks that would do."""
    count = f" ({obstacle.count})" if obstacle.count > 1 else ""
    tensor = f".{obstacle.tensor}" if obstacle.tensor else ""
    unit = f"; {obstacle.unit} stay together" if obstacle.unit > 1 else ""
    sizes = ", ".join(map(str, obstacle.sizes[:_SHOWN])) + (", ..." if len(obstacle.sizes) > _SHOWN else "")
    return f"{obstacle.where}{tensor}{count}: {obstacle.what}{unit}; numbers of ranks that fit: {sizes}"
