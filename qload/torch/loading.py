"""Loads a checkpoint into a model that its user wrote with qload's layers."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from qload.checkpoint import Checkpoint
from qload.dtypes import storage_bytes
from qload.errors import CheckpointError, QloadError
from qload.findings import Finding, collapse, errors
from qload.plan import PlainTarget, Plan, Target, make_plan
from qload.quantization import Quantization, resolve
from qload.registry import Registry
from qload.torch.checkpoints import list_entries, open_for_loading
from qload.torch.dtypes import dtype_code
from qload.torch.filling import fill
from qload.torch.layers import Layer
from qload.torch.progress import LoadReport, ProgressHook
from qload.torch.reading import MemoryReader, Reader


@dataclass(slots=True)
class Load:
    """One load under way: the checkpoint, its method, what reads it, where to, and the time of each phase."""

    checkpoint: Checkpoint
    reader: Reader
    quantization: Quantization
    device: torch.device
    progress: ProgressHook | None = None
    ignore: Sequence[str] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_read: int = 0
    _since: float = field(default_factory=time.perf_counter)

    @classmethod
    def begin(
        cls,
        path: str | Path,
        *,
        device: torch.device | str,
        registry: Registry | None,
        progress: ProgressHook | None,
        allow_pickle: bool,
        ignore: Sequence[str],
    ) -> "Load":
        """Read headers and config. Raises CheckpointError or MethodError before anything else is done."""
        started = time.perf_counter()
        device = choose_device(device)
        registry = registry if registry is not None else Registry.discover()
        checkpoint, reader = open_for_loading(path, registry, device, allow_pickle=allow_pickle)
        raise_errors(checkpoint, ignore)
        quantization = resolve(checkpoint, registry)
        load = cls(checkpoint, reader, quantization, device, progress, ignore, _since=started)
        load.mark("headers")
        return load

    def mark(self, phase: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now

    def plan(
        self,
        targets: Iterable[Target],
        plain: Iterable[PlainTarget],
        *,
        findings: Iterable[Finding] = (),
        is_expected: Callable[[str], bool] = lambda name: False,
    ) -> Plan:
        """Plan the copies. Raises CheckpointError with all findings, also those given, if any is an error."""
        plan = make_plan(self.checkpoint, self.quantization, targets, plain, is_expected=is_expected)
        plan = replace(plan, findings=(*plan.findings, *findings))
        stopping = errors(plan.findings, self.ignore)
        if stopping:
            raise CheckpointError(str(self.checkpoint.path), collapse(stopping))
        self.mark("plan")
        return plan

    def copy(self, plan: Plan, find: Callable[[str], nn.Module]) -> None:
        """Fill the modules that `find` gives for the names of the plan's layers."""
        path = str(self.checkpoint.path)
        self.bytes_read = fill(plan, find, self.reader, self.device, path=path, progress=self.progress)
        self.mark("copy")

    def report(self, plan: Plan, dtype: torch.dtype) -> LoadReport:
        """What has been done."""
        targets = [layer.target for layer in plan.layers if layer.target is not None]
        return LoadReport(
            path=str(self.checkpoint.path),
            method=self.quantization.method.name,
            device=str(self.device),
            dtype=str(dtype).removeprefix("torch."),
            tensors=len(self.checkpoint.tensors),
            bytes_read=self.bytes_read,
            bytes_in_memory=plan.nbytes,
            bytes_dense=sum(_dense_bytes(layer.target, layer.nbytes, dtype) for layer in plan.layers),
            seconds=self.seconds,
            layers=dict(Counter(target.treatment.label for target in targets)),
            findings=plan.findings,
        )


def choose_device(device: torch.device | str) -> torch.device:
    """The device of that name. Raises QloadError for one that is not there."""
    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise QloadError("the device cannot be used", where=str(device), found=reason) from error


def raise_errors(checkpoint: Checkpoint, ignore: Sequence[str]) -> None:
    """Raise CheckpointError where there is nothing to plan with: no config, or no tensor that can be read."""
    stopping = errors(checkpoint.findings, ignore)
    if stopping and not checkpoint.is_readable:
        raise CheckpointError(str(checkpoint.path), collapse(stopping))


def load_weights(
    module: nn.Module,
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    quantize_activations: bool = True,
    prefix: str = "",
    registry: Registry | None = None,
    progress: ProgressHook | None = None,
    allow_pickle: bool = False,
    ignore: Sequence[str] = (),
) -> LoadReport:
    """Load the checkpoint in the folder `path` into a module made of qload's layers and ordinary ones.

    Every layer reads its own shard of the modules it was built for; other parameters and persistent buffers
    are read under their own names, with `prefix` before them. `ignore` lists codes of waivable findings.

    Raises CheckpointError with all findings before memory is taken for the weights, or, for faults that only
    the data shows, after reading.
    """
    load = Load.begin(
        path, device=device, registry=registry, progress=progress, allow_pickle=allow_pickle, ignore=ignore
    )
    return _load_module(load, module, prefix, quantize_activations)


def load_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    quantization: Quantization,
    *,
    device: torch.device | str = "cpu",
    quantize_activations: bool = True,
    prefix: str = "",
) -> LoadReport:
    """As `load_weights`, from whole tensors in memory under the names that a checkpoint would give them."""
    checkpoint = Checkpoint(Path("memory"), {}, list_entries(tensors))
    load = Load(checkpoint, MemoryReader(tensors), quantization, torch.device(device))
    return _load_module(load, module, prefix, quantize_activations)


def _load_module(load: Load, module: nn.Module, prefix: str, quantize_activations: bool) -> LoadReport:
    layers = {name: child for name, child in module.named_modules() if isinstance(child, Layer)}
    for layer in layers.values():
        layer.quantize_activations = quantize_activations
    targets = [target_of(name, layer) for name, layer in layers.items()]
    floats = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    dtype = next(floats, torch.get_default_dtype())
    plan = load.plan(targets, _plain_targets(module, layers, prefix))
    load.copy(plan, module.get_submodule)
    return load.report(plan, dtype)


def target_of(name: str, layer: Layer) -> Target:
    """What a layer wants of a checkpoint; `name` is its name in the model."""
    return Target(name, layer.geometry, layer.treatment, layer.shard, layer.sources)


def _plain_targets(module: nn.Module, layers: Iterable[str], prefix: str) -> Iterator[PlainTarget]:
    own = tuple(f"{name}." if name else "" for name in layers)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not name.startswith(own):
            yield PlainTarget(name, prefix + name, tuple(tensor.shape), dtype_code(tensor.dtype))


def _dense_bytes(target: Target | None, nbytes: int, dtype: torch.dtype) -> int:
    """What a layer's weight would take in the dtype that the model computes in."""
    if target is None:
        return nbytes
    local = target.shard.local(target.geometry)
    count = local.out_features * local.in_features * (local.experts or 1)
    rows = local.out_features * (local.experts or 1) if local.bias else 0
    return storage_bytes(dtype_code(dtype), count + rows)
