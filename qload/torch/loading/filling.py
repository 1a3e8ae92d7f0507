"""Carries a plan out: makes each layer's parameters, copies into them, and runs its post-load hook."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qload.errors import CheckpointError
from qload.findings import Finding
from qload.plan import LayerPlan, Plan, Slot
from qload.torch.dtypes import make_filled
from qload.torch.kernels import Kernels
from qload.torch.layers import Layer
from qload.torch.loading.progress import Progress, ProgressHook
from qload.torch.loading.reading import Reader
from qload.torch.values import check_values, watch_values


@dataclass(slots=True)
class _Tally:
    total: int
    hook: ProgressHook | None
    synchronize: Callable[[], None] | None = None
    read: int = 0
    done: int = 0

    def add(self, read: int, done: int, layer: str) -> None:
        """Count a copy that has been made."""
        if self.synchronize is not None:
            self.synchronize()
        self.read += read
        self.done += done
        if self.hook is not None:
            self.hook(Progress(self.done, self.total, layer))


def fill(
    plan: Plan,
    find: Callable[[str], nn.Module],
    reader: Reader,
    device: torch.device,
    *,
    path: str,
    progress: ProgressHook | None = None,
    synchronize: Callable[[], None] | None = None,
    kernels: Kernels = (),
) -> int:
    """Load every layer of the plan, one after another; returns the bytes read.

    `find` gives the module of a layer's name. `synchronize` is called after each copy. Raises CheckpointError with
    every scale that is not a number and every index out of range, once all are read.
    """
    tally = _Tally(plan.bytes_read, progress, synchronize)
    findings: list[Finding] = []
    try:
        for layer in plan.layers:
            findings += _fill_layer(layer, find(layer.name), reader, device, tally, kernels)
    finally:
        reader.close()
    if findings:
        raise CheckpointError(path, findings)
    return tally.read


def _fill_layer(
    layer: LayerPlan, module: nn.Module, reader: Reader, device: torch.device, tally: _Tally, kernels: Kernels
) -> list[Finding]:
    findings: list[Finding] = []
    # A tied head's own bias is a plain tensor: the rest of the head is its table's.
    whole = module if isinstance(module, Layer) and layer.target is not None else None
    if whole is not None:
        whole.prepare({slot.name for slot in layer.slots})
    for slot in layer.slots:
        tensor = make_filled(slot.shape, slot.dtype, slot.fill, device)
        for copy in slot.copies:
            region = tensor[tuple(interval.slice for interval in copy.destination)]
            tally.add(reader.read(copy, region), copy.nbytes, layer.name)
        if whole is not None:
            whole.complete(slot.name, tensor)
        _put(module, slot.name, tensor)
        findings += _check_values(slot, tensor)
    return findings if whole is None or findings else _finish(whole, kernels)


def _finish(layer: Layer, kernels: Kernels) -> list[Finding]:
    """Run a layer's post-load hook; what it finds wrong with the checkpoint."""
    try:
        layer.hooks.process(layer)
        layer.pack(kernels)
    except CheckpointError as error:
        return [fault for fault in error.findings if isinstance(fault, Finding)]
    return []


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(module, Layer):
        module.set_tensor(name, tensor)
    elif name in module._buffers:
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
        region = tensor[tuple(interval.slice for interval in copy.destination)]
        yield from check_values(*expected, region, copy.entry.name, copy.entry.file)
