"""`qload run`: loads a checkpoint, on one rank or several, says what was loaded, and generates."""

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import qload
from qload.checkpoint import Checkpoint
from qload.cli.generating import Outcome, Request, generate_alone, generate_joined, generate_on_ranks, is_joined
from qload.cli.plan import explain
from qload.cli.shared import (
    checkpoint_argument,
    describe_bytes,
    describe_count,
    format_option,
    print_findings,
    print_json,
)
from qload.errors import ModelError, ParallelError, one_line
from qload.examination import check_local, open_checkpoint
from qload.preview import plan_ranks
from qload.registry import Registry

_TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece", "tekken")
"""How the names of the files begin that hold one."""


@click.command(name="run")
@checkpoint_argument
@click.option("--prompt", required=True, help="The text to go on from.")
@click.option("--device", default="cpu", show_default=True, help="Where to load it: cpu, cuda, cuda:1.")
@click.option("--dtype", default=None, help="What to compute in: float32, bfloat16, float16. [default: the config's]")
@click.option("--max-new-tokens", default=40, show_default=True, type=click.IntRange(min=1), help="How far to go on.")
@click.option(
    "--tp",
    type=click.IntRange(min=1),
    help="Divide it over so many processes or GPUs.  [default: 1, or all that torchrun started]",
)
@click.option("--expert-parallel", is_flag=True, help="Give each rank whole experts of a mixture.")
@click.option(
    "--quantization",
    default=None,
    help="Quantize a plain checkpoint while loading: int4, int8, ... [see qload methods]",
)
@click.option(
    "--kernels",
    default=None,
    help="Compute with these alone, by their names with commas between; none: turn weights dense at every call."
    "  [default: all]",
)
@click.option("--weights-only", is_flag=True, help="Do not quantize activations, where the scheme does.")
@format_option
def command(
    path: Path,
    prompt: str,
    device: str,
    dtype: str | None,
    max_new_tokens: int,
    tp: int | None,
    expert_parallel: bool,
    quantization: str | None,
    kernels: str | None,
    weights_only: bool,
    output: str,
) -> None:
    """Load the checkpoint in the folder or file PATH, and go on from a prompt.

    Generates greedily, so that the same checkpoint gives the same text. With --tp it starts processes of this machine;
    started by torchrun, on one machine or several, it joins the others.
    """
    check_local(path)
    if tp not in (None, 1) and quantization is None and not is_joined():
        _check_ranks(path, tp, expert_parallel=expert_parallel)
    tokenizer = _read_tokenizer(open_checkpoint(path, Registry.discover()))
    ids = tokenizer(prompt, return_token_type_ids=False)["input_ids"]
    options: dict[str, Any] = {
        "device": device,
        "dtype": dtype,
        "quantization": quantization,
        "expert_parallel": expert_parallel,
    }
    options |= {"quantize_activations": not weights_only, "kernels": _read_names(kernels)}
    request = Request(path, ids, max_new_tokens, options)
    outcome = _generate(request, tp, device)
    if outcome is None:
        return
    text = tokenizer.decode(list(outcome.tokens), skip_special_tokens=True)
    if output == "json":
        ranks = {"ranks": [asdict(report) for report in outcome.reports]} if len(outcome.reports) > 1 else {}
        said = {"prompt": prompt, "text": text, "tokens": len(outcome.tokens), "generating": outcome.seconds}
        print_json({**asdict(outcome.reports[0]), **said, **ranks})
        return
    console = Console(stderr=True)
    _print_summary(outcome.reports, console)
    click.echo(prompt + text)
    console.print(f"{len(outcome.tokens)} tokens in {outcome.seconds:.2f} s", highlight=False)


def _read_names(kernels: str | None) -> tuple[str, ...] | None:
    """The kernels that are asked for; None for all of them."""
    return None if kernels is None else tuple(each for each in kernels.split(",") if each not in ("", "none"))


def _check_ranks(path: Path, size: int, *, expert_parallel: bool) -> None:
    """Raise ParallelError, and print why, where so many ranks cannot share a checkpoint: starting them takes long."""
    (plan, *_) = plan_ranks(path, [size], expert_parallel=expert_parallel).sizes or (None,)
    if plan is None or plan.fits:
        return
    for obstacle in plan.obstacles:
        click.echo(one_line(explain(obstacle)), err=True)
    named = sorted(set[int].intersection(*(set(obstacle.sizes) for obstacle in plan.obstacles)))
    others = plan_ranks(path, named, expert_parallel=expert_parallel).sizes
    raise ParallelError(
        f"{size} ranks cannot share the checkpoint",
        where=str(path),
        remedy=f"numbers of ranks that fit: {', '.join(str(other.size) for other in others if other.fits)}",
    )


def _generate(request: Request, tp: int | None, device: str) -> Outcome | None:
    if is_joined():
        return generate_joined(request, tp, device)
    return generate_alone(request) if tp in (None, 1) else generate_on_ranks(request, tp, device)


def _read_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, read first, for without one there is nothing to load for."""
    path, remedy = checkpoint.path, "put tokenizer.json beside config.json"
    if not checkpoint.tokenizer and not any(name.startswith(_TOKENIZERS) for name in checkpoint.files):
        raise ModelError("there is no tokenizer", where=str(path), remedy=remedy)
    transformers = importlib.import_module("transformers")
    options = {"trust_remote_code": False, "local_files_only": True, **checkpoint.tokenizer}
    try:
        return transformers.AutoTokenizer.from_pretrained(checkpoint.folder, **options)
    except Exception as error:  # each tokenizer's code has errors of its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the tokenizer cannot be read: {first}", where=str(path), remedy=remedy) from error


def _print_summary(reports: "tuple[qload.LoadReport, ...]", console: Console) -> None:
    first = reports[0]
    print_findings(first.findings)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("checkpoint", escape(f"{first.path}, {first.method}"))
    for label, count in sorted(first.layers.items(), key=lambda item: -item[1]):
        table.add_row("", escape(f"{describe_count(count, 'layer')} {label}"))
    for path, count in sorted(first.paths.items(), key=lambda item: -item[1]):
        table.add_row("computes", escape(f"{describe_count(count, 'layer')} by {path}"))
    for reason, count in sorted(first.reasons.items(), key=lambda item: -item[1]):
        table.add_row("no kernel", escape(f"{describe_count(count, 'layer')}: {reason}"))
    for report in reports:
        name = "memory" if len(reports) == 1 else f"rank {report.rank}"
        table.add_row(name, _describe_memory(report))
    if len(reports) > 1:
        read = sum(report.bytes_read for report in reports)
        table.add_row("read", f"{describe_bytes(read)} by {len(reports)} ranks")
    phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in first.seconds.items())
    table.add_row("time", f"{sum(first.seconds.values()):.2f} s: {phases}")
    console.print(table, highlight=False, soft_wrap=True)


def _describe_memory(report: "qload.LoadReport") -> str:
    ratio = report.bytes_in_memory / report.bytes_dense if report.bytes_dense else 1
    return (
        f"{describe_bytes(report.bytes_in_memory)} on {report.device}, {ratio:.0%} of "
        f"{describe_bytes(report.bytes_dense)} dense in {report.dtype}"
    )
