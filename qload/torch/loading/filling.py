"""Carries a plan out: takes memory for each layer, has it filled, and finishes the layers one after another."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from qload.errors import CheckpointError
from qload.findings import Finding
from qload.layout import volume
from qload.plan import LayerPlan, Plan, Slot
from qload.torch.dtypes import make_filled, torch_dtype
from qload.torch.garbage import putting_off_collections
from qload.torch.heap import trim_heap
from qload.torch.kernels import Table
from qload.torch.layers import Layer
from qload.torch.loading.orders import Order, Reader, reading
from qload.torch.loading.packers import Packers
from qload.torch.loading.progress import Progress, ProgressHook
from qload.torch.memory import Arena
from qload.torch.values import check_values, watch_values

SPARE_BYTES = 16 << 20
"""Of memory that packed layers have left, kept for the next ones; of larger ones the last."""


@dataclass(slots=True)
class _Work:
    """A layer that is being filled: its module, its tensors, and how many copies have not landed."""

    plan: LayerPlan
    module: nn.Module
    tensors: list[Tensor] = field(default_factory=list)
    left: int = 0

    @property
    def layer(self) -> Layer | None:
        """The module, if all of it is loaded: a tied head's own bias is a plain tensor, the rest is its table's."""
        return self.module if isinstance(self.module, Layer) and self.plan.target is not None else None


class Filling:
    """One fill of the modules that `find` gives for the names of a plan's layers.

    Memory is taken for a layer when its orders are, and put into its module once all of them have landed. Layers are
    finished in the order of their bytes in the files, which is the same on all ranks. `seconds` is the time that
    finishing took: checking values, the post-load hooks, and packing for `kernels`. `synchronize` is called after each
    copy.
    """

    def __init__(
        self,
        plan: Plan,
        find: Callable[[str], nn.Module],
        arena: Arena,
        progress: ProgressHook | None = None,
        synchronize: Callable[[], None] | None = None,
        kernels: Table | None = None,
    ) -> None:
        self._layers = sorted(plan.layers, key=_place)
        self._find = find
        self._arena = arena
        self._progress = progress
        self._synchronize = synchronize
        self._packers = Packers(kernels or Table(), arena)
        self._begun: dict[int, _Work] = {}
        self._next = 0
        self._done = 0
        self._total = 0 if progress is None else plan.bytes_read
        self._started = time.perf_counter()
        self.seconds = 0.0
        self.findings: list[Finding] = []

    def run(self, reader: Reader) -> None:
        """Fill every layer, and finish it as soon as it is filled and all before it are."""
        with (
            _leave_cores(self._arena.device),
            closing(self._packers),
            reading(reader, self._order()) as landed,
        ):
            for order in landed:
                self._count(order)
                # A post-load hook frees what it replaces, if nothing here holds it.
                del order
                self._finish_filled()
            self._finish_filled()
            self._finish_packing()

    def _order(self) -> Iterator[Order]:
        for number, plan in enumerate(self._layers):
            work = self._begun[number] = _Work(plan, self._find(plan.name))
            orders = self._begin(work, number)
            work.left = len(orders)
            del work
            orders.reverse()
            while orders:
                yield orders.pop()

    def _begin(self, work: _Work, number: int) -> list[Order]:
        """Take memory for a layer; its orders by their places in the files."""
        if work.layer is not None:
            work.layer.prepare({slot.name for slot in work.plan.slots})
        orders: list[Order] = []
        for slot in work.plan.slots:
            tensor = self._make(slot)
            work.tensors.append(tensor)
            orders += [
                Order(copy, tensor[tuple([interval.slice for interval in copy.destination])], number)
                for copy in slot.copies
            ]
        orders.sort(key=lambda order: (order.copy.entry.file, order.copy.entry.start))
        return orders

    def _make(self, slot: Slot) -> Tensor:
        """Memory for a slot: what no copy fills is zero, or cannot pass for data."""
        is_filled = sum([volume(copy.destination) for copy in slot.copies]) == prod(slot.shape)
        if is_filled or slot.fill == 0:
            return self._arena.take(slot.shape, torch_dtype(slot.dtype), zeros=not is_filled)
        return make_filled(slot.shape, slot.dtype, slot.fill, self._arena.device)

    def _count(self, order: Order) -> None:
        if self._synchronize is not None:
            self._synchronize()
        work = self._begun[order.tag]
        work.left -= 1
        if self._progress is not None:
            self._done += order.copy.nbytes
            elapsed = time.perf_counter() - self._started
            self._progress(Progress(self._done, self._total, work.plan.name, elapsed))

    def _finish_filled(self) -> None:
        while self._next in self._begun and not self._begun[self._next].left:
            started = time.perf_counter()
            work = self._begun.pop(self._next)
            findings = _place_tensors(work)
            if work.layer is not None and not findings:
                findings = self._process(work.layer)
            self.findings += findings
            self._next += 1
            self.seconds += time.perf_counter() - started

    def _finish_packing(self) -> None:
        started = time.perf_counter()
        self._packers.finish()
        self.seconds += time.perf_counter() - started

    def _process(self, layer: Layer) -> list[Finding]:
        """Run a layer's post-load hook, and give it its kernel; what the hook finds wrong with the checkpoint."""
        try:
            layer.hooks.process(layer)
        except CheckpointError as error:
            return [fault for fault in error.findings if isinstance(fault, Finding)]
        self._packers.pack(layer)
        return []


