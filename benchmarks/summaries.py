"""What the figures that are kept come to, in a few lines."""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from computing import DENSIFYING, PLAIN, QLOAD, rate
from loading import Case, describe_case, rate_each, speeds, spread
from readers import PINNED, WAYS
from readers import QLOAD as QLOAD_LOAD

FORM = "int4 g128"
SPEED = """\
On {cores} cores of a CPU ({processor}), a 4-bit linear layer computes a token {densifying} times as fast as by turning
its weight dense, and {plain} times as fast as a dense bfloat16 one; 512 tokens at once, with {many} of the dense one's
speed: see [docs/benchmarks.md](docs/benchmarks.md)."""

Kept = Mapping[str, Any]


def summarize(folder: Path) -> Iterator[str]:
    """What the figures come to, in a line each."""
    loading = folder / "loading.json"
    if loading.exists():
        kept = json.loads(loading.read_text())
        yield from (summarize_case(kept, case) for case, runs in kept["runs"].items() if QLOAD_LOAD in runs)
    computing = folder / "computing.json"
    if computing.exists():
        yield from summarize_computing(json.loads(computing.read_text()))


def summarize_case(kept: Kept, case: str) -> str:
    runs = kept["runs"][case]
    limit = PINNED if PINNED in runs else Case(case).limit
    own = spread(speeds(dict(kept), case, QLOAD_LOAD), ".2f")
    share = spread(rate_each(runs, QLOAD_LOAD, limit, dict(kept)), ".2f")
    others = [way for way in runs if not way.startswith(("qload", "limit")) and not WAYS[way].mapped]
    best = max(others, key=lambda way: statistics.median(speeds(dict(kept), case, way)), default=None)
    beside = f"; the best other, {best}, {spread(speeds(dict(kept), case, best), '.2f')}" if best else ""
    return f"- {describe_case(Case(case))}: `qload.load` {own} GB/s, {share} of the limit{beside}."


def summarize_computing(kept: Kept) -> Iterator[str]:
    for form, states in kept["models"].items():
        for state, speed in states.items():
            beside = ", ".join(f"{way} {statistics.median(each):.1f}" for way, each in speed.items() if way != QLOAD)
            yield f"- Computing, {form}, {state}: qload {spread(speed[QLOAD], '.1f')} tokens/s; {beside}."


def describe_speed(folder: Path) -> str:
    """How fast a 4-bit layer computes one token, and many, in relation to a dense one: the medians of its shapes."""
    kept = json.loads((folder / "computing.json").read_text())
    machine = kept["machine"]
    return SPEED.format(
        cores=machine["cores"],
        processor=machine["processor"],
        densifying=describe_range(kept, "1", DENSIFYING, ".0f"),
        plain=describe_range(kept, "1", PLAIN, ".1f"),
        many=describe_range(kept, "512", PLAIN, ".1f"),
    )


def describe_range(kept: Kept, batch: str, way: str, form: str) -> str:
    """How many times qload's time a way takes, from the least to the greatest of the shapes."""
    medians = [statistics.median(rate(batches[batch], way)) for batches in kept["layers"][FORM].values()]
    return " to ".join(dict.fromkeys(format(each, form) for each in (min(medians), max(medians))))
