"""Loading one checkpoint into ready parameters, beside the limit and beside others: from the page cache and the disk.

    python benchmarks/loading.py [--rounds 7] [--cases warm cold ...] [--device cpu] [--json FILE]

The checkpoint is GPTQ's layout of 4 bits in groups of 128, 24 layers in six files (1.4 GB); the same in
compressed-tensors' layout, and a dense one of as many bytes, are there for those that read no other. Cases: `warm` and
`cold` load all of it from the page cache and from the disk; `warm 0/4` the share of one rank of 4, alone; `warm 4` the
shares of 4 ranks at once. Every run is a fresh process (forking.py); ways take turns in a new order each round, and
ratios are taken inside a round. Memory is sampled from outside, above what the process held when it began. What a way
cannot do is kept with its error.
"""

import argparse
import importlib.util
import json
import random
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from checkpoints import DENSE as DENSE_FORMAT
from checkpoints import FORMATS, GPTQ, Sizes, make_checkpoint
from forking import Answer, Running, Template
from limits import count_threads
from machine import describe_machine, measure_load
from paging import evict, warm
from progress import say
from readers import DENSE, DISK, LIMIT, PACKED, PACKED_OTHER, PICKLED, PINNED, SHARED, WAYS
from safetensors.torch import load_file

SIZES = Sizes(hidden=3072, inner=8192, heads=24, kv_heads=8, head=128, vocabulary=16000)
LAYERS = 24
CASES = (
    "warm",
    "cold",
    *(f"{state} {ranks}" for state in ("warm", "cold") for ranks in ("0/2", "0/4", "0/8", 2, 4, 8)),
)
MODULES = ("torch", "transformers.models.llama.modeling_llama", "qload.torch.models", "readers")
PACKAGES = ("torch", "transformers", "safetensors", "compressed-tensors", "fastsafetensors", "runai-model-streamer")
POINTS = 80
"""Of a curve of memory over time."""

Runs = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Case:
    """Which pages are cached, and which ranks load."""

    name: str

    @property
    def is_cold(self) -> bool:
        return self.name.startswith("cold")

    @property
    def together(self) -> bool:
        return self.name.partition(" ")[2].isdigit()

    @property
    def size(self) -> int:
        return int(self.name.partition(" ")[2].rpartition("/")[2] or 1)

    @property
    def limit(self) -> str:
        return DISK if self.is_cold else LIMIT


