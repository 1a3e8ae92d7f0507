"""Numbers of ranks, as commands take them: 1,2,4,8."""

import click

from qload.errors import ParallelError
from qload.preview.planning import check_size


def read_sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """A click callback: the numbers of a list with commas; none without a list."""
    try:
        sizes = tuple(map(int, value.split(","))) if value is not None else ()
        for size in sizes:
            check_size(size)
    except (ValueError, ParallelError) as error:
        raise click.BadParameter(f"{value!r} is no list of numbers of ranks, as 1,2,4,8", ctx, param) from error
    return sizes
