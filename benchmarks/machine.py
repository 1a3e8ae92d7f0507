"""What a figure was measured on."""

import importlib
import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def describe_machine(packages: Sequence[str], *, device: str = "cpu", since: float | None = None) -> dict[str, Any]:
    """The machine, the device, the interpreter, and the versions of qload and of those packages that are installed.

    `since` is the load average when the measuring began; the one at its end is kept beside it.
    """
    loads = [average for average in (since, measure_load()) if average is not None]
    return {
        "processor": name_processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(count_memory() / 1e9, 1),
        "kernel": platform.release(),
        "device": name_device(device),
        "load_average": [round(average, 2) for average in loads],
        "python": platform.python_version(),
        **dict(list_versions(("qload-torch", *packages))),
    }


def list_versions(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def name_processor() -> str:
    """The name that the processor gives itself, or that of its architecture where it gives none."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def name_device(device: str) -> str:
    """The name of a GPU, with the version of CUDA that torch was built for; `cpu` for the CPU."""
    if not device.startswith("cuda"):
        return device
    # Where there is no GPU to name, torch is not worth the time and the memory that it takes.
    torch = importlib.import_module("torch")
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def count_memory() -> int:
    """The machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measure_load() -> float:
    """How many processes wanted to run, on average over the last minute."""
    return os.getloadavg()[0]
