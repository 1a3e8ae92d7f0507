"""Time and memory of validating: of 89,716 tensors beside parsing their headers, and of starting beside torch.

    python benchmarks/validate_speed.py [--rounds 7] [--starts 5] [--json FILE]

The checkpoint is the stand-in of standin.py: 616 GB in 163 sparse files. Parsing their headers with the json module is
what a validator in Python cannot be without; the ways take turns in one process, each after a collection of garbage.
Each start is a process of its own: the command on the stand-in and on a small checkpoint, and what a user would wait
for who imported torch or compressed_tensors to find out. Peak memory is the process's, beside that of parsing alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe_machine, measure_load
from standin import make_standin
from timing import Runs, show, time_calls

import qload

SMALL = Path(__file__).parents[1] / "tests" / "data" / "ct-w4a16-g128-asym"
RANKS = (1, 2, 4, 8)
PARSE = "parse the headers"
PARSING = """
import json, pathlib, sys
headers = []
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    with path.open("rb") as file:
        headers.append(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
"""

STARTER = """
import os, subprocess, sys, time
started = time.perf_counter()
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen([sys.executable, *sys.argv[1:]], **quiet)
_, child.returncode, usage = os.wait4(child.pid, 0)
print(time.perf_counter() - started, usage.ru_maxrss, child.returncode)
"""


def parse_headers(folder: str | Path) -> int:
    """Read every header with the json module, and keep them; the number of their entries."""
    headers = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            headers.append(json.loads(file.read(int.from_bytes(file.read(8), "little"))))
    return sum(map(len, headers))


def measure_calls(folder: Path, rounds: int) -> Runs:
    registry = qload.Registry.discover()
    if qload.validate(folder, registry=registry).findings:
        raise SystemExit("the stand-in was made wrongly: there are findings")
    return time_calls(
        {
            PARSE: lambda: parse_headers(folder),
            "qload.validate": lambda: qload.validate(folder, registry=registry),
            "qload.validate(tp=(1, 2, 4, 8))": lambda: qload.validate(folder, registry=registry, tp=RANKS),
        },
        rounds,
    )


def measure_starts(folder: Path, rounds: int) -> tuple[Runs, dict[str, list[float]]]:
    """Seconds and greatest megabytes of whole processes."""
    ways = {
        "python -c pass": ["-c", "pass"],
        "import torch": ["-c", "import torch"],
        "import compressed_tensors": ["-c", "import compressed_tensors"],
        PARSE: ["-c", PARSING, str(folder)],
        "qload validate, 1.7 MB": ["-m", "qload", "validate", str(SMALL)],
        "qload validate, 616 GB": ["-m", "qload", "validate", str(folder)],
    }
    seconds: Runs = {way: [] for way in ways}
    peaks: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, arguments in ways.items():
            elapsed, peak = run(arguments)
            if number:
                seconds[way].append(elapsed)
                peaks[way].append(peak)
    return seconds, peaks


def run(arguments: list[str]) -> tuple[float, float]:
    """Run python; its seconds, and its greatest resident memory in MB."""
    # A process counts what its parent held when it was made: the parent is to be a small one.
    done = subprocess.run([sys.executable, "-S", "-c", STARTER, *arguments], capture_output=True, text=True, check=True)
    seconds, kilobytes, status = done.stdout.split()
    if int(status):
        raise SystemExit(f"{' '.join(arguments)} ended with {status}")
    return float(seconds), float(kilobytes) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    since = measure_load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = make_standin(folder)
        calls = measure_calls(folder, arguments.rounds)
        starts, peaks = measure_starts(folder, arguments.starts)
    print(f"{tensors} tensors; medians (least to greatest)")
    limit, torch = statistics.median(calls[PARSE]), statistics.median(starts["import torch"])
    least = statistics.median(peaks[PARSE])
    show(("in one process", "s", f"times {PARSE}"), calls, lambda seconds: f"{seconds / limit:.2f}", ".3f")
    show(("a process of its own", "s", "times import torch"), starts, lambda seconds: f"{seconds / torch:.2f}", ".3f")
    show(("its peak memory", "MB", f"times {PARSE}"), peaks, lambda megabytes: f"{megabytes / least:.2f}", ".0f")
    if arguments.json:
        kept = {"tensors": tensors, "seconds": calls, "starts": starts, "peak_mb": peaks}
        machine = describe_machine(("msgspec", "pydantic", "torch"), since=since)
        arguments.json.write_text(json.dumps({"machine": machine, **kept}, indent=1))


if __name__ == "__main__":
    main()
