"""Filling: layers in the order of their bytes, memory only for what landed, and what no copy fills is no data."""

import gc
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qload.declare import ParameterKind
from qload.layout import Interval
from qload.plan import Copy, LayerPlan, Plan, Slot
from qload.torch import spares
from qload.torch.feeding import describe
from qload.torch.loading import filling
from qload.torch.loading.filling import fill
from qload.torch.loading.holding import MemoryReader
from qload.torch.loading.orders import Order
from qload.torch.loading.progress import Progress
from qload.torch.memory import Arena

CPU = torch.device("cpu")
STORED = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(3, 4), "c": torch.full((3, 4), 2.0)}


def make_plan(rows: int = 3, order: str = "cab", blank: float = math.nan) -> Plan:
    """A plain layer for each stored tensor, of which so many rows are copied; their bytes are in the given order."""
    layers = []
    for name, tensor in STORED.items():
        found = describe(tensor, name, "f")
        entry = type(found)(name, found.dtype, found.shape, "f", order.index(name) * 48, order.index(name) * 48 + 48)
        region = (Interval(0, rows), Interval(0, 4))
        copy = Copy(entry, (3, 4), region, region)
        layers.append(LayerPlan(name, (Slot("weight", ParameterKind.WEIGHT, "F32", (3, 4), blank, (copy,)),)))
    return Plan(tuple(layers), ())


def make_modules() -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(4, 3, bias=False, device="meta") for name in STORED})


def weights(modules: nn.ModuleDict) -> dict[str, Tensor]:
    return {name: modules.get_parameter(f"{name}.weight") for name in STORED}


def test_layers_come_in_the_order_of_their_bytes() -> None:
    modules, seen = make_modules(), list[Progress]()
    fill(make_plan(), modules.get_submodule, MemoryReader(STORED), CPU, path="x", progress=seen.append)
    assert [step.layer for step in seen] == ["c", "a", "b"]
    assert [step.done for step in seen] == [48, 96, 144]
    assert all(torch.equal(tensor, STORED[name]) for name, tensor in weights(modules).items())


def test_what_no_copy_fills_is_no_data() -> None:
    modules = make_modules()
    fill(make_plan(rows=2), modules.get_submodule, MemoryReader(STORED), CPU, path="x")
    for name, tensor in weights(modules).items():
        assert torch.equal(tensor[:2], STORED[name][:2])
        assert bool(tensor[2:].isnan().all())


def test_what_is_blank_is_zero_also_in_memory_that_was_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "_LEAST", 1)
    monkeypatch.setattr(filling, "Arena", make_used)
    modules = make_modules()
    fill(make_plan(rows=2, blank=0.0), modules.get_submodule, MemoryReader(STORED), CPU, path="x")
    assert all(torch.equal(tensor[2:], torch.zeros(1, 4)) for tensor in weights(modules).values())


def make_used(device: torch.device, **options: Any) -> Arena:
    """An arena that keeps what a tensor has left, which is not zero."""
    arena = Arena(device, **options)
    arena.take((64, 4), torch.float32).fill_(7)
    gc.collect()
    assert arena.take((16, 4), torch.float32, zeros=False).max() == 7
    return arena


class Backwards(MemoryReader):
    """Takes all orders, and yields the last one first; raises in place of the last."""

    def __init__(self, stored: dict[str, Tensor], until: int = 3) -> None:
        super().__init__(stored)
        self.until, self.is_closed = until, False

    def read(self, orders: Iterable[Order]) -> Iterator[Order]:
        given = list(super().read(list(orders)))
        yield from given[::-1][: self.until]
        if self.until < len(given):
            raise OSError("the disk is gone")

    def close(self) -> None:
        self.is_closed = True


def test_layers_that_land_early_wait_for_those_before_them() -> None:
    modules, finished = make_modules(), list[str]()

    def find(name: str) -> nn.Module:
        return Noted(modules.get_submodule(name), name, finished)

    fill(make_plan(), find, Backwards(STORED), CPU, path="x")
    assert finished == ["c", "a", "b"]


class Noted(nn.Module):
    """Notes when a layer's parameter is asked for, as it is when it is put there."""

    def __init__(self, module: nn.Module, name: str, finished: list[str]) -> None:
        super().__init__()
        self.inner, self.name, self.finished = module, name, finished

    def get_parameter(self, target: str) -> nn.Parameter:
        self.finished.append(self.name)
        return self.inner.get_parameter(target)


@pytest.mark.parametrize("until", [0, 1, 2])
def test_a_load_that_fails_leaves_nothing_unwritten(until: int) -> None:
    modules, reader = make_modules(), Backwards(STORED, until)
    with pytest.raises(OSError, match="the disk is gone"):
        fill(make_plan(order="bca"), modules.get_submodule, reader, CPU, path="x")
    assert reader.is_closed
    # They land backwards, so that the first layer in the file, for which all wait, never does.
    assert all(tensor.is_meta for tensor in weights(modules).values())


def test_progress_tells_how_fast_and_how_long() -> None:
    assert Progress(100, 400, "x", 2.0).rate == 50
    assert Progress(100, 400, "x", 2.0).left == 6
    assert Progress(0, 400, "x", 2.0).left == math.inf
    assert Progress(0, 0, "x").left == 0