def make_checkpoints(folder: Path, sizes: Sizes, layers: int) -> dict[str, int]:
    """Write each of them; the bytes of their tensors. The dense one has as many layers as make up the same bytes."""
    totals = {
        PACKED: make_checkpoint(folder / PACKED, sizes, layers, GPTQ),
        PACKED_OTHER: make_checkpoint(folder / PACKED_OTHER, sizes, layers, FORMATS["int4 g128"]),
        DENSE: make_checkpoint(folder / DENSE, sizes, max(1, layers // 4), DENSE_FORMAT, in_a_file=1),
    }
    (folder / PICKLED).mkdir()
    for path in sorted((folder / PACKED).glob("*.safetensors")):
        torch.save(load_file(path), folder / PICKLED / f"{path.stem}.pt")
    return totals | {PICKLED: totals[PACKED]}


def list_ways(case: Case, device: str) -> tuple[list[str], dict[str, str]]:
    """The ways to load in this case, and why others are left out."""
    ways, left = [], {}
    for name, way in WAYS.items():
        if (case.size > 1 and way.wholly) or (case.size == 1 and name in SHARED) or (not case.is_cold and name == DISK):
            continue
        if device.partition(":")[0] not in way.devices or (case.size > 1 and device != "cpu"):
            continue
        if way.needs is not None and not importlib.util.find_spec(way.needs):
            left[name] = f"{way.needs} is not installed"
        else:
            ways.append(name)
    return ways, left


def run(folder: Path, cases: Iterable[Case], device: str, rounds: int, seed: int) -> tuple[dict[str, Runs], Any, Any]:
    """Each way in each case, in turn, so many times: what was measured, what failed, and curves of memory."""
    found: dict[str, Runs] = {}
    failures: dict[str, dict[str, str]] = {}
    curves: dict[str, list[tuple[float, Any]]] = {}
    plan = {case: list_ways(case, device) for case in cases}
    for case, (_, left) in plan.items():
        failures[case.name] = dict(left)
        found[case.name] = {}
    shuffled = random.Random(seed)
    with start_template(device) as running:
        for turn in range(rounds):
            for case, (ways, _) in plan.items():
                for way in shuffled.sample(ways, len(ways)):
                    if way in failures[case.name]:
                        continue
                    say(f"round {turn + 1} of {rounds}, {case.name}: {way}")
                    answers = load(running, folder, case, way, device)
                    error = next((each["error"] for each in answers if "error" in each), None)
                    if error is not None:
                        failures[case.name][way] = error
                        found[case.name].pop(way, None)
                        continue
                    summary = sum_up(answers)
                    found[case.name].setdefault(way, []).append(summary)
                    if case.name == "warm":
                        curves.setdefault(way, []).append((summary["seconds"], draw_curve(answers[0])))
    say()
    return found, failures, {way: pick_median(each) for way, each in curves.items()}


def start_template(device: str) -> Running:
    """A GPU cannot be used on both sides of a fork: torch is to ask the driver another way whether there is one."""
    return Template(MODULES, {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if device != "cpu" else None).start()


def load(running: Running, folder: Path, case: Case, way: str, device: str) -> list[Answer]:
    """One run, or one for each rank, from the cache or from the disk."""
    files = sorted(path for path in (folder / WAYS[way].checkpoint).iterdir() if path.suffix in (".safetensors", ".pt"))
    if case.is_cold:
        if evict(files) > 1 << 20:
            return [{"error": "the files stayed in the page cache"}]
    else:
        warm(files)
    with tempfile.TemporaryDirectory() as meeting:
        arguments = [way, str(folder), device, case.size, case.together, f"{meeting}/ranks"]
        return running.run("readers:measure", arguments, count=case.size if case.together else 1)


def sum_up(answers: Sequence[Answer]) -> dict[str, Any]:
    """A run of several ranks takes as long as the slowest, and holds what all of them do together."""
    slowest = max(answers, key=lambda each: each["seconds"] + each["touch_seconds"])
    peaks = [measure_peak(each) for each in answers]
    kept = ("seconds", "touch_seconds", "phases", "load_average")
    return {
        **{key: slowest[key] for key in kept},
        "peak_resident": sum(resident for resident, _ in peaks),
        "peak_anonymous": sum(anonymous for _, anonymous in peaks),
    }


def measure_peak(answer: Answer) -> tuple[int, int]:
    samples = answer["trace"].between(answer["started"], answer["stopped"])
    return max((each.resident for each in samples), default=0), max((each.anonymous for each in samples), default=0)


def draw_curve(answer: Answer) -> dict[str, list[float]]:
    """Seconds, and bytes held then."""
    samples = answer["trace"].between(answer["started"], answer["stopped"])
    step = -(-len(samples) // POINTS) or 1
    chosen = samples[::step]
    return {
        "seconds": [round(each.time, 4) for each in chosen],
        "resident": [each.resident for each in chosen],
        "anonymous": [each.anonymous for each in chosen],
    }


def pick_median(curves: list[tuple[float, Any]]) -> Any:
    """The curve of the run that took the median time, or the one below it."""
    return sorted(curves, key=lambda each: each[0])[(len(curves) - 1) // 2][1]


def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    since = measure_load()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        totals = make_checkpoints(folder, arguments.sizes, arguments.layers)
        cases = [Case(each) for each in arguments.cases]
        found, failures, curves = run(folder, cases, arguments.device, arguments.rounds, arguments.seed)
    return {
        "machine": describe_machine(PACKAGES, device=arguments.device, since=since),
        "threads": count_threads(),
        "bytes": totals,
        "checkpoints": {name: way.checkpoint for name, way in WAYS.items()},
        "runs": found,
        "failures": failures,
        "memory": curves,
    }


def show(kept: dict[str, Any]) -> None:
    for case, runs in kept["runs"].items():
        limit = PINNED if PINNED in runs else Case(case).limit
        size = Case(case).size
        print(f"\n{case}: medians (least to greatest)\n\n| way | s | GB/s | of the limit | peak, of the bytes |")
        print("|---|---|---|---|---|")
        for way, each in sorted(runs.items(), key=lambda item: statistics.median(map(take, item[1]))):
            total = kept["bytes"][kept["checkpoints"][way]]
            shares = rate_each(runs, way, limit, kept)
            peak = (
                statistics.median(one["peak_resident"] for one in each) / total * (1 if Case(case).together else size)
            )
            cells = (spread(map(take, each), ".2f"), spread(speeds(kept, case, way), ".2f"), spread(shares, ".2f"))
            print(f"| {way} | {' | '.join(cells)} | {peak:.2f} |")
        for way, reason in kept["failures"][case].items():
            print(f"\n{way}: {reason}")


def take(measured: dict[str, Any]) -> float:
    """The seconds until the parameters are ready."""
    return float(measured["seconds"] + measured["touch_seconds"])


def speeds(kept: dict[str, Any], case: str, way: str) -> list[float]:
    """GB/s of each round; of one rank alone, of its share."""
    share = 1 if Case(case).together else Case(case).size
    total = kept["bytes"][kept["checkpoints"][way]] / share
    return [total / take(each) / 1e9 for each in kept["runs"][case][way]]


def rate_each(runs: Runs, way: str, limit: str, kept: dict[str, Any]) -> list[float]:
    """Round by round, how much of the limit's speed."""
    bytes_of = {name: kept["bytes"][kept["checkpoints"][name]] for name in (way, limit)}
    pairs = zip(runs[way], runs.get(limit, []), strict=False)
    return [bytes_of[way] / take(own) / (bytes_of[limit] / take(best)) for own, best in pairs]


def describe_case(case: Case) -> str:
    source = "from the disk" if case.is_cold else "from the page cache"
    if case.size == 1:
        return f"The whole checkpoint, {source}"
    who = f"{case.size} ranks at once" if case.together else f"one rank of {case.size}, alone"
    return f"The shares of {who}, {source}" if case.together else f"The share of {who}, {source}"


def spread(values: Iterable[float], form: str) -> str:
    found = list(values)
    if not found:
        return "not measured"
    return f"{statistics.median(found):{form}} ({min(found):{form}} to {max(found):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--hidden", type=int, default=SIZES.hidden, help="a multiple of 1024; the rest goes with it")
    parser.add_argument("--folder", type=Path, help="where the checkpoints are written, for as long as it takes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.sizes = scale(SIZES, arguments.hidden)
    kept = measure_all(arguments)
    show(kept)
    if arguments.json:
        arguments.json.write_text(json.dumps(kept, indent=1))


def scale(sizes: Sizes, hidden: int) -> Sizes:
    """Smaller ones for a trial, that 8 ranks can divide."""
    if hidden == sizes.hidden:
        return sizes
    return Sizes(hidden, 2 * hidden, hidden // 128, max(1, hidden // 128), 128, 1024)


if __name__ == "__main__":
    main()