@contextmanager
def _leave_cores(device: torch.device) -> Iterator[None]:
    """Have the host's operators use half of its cores: on those that others read on, they would wait for each other."""
    count = torch.get_num_threads()
    if device.type != "cpu" or count == 1:
        yield
        return
    torch.set_num_threads(max(1, count // 2))
    try:
        yield
    finally:
        torch.set_num_threads(count)


@putting_off_collections()
def fill(
    plan: Plan,
    find: Callable[[str], nn.Module],
    reader: Reader,
    device: torch.device,
    *,
    path: str,
    progress: ProgressHook | None = None,
    synchronize: Callable[[], None] | None = None,
    kernels: Table | None = None,
) -> float:
    """Load every layer of the plan; returns the seconds for which values were checked and post-load hooks ran.

    The reader is closed, whatever comes. Raises CheckpointError with every scale that is not a number and every
    index out of range, once all are read.
    """
    arena = Arena(device, spare_bytes=SPARE_BYTES)
    filling = Filling(plan, find, arena, progress, synchronize, kernels)
    with closing(reader), closing(arena):
        filling.run(reader)
    trim_heap()
    if filling.findings:
        raise CheckpointError(path, filling.findings)
    return filling.seconds


def _place(layer: LayerPlan) -> tuple[str, int]:
    """Where a layer's first byte is."""
    return min(((copy.entry.file, copy.entry.start) for slot in layer.slots for copy in slot.copies), default=("", 0))


def _place_tensors(work: _Work) -> list[Finding]:
    """Put a layer's tensors in their places; what is wrong with their values."""
    named = {slot.name: tensor for slot, tensor in zip(work.plan.slots, work.tensors, strict=True)}
    work.tensors.clear()
    if work.layer is not None:
        for name, tensor in named.items():
            work.layer.complete(name, tensor)
    _put(work.module, named)
    return [finding for slot in work.plan.slots for finding in _check_values(slot, named[slot.name])]


def _put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    if isinstance(module, Layer):
        module.set_tensors(tensors)
        return
    for name, tensor in tensors.items():
        if name in module._buffers:
            module._buffers[name] = tensor
        else:
            trains = tensor.is_floating_point() and module.get_parameter(name).requires_grad
            module._parameters[name] = nn.Parameter(tensor, requires_grad=trains)


def _check_values(slot: Slot, tensor: Tensor) -> Iterator[Finding]:
    """What only the data shows; a stack of many copies is looked at as one, and copy by copy if it is suspect."""
    expected = (slot.kind, slot.bounds, slot.facts)
    if not slot.copies or not any(watch.is_suspect for watch in watch_values(*expected, tensor)):
        return
    for copy in slot.copies:
        region = tensor[tuple([interval.slice for interval in copy.destination])]
        yield from check_values(*expected, region, copy.entry.name, copy.entry.file)
