"""What this process has of memory, for tests of what is held and given back."""

import sys
from pathlib import Path

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems tell nothing of pages")


def resident() -> int:
    """This process's anonymous memory, in bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) << 10
    raise LookupError("Anonymous")


def is_mapped(address: int) -> bool:
    """Whether this process has memory there."""
    spans = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(start, 16) <= address < int(stop, 16) for start, stop in spans)
