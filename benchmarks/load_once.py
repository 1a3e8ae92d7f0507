"""One load in a process that has imported nothing: the seconds of each part, as JSON. For `load_parts.py`."""

import argparse
import importlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Clock:
    """The seconds of each part, in their order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - started


def measure(folder: Path, kind: str, *, data: bool) -> dict[str, float]:
    """Load in this process, which has imported nothing yet, or only plan to."""
    clock = Clock()
    for package in ("qload", "torch", "transformers", "qload.torch.models"):
        with clock.time(f"import {package}"):
            importlib.import_module(package)
    with clock.time("import the model's classes"):
        importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    torch, loading = importlib.import_module("torch"), importlib.import_module("qload.torch.models.loading")
    load = importlib.import_module("qload.torch.loading.load")
    begun = load.Load.begin(folder, load.LoadOptions(torch.device("cpu")))
    planned = loading.plan_load(begun, None, True, by_experts=False)
    if planned.plan.findings:
        raise SystemExit("the checkpoint was made wrongly: there are findings")
    if data:
        planned.run()
    return clock.seconds | begun.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", help="transformers' name of the model's kind")
    parser.add_argument("--data", action="store_true", help="copy, too")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.folder, arguments.kind, data=arguments.data)))


if __name__ == "__main__":
    main()
