"""Carries a plan out: makes each layer's parameters, copies into them, and runs its post-load hook."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qload.checkpoint import TensorEntry
from qload.declare import ParameterKind
from qload.errors import CheckpointError
from qload.findings import Finding, report
from qload.plan import LayerPlan, Plan, Slot
from qload.torch.dtypes import make_filled
from qload.torch.layers import Layer
from qload.torch.loading.progress import Progress, ProgressHook
from qload.torch.loading.reading import Reader


@dataclass(slots=True)
class _Tally:
    total: int
    hook: ProgressHook | None
    read: int = 0
    done: int = 0

    def add(self, read: int, done: int, layer: str) -> None:
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
) -> int:
    """Load every layer of the plan, one after another; returns the bytes read.

    `find` gives the module of a layer's name. Raises CheckpointError with every scale that is not a number
    and every index out of range, once all are read.
    """
    tally = _Tally(plan.bytes_read, progress)
    findings: list[Finding] = []
    try:
        for layer in plan.layers:
            findings += _fill_layer(layer, find(layer.name), reader, device, tally)
    finally:
        reader.close()
    if findings:
        raise CheckpointError(path, findings)
    return tally.read


def _fill_layer(
    layer: LayerPlan, module: nn.Module, reader: Reader, device: torch.device, tally: _Tally
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
    return findings if whole is None or findings else _finish(whole)


def _finish(layer: Layer) -> list[Finding]:
    """Run a layer's post-load hook; what it finds wrong with the checkpoint."""
    try:
        layer.hooks.process(layer)
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
    """What only the data shows; a stack of many copies is looked at as one, and copy by copy if it is faulty."""
    if not slot.copies or not any(_check(slot, tensor, slot.copies[0].entry)):
        return
    for copy in slot.copies:
        yield from _check(slot, tensor[tuple(interval.slice for interval in copy.destination)], copy.entry)


def _check(slot: Slot, tensor: Tensor, entry: TensorEntry) -> Iterator[Finding]:
    if slot.kind.is_scale or slot.kind is ParameterKind.TABLE:
        yield from _check_scale(slot, tensor, entry)
    elif slot.kind is ParameterKind.INDEX and slot.bounds is not None:
        yield from _check_index(tensor, slot.bounds, entry)
    elif slot.kind is ParameterKind.SETTING and slot.bounds is not None:
        yield from _check_setting(tensor, slot.bounds[0], entry)


def _check_scale(slot: Slot, tensor: Tensor, entry: TensorEntry) -> Iterator[Finding]:
    if not _is_finite(tensor, slot.bounds):
        yield report(
            "QL501",
            f"the {'scale' if slot.kind.is_scale else slot.kind.value} is not a finite number everywhere",
            where=entry.name,
            file=entry.file,
            remedy="the checkpoint is damaged, or was quantized with overflowing statistics",
        )


def _check_index(tensor: Tensor, bounds: tuple[int, int], entry: TensorEntry) -> Iterator[Finding]:
    low, high = int(tensor.min()), int(tensor.max())
    if low < bounds[0] or high >= bounds[1]:
        yield report(
            "QL505",
            "the index points outside of what there is",
            where=entry.name,
            file=entry.file,
            expected=f"{bounds[0]} to {bounds[1] - 1}",
            found=f"{low} to {high}",
        )


def _check_setting(tensor: Tensor, value: int, entry: TensorEntry) -> Iterator[Finding]:
    stored = {int(number) for number in tensor.flatten()}
    if stored != {value}:
        yield report(
            "QL506",
            "the setting stored beside the weight is not the config's",
            where=entry.name,
            file=entry.file,
            expected=value,
            found=", ".join(map(str, sorted(stored))),
            remedy="the checkpoint was quantized in another way than its config says: correct the config",
        )


def _is_finite(tensor: Tensor, bounds: tuple[int, int] | None) -> bool:
    """Whether all are numbers; codes of scales are those inside the bounds."""
    if not tensor.is_floating_point():
        return bounds is None or not bool(((tensor < bounds[0]) | (tensor >= bounds[1])).any())
    wide = tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.float32)
    return bool(torch.isfinite(wide).all())
