"""`qload methods`: the installed methods, where they come from, and what they can do."""

import dataclasses
import warnings
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qload.cli.shared import format_option, print_json
from qload.errors import MethodError
from qload.registry import PluginWarning, Registry

_HEADINGS = {
    "linear": "linear",
    "embedding": "embed",
    "experts": "experts",
    "activations": "activ.",
    "kv_cache": "KV",
    "quantize": "quantizes",
}


@click.command(name="methods")
@format_option
def command(output: str) -> None:
    """List the installed quantization methods, where they come from, and what they can do."""
    registry = Registry.discover()
    with warnings.catch_warnings():
        # A broken plugin has a row of its own that says why.
        warnings.simplefilter("ignore", PluginWarning)
        rows = [_describe(registry, name) for name in registry.names]
    if output == "json":
        print_json(rows)
    else:
        _print(rows)


def _describe(registry: Registry, name: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": name,
        "from": [f"{origin.distribution} {origin.version}".strip() for origin in registry.origins(name)],
        "status": registry.status(name).value,
    }
    try:
        info = registry.method(name).info
    except MethodError as error:
        return {**row, "summary": str(error), "capabilities": None, "presets": []}
    capabilities = dataclasses.asdict(info.capabilities)
    return {**row, "summary": info.summary, "capabilities": capabilities, "presets": sorted(info.presets)}


def _print(rows: list[dict[str, Any]]) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method", no_wrap=True)
    for heading in _HEADINGS.values():
        table.add_column(heading, justify="center", no_wrap=True)
    for row in rows:
        table.add_row(escape(row["method"]), *_cells(row["capabilities"], row["status"]))
    console.print(table)
    for row in rows:
        heading = f"\n[bold]{escape(row['method'])}[/bold]  {escape(', '.join(row['from']))}"
        console.print(heading, highlight=False, soft_wrap=True)
        console.print(f"  {row['summary']}", highlight=False, markup=False, soft_wrap=True)
        if row["capabilities"] is not None:
            limits = f"  cut by tensor parallelism at: {row['capabilities']['tensor_parallel']}"
            console.print(limits, highlight=False, markup=False, soft_wrap=True)
        if row["presets"]:
            presets = f"  quantizes while loading: {', '.join(row['presets'])}"
            console.print(presets, highlight=False, markup=False, soft_wrap=True)


def _cells(capabilities: dict[str, Any] | None, status: str) -> list[str]:
    if capabilities is None:
        return [f"[red]{status}[/red]", *[""] * (len(_HEADINGS) - 1)]
    return [{True: "yes", False: "-"}.get(capabilities[name], capabilities[name]) for name in _HEADINGS]
