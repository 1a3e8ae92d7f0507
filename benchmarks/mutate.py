"""Random changes to real checkpoints: each is found, or shown harmless by equal logits; none crashes or hangs.

    python benchmarks/mutate.py [--count 40] [--seed 0] [--seconds 60] [--memory 16] [--json FILE] [FOLDER ...]

`--count` is for each checkpoint (those of tests/data, where no folders are given): half of them as they are, half split
into three files with an index. Each change is validated with all tiers, and held against its model. One in which
nothing is found is loaded, and its logits compared with the unchanged checkpoint's: a survivor is one that differs.
Each may take `--seconds`, and the process `--memory` GB more than it has at the start. `--keep` is a folder for what
crashed, hung or survived.
"""

import argparse
import json
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from machine import describe_machine, measure_load

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from edits import copy_checkpoint, split_files  # noqa: E402
from mutating import MUTATORS  # noqa: E402

import qload  # noqa: E402

PACKAGES = ("torch", "transformers")
IDS = torch.tensor([[1, 5, 17, 300, 42, 7]])


@dataclass(frozen=True)
class Outcome:
    """What became of one change: found (by validating, or by loading only), harmless, survived, or crashed."""

    checkpoint: str
    mutator: str
    what: str
    verdict: str
    detail: str = ""


class TookTooLongError(Exception):
    """Raised where judging a change takes longer than it may."""


@dataclass(frozen=True)
class Trial:
    """How changes of a checkpoint are tried."""

    count: int
    seed: int
    seconds: int
    registry: qload.Registry
    keep: Path | None = None

    def run(self, source: Path) -> Iterator[Outcome]:
        """Change copies of the checkpoint, and say what became of each."""
        random = Random(f"{self.seed} {source.name}")
        expected = compute(load(source, self.registry))
        for number in range(self.count):
            with tempfile.TemporaryDirectory() as name:
                folder = copy_checkpoint(source, Path(name) / source.name)
                if number % 2 and (folder / "model.safetensors").exists():
                    split_files(folder, 3)
                mutator, what = mutate(random, folder)
                verdict, detail = self.judge(folder, expected)
                if self.keep is not None and verdict in ("crashed", "hung", "survived"):
                    shutil.copytree(folder, self.keep / f"{source.name}-{self.seed}-{number}", dirs_exist_ok=True)
            yield Outcome(source.name, mutator, what, verdict, detail)

    def judge(self, folder: Path, expected: torch.Tensor) -> tuple[str, str]:
        """The verdict, whatever happens."""
        signal.alarm(self.seconds)
        try:
            return judge(folder, expected, self.registry)
        except TookTooLongError:
            return "hung", f"longer than {self.seconds} s"
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return "crashed", f"{type(error).__name__}: {error} at {last.filename}:{last.lineno}"
        finally:
            signal.alarm(0)


def mutate(random: Random, folder: Path) -> tuple[str, str]:
    while True:
        name = random.choice(list(MUTATORS))
        what = MUTATORS[name](random, folder)
        if what is not None:
            return name, what


def judge(folder: Path, expected: torch.Tensor, registry: qload.Registry) -> tuple[str, str]:
    try:
        report = qload.validate(folder, registry=registry, model=True, deep=True)
    except qload.QloadError as error:
        return "found", str(error)
    if report.findings:
        return "found", " ".join(sorted({finding.code for finding in report.findings}))
    try:
        model = load(folder, registry)
    except qload.CheckpointError as error:
        return "found by loading", " ".join(sorted({finding.code for finding in error.findings}))
    except qload.QloadError as error:
        return "found by loading", str(error)
    try:
        logits = compute(model)
    except Exception as error:  # whatever an architecture makes of a config that contradicts itself
        return "found by computing", f"{type(error).__name__}: {error}"
    same = logits.shape == expected.shape and torch.equal(logits.nan_to_num(), expected.nan_to_num())
    return (
        ("harmless", "")
        if same
        else ("survived", f"{(logits - expected).abs().max():.2e}" if logits.shape == expected.shape else "")
    )


def load(folder: Path, registry: qload.Registry) -> Any:
    return qload.load(folder, registry=registry)


def compute(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(IDS % model.config.get_text_config().vocab_size).logits
    return logits


def sum_up(outcomes: list[Outcome]) -> dict[str, Any]:
    """How many of each kind came out how, and those that validating did not find."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        counts[outcome.mutator][outcome.verdict] += 1
    return {
        "checkpoints": len({outcome.checkpoint for outcome in outcomes}),
        "changes": len(outcomes),
        "verdicts": Counter(outcome.verdict for outcome in outcomes),
        "by kind": dict(sorted(counts.items())),
        "others": [asdict(outcome) for outcome in outcomes if outcome.verdict not in ("found", "harmless")],
    }


def expire(*_: object) -> None:
    raise TookTooLongError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--memory", type=float, default=16)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    since = measure_load()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, expire)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = size + int(arguments.memory * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    folders = arguments.folders or sorted(path for path in (ROOT / "tests" / "data").iterdir() if path.is_dir())
    registry = qload.Registry.discover()
    trial = Trial(arguments.count, arguments.seed, arguments.seconds, registry, arguments.keep)
    outcomes: list[Outcome] = []
    for source in folders:
        for outcome in trial.run(source):
            outcomes.append(outcome)
            if outcome.verdict not in ("found", "harmless"):
                print(*asdict(outcome).values(), sep=" | ", flush=True)
        counts = Counter(outcome.verdict for outcome in outcomes)
        print(f"{source.name}: {dict(counts)}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": describe_machine(PACKAGES, since=since), **sum_up(outcomes)}, indent=1)
        )


if __name__ == "__main__":
    main()
