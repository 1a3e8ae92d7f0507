"""What malloc keeps of freed memory goes back to the system."""

import platform
from collections.abc import Callable

import pytest
import torch
from residence import resident
from samples import DATA
from torch import Tensor

import qload
from qload.torch.heap import trim_heap

SIZE = 64 << 10


def crumble() -> list[Tensor]:
    """Free 128 MB of the heap, with so much staying in between that malloc keeps it all."""
    made = [torch.zeros(SIZE, dtype=torch.uint8) for _ in range(2000)]
    return made[::50] + made[-1:]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")
@pytest.mark.parametrize(
    "act", [trim_heap, lambda: qload.load(DATA / "gptq-4bit-g128-asym")], ids=["alone", "after a load"]
)
def test_freed_memory_goes_back(act: Callable[[], object]) -> None:
    act()  # What is imported and cached on the way stays.
    kept = crumble()
    before = resident()
    loaded = act()
    assert resident() < before - 1500 * SIZE
    assert len(kept) == 41
    del loaded
