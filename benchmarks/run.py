"""Run all benchmarks that the machine at hand allows, keep their figures, and draw them.

    python benchmarks/run.py [--quick] [--only NAME ...] [--out FOLDER] [--list]

Each is a script of this folder, and is run by itself, one after another; peers are installed by `pip install -e
".[bench]"`. One JSON file is written for each, with every run, the machine, the device, the versions and the load
average; then the plots, and the tables of docs/benchmarks.md. A benchmark that the machine does not allow is left out,
and the reason said; its figures stay as they are.
"""

import argparse
import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from entries import ENTRIES, KEPT, Entry

HERE = Path(__file__).parent
ROOT = HERE.parent
CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True, slots=True)
class Room:
    """What the machine has free, in gigabytes, and whether it has a GPU."""

    memory: float
    disk: float
    gpu: bool

    @classmethod
    def measure(cls) -> "Room":
        table = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        memory = int(table["MemAvailable"].split()[0]) * 1024 / 1e9
        return cls(memory, shutil.disk_usage("/tmp").free / 1e9, has_gpu())

    def refuse(self, entry: Entry) -> str:
        """Why the benchmark cannot be run here; empty where it can."""
        if not (HERE / entry.script).exists():
            return f"there is no {entry.script}"
        if entry.memory > self.memory:
            return f"it needs {entry.memory:g} GB of memory, and {self.memory:.1f} GB are free"
        if entry.disk > self.disk:
            return f"it needs {entry.disk:g} GB on the disk, and {self.disk:.1f} GB are free"
        return ""


def has_gpu() -> bool:
    """Whether torch sees one; asked in a process of its own, which holds nothing of it afterwards."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return not subprocess.run([sys.executable, "-c", code], check=False).returncode


def list_runs(names: list[str], room: Room, *, quick: bool = False) -> Iterator[tuple[Entry, str, str]]:
    """Each benchmark with each device, and why it is left out."""
    for entry in ENTRIES:
        if entry.name not in names:
            continue
        slow = "it takes long" if quick and not entry.quick else ""
        yield entry, CPU, slow or room.refuse(entry)
        if entry.gpu:
            yield entry, CUDA, room.refuse(entry) or ("" if room.gpu else "there is no GPU")


def run(entry: Entry, device: str, out: Path, *, quick: bool) -> str:
    """Run one; why it failed, or nothing."""
    options = entry.quick if quick else entry.full
    target = out / entry.kept(device)
    fresh = target.with_suffix(".new")
    command = [sys.executable, str(HERE / entry.script), *options, "--json", str(fresh)]
    if device != CPU:
        command += ["--device", device]
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=None if sys.stderr.isatty() else subprocess.PIPE
    )
    if done.returncode or not fresh.exists():
        fresh.unlink(missing_ok=True)
        return f"it ended with {done.returncode}" + (f": {done.stderr.strip().splitlines()[-1]}" if done.stderr else "")
    said = " ".join(shlex.quote(each) for each in [f"benchmarks/{entry.script}", *command[2:]])
    keep(fresh, target, f"python {said.partition(' --json')[0]}{'' if device == CPU else f' --device {device}'}")
    print(done.stdout)
    return ""


def keep(fresh: Path, target: Path, command: str) -> None:
    """Put what was measured in the place of what was kept, with the command that measures it."""
    target.write_text(json.dumps({"command": command, **json.loads(fresh.read_text())}, indent=1))
    fresh.unlink()


def say_missing(entry: Entry) -> None:
    missing = [peer for peer in entry.peers if not importlib.util.find_spec(peer)]
    if missing:
        print(f"  without {', '.join(missing)}: not installed (pip install -e '.[bench]')")


def show_list(room: Room) -> None:
    for entry, device, reason in list_runs([entry.name for entry in ENTRIES], room):
        state = f"left out: {reason}" if reason else f"{entry.minutes:g} min{' with --quick' if entry.quick else ''}"
        print(f"{entry.name:16} {device:5} {entry.what}\n{'':22} {state}")


def draw(out: Path) -> None:
    """Draw what is kept, and write its tables into the page, if it is kept where the page takes it from."""
    jobs = [[str(HERE / "plots.py"), str(out)]]
    if out.resolve() == (ROOT / KEPT).resolve():
        jobs.append([str(HERE / "tables.py")])
    for job in jobs:
        if subprocess.run([sys.executable, *job], check=False).returncode:
            print(f"{Path(job[0]).name} failed", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=[entry.name for entry in ENTRIES], metavar="NAME", help="which ones"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and cases, for a quarter of an hour on 2 cores"
    )
    parser.add_argument("--out", type=Path, default=ROOT / KEPT, help="where figures and plots are kept")
    parser.add_argument("--list", action="store_true", help="say what there is, what would be left out, and why")
    arguments = parser.parse_args()
    room = Room.measure()
    if arguments.list:
        show_list(room)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    runs = list(list_runs(arguments.only or [entry.name for entry in ENTRIES], room, quick=arguments.quick))
    for number, (entry, device, reason) in enumerate(runs, 1):
        print(
            f"[{number}/{len(runs)}] {entry.name}, {device}: {f'left out, {reason}' if reason else entry.what}",
            flush=True,
        )
        if reason:
            continue
        say_missing(entry)
        started = time.monotonic()
        failure = run(entry, device, arguments.out, quick=arguments.quick)
        failed += bool(failure)
        print(f"  {failure or 'done'}, after {(time.monotonic() - started) / 60:.1f} min", flush=True)
    draw(arguments.out)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
