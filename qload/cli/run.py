"""`qload run`: loads a checkpoint, says what was loaded, and generates."""

import importlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

import qload
from qload.checkpoint import list_files
from qload.cli.shared import (
    checkpoint_argument,
    describe_bytes,
    describe_count,
    format_option,
    print_findings,
    print_json,
)
from qload.errors import ModelError

_TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece", "tekken")
"""How the names of the files begin that hold one."""


@click.command(name="run")
@checkpoint_argument
@click.option("--prompt", required=True, help="The text to go on from.")
@click.option("--device", default="cpu", show_default=True, help="Where to load it: cpu, cuda, cuda:1.")
@click.option("--dtype", default=None, help="What to compute in: float32, bfloat16, float16. [default: the config's]")
@click.option("--max-new-tokens", default=40, show_default=True, type=click.IntRange(min=1), help="How far to go on.")
@click.option(
    "--quantization",
    default=None,
    help="Quantize a plain checkpoint while loading: int4, int8, ... [see qload methods]",
)
@click.option("--weights-only", is_flag=True, help="Do not quantize activations, where the scheme does.")
@format_option
def command(
    path: Path,
    prompt: str,
    device: str,
    dtype: str | None,
    max_new_tokens: int,
    quantization: str | None,
    weights_only: bool,
    output: str,
) -> None:
    """Load the checkpoint in the folder PATH, and go on from a prompt.

    Generates greedily, so that the same checkpoint gives the same text.
    """
    console = Console(stderr=True)
    tokenizer = _read_tokenizer(path)
    options = {"device": device, "dtype": dtype, "quantization": quantization}
    model = _load(path, console, quantize_activations=not weights_only, **options)
    report = qload.report(model)
    text, tokens, seconds = _generate(model, tokenizer, prompt, max_new_tokens)
    if output == "json":
        print_json({**asdict(report), "prompt": prompt, "text": text, "tokens": tokens, "generating": seconds})
        return
    _print_summary(report, console)
    click.echo(prompt + text)
    console.print(f"{tokens} tokens in {seconds:.2f} s", highlight=False)


def _load(path: Path, console: Console, **options: Any) -> Any:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def show(progress: qload.Progress) -> None:
            bar.update(task, completed=progress.done, total=progress.total)

        return qload.load(path, progress=show, **options)


def _read_tokenizer(path: Path) -> Any:
    """The checkpoint's tokenizer, read first, for without one there is nothing to load for."""
    files = list_files(path)
    remedy = "put tokenizer.json beside config.json"
    if not any(name.startswith(_TOKENIZERS) for name in files):
        raise ModelError("there is no tokenizer", where=str(path), remedy=remedy)
    transformers = importlib.import_module("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # each tokenizer's code has errors of its own
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the tokenizer cannot be read: {first}", where=str(path), remedy=remedy) from error


def _generate(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> tuple[str, int, float]:
    torch = importlib.import_module("torch")
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    started = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), len(new), time.perf_counter() - started


def _print_summary(report: "qload.LoadReport", console: Console) -> None:
    print_findings(report.findings)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("checkpoint", escape(f"{report.path}, {report.method}"))
    for label, count in sorted(report.layers.items(), key=lambda item: -item[1]):
        table.add_row("", escape(f"{describe_count(count, 'layer')} {label}"))
    ratio = report.bytes_in_memory / report.bytes_dense if report.bytes_dense else 1
    table.add_row(
        "memory",
        f"{describe_bytes(report.bytes_in_memory)} on {report.device}, {ratio:.0%} of "
        f"{describe_bytes(report.bytes_dense)} dense in {report.dtype}",
    )
    phases = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in report.seconds.items())
    table.add_row("time", f"{sum(report.seconds.values()):.2f} s: {phases}")
    console.print(table, highlight=False, soft_wrap=True)
