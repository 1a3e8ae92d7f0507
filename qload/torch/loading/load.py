"""One load, from headers to report."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from qload.checkpoint import Checkpoint
from qload.dtypes import storage_bytes
from qload.errors import CheckpointError, MethodError, QloadError
from qload.findings import Finding, collapse, errors
from qload.plan import PlainTarget, Plan, Target, make_plan
from qload.presets import Asked, choose_quantization
from qload.quantization import Quantization
from qload.registry import UNQUANTIZED, Registry
from qload.resolution import resolve
from qload.torch.dtypes import dtype_code
from qload.torch.kernels import Table, find_kernels
from qload.torch.layers import Layer
from qload.torch.loading.checkpoints import open_for_loading
from qload.torch.loading.filling import fill
from qload.torch.loading.orders import Reader, ReaderFactory
from qload.torch.loading.progress import LoadReport, ProgressHook
from qload.torch.loading.quantizing import QuantizingReader, Recipe, plan_recipes
from qload.torch.loading.readers import AUTO
from qload.torch.parallel import Group


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a load is asked to do: where to, with which methods, whom to tell, and what to let pass.

    `quantization` is what a plain checkpoint is to be quantized with. `synchronize` is called after each copy, for
    devices that would else put the copies off. `group` has the ranks that load together. `kernels` are the names of
    those that layers may compute with: None for all, none for the dequantized weight. `reader` is the name of one, or
    makes one.
    """

    device: torch.device
    registry: Registry | None = None
    progress: ProgressHook | None = None
    allow_pickle: bool = False
    ignore: Sequence[str] = ()
    quantization: Asked | Quantization | None = None
    synchronize: Callable[[], None] | None = None
    group: Group = Group()  # noqa: RUF009
    kernels: Sequence[str] | None = None
    reader: str | ReaderFactory = AUTO


@dataclass(slots=True)
class Load:
    """One load under way: the checkpoint, its method, what reads it, and the time of each phase."""

    checkpoint: Checkpoint
    reader: Reader
    quantization: Quantization
    options: LoadOptions
    kernels: Table = field(default_factory=Table)
    seconds: dict[str, float] = field(default_factory=dict)
    bytes_read: int = 0
    _since: float = field(default_factory=time.perf_counter)

    @classmethod
    def begin(cls, path: str | Path, options: LoadOptions) -> "Load":
        """Read headers and config. Raises CheckpointError or MethodError before anything else is done."""
        started = time.perf_counter()
        registry = options.registry if options.registry is not None else Registry.discover()
        checkpoint, reader = open_for_loading(
            path,
            registry,
            options.device,
            allow_pickle=options.allow_pickle,
            reader=options.reader,
            alone=options.group.size == 1,
        )
        _raise_errors(checkpoint, options.ignore)
        read = time.perf_counter()
        quantization = _choose_quantization(checkpoint, registry, options.quantization)
        kernels = find_kernels(registry, quantization.method, options.kernels)
        load = cls(checkpoint, reader, quantization, options, kernels, {"headers": read - started}, _since=read)
        load.mark("method")
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
        checkpoint, recipes = self.checkpoint, dict[str, Recipe]()
        if self.quantization.is_to_be_made:
            checkpoint, targets, recipes = plan_recipes(checkpoint, self.quantization, tuple(targets))
        plan = make_plan(checkpoint, self.quantization, targets, plain, is_expected=is_expected)
        plan = replace(plan, findings=(*plan.findings, *findings, *self.quantization.findings))
        stopping = errors(plan.findings, self.options.ignore)
        if stopping:
            raise CheckpointError(str(self.checkpoint.path), collapse(stopping))
        if recipes:
            self.reader = QuantizingReader(self.reader, recipes, plan.copies, self.options.device)
        self.mark("plan")
        return plan

    def copy(self, plan: Plan, find: Callable[[str], nn.Module]) -> None:
        """Fill the modules that `find` gives for the names of the plan's layers."""
        options = self.options
        processing = fill(
            plan,
            find,
            self.reader,
            options.device,
            path=str(self.checkpoint.path),
            progress=options.progress,
            synchronize=options.synchronize,
            kernels=self.kernels,
        )
        self.bytes_read = self.reader.bytes_read
        self.mark("copy")
        self.seconds["copy"] -= processing
        self.seconds["process"] = processing

    def report(self, module: nn.Module, plan: Plan, dtype: torch.dtype) -> LoadReport:
        """What has been done, and what the module holds now."""
        targets = [layer.target for layer in plan.layers if layer.target is not None]
        paths = [child.path for child in module.modules() if isinstance(child, Layer) and child.computes]
        return LoadReport(
            path=str(self.checkpoint.path),
            method=self.quantization.method.name,
            device=str(self.options.device),
            dtype=str(dtype).removeprefix("torch."),
            rank=self.options.group.rank,
            size=self.options.group.size,
            tensors=len(self.checkpoint.tensors),
            bytes_read=self.bytes_read,
            bytes_needed=plan.bytes_read,
            bytes_in_memory=_held_bytes(module),
            bytes_dense=sum(_dense_bytes(layer.target, layer.nbytes, dtype) for layer in plan.layers),
            seconds=self.seconds,
            layers=dict(Counter(target.treatment.label for target in targets)),
            paths=dict(Counter(path.name for path in paths)),
            reasons=dict(Counter(path.reason for path in paths if path.reason)),
            findings=plan.findings,
        )


def choose_device(device: torch.device | str) -> torch.device:
    """The device of that name, with its number. Raises QloadError for one that is not there, or holds no data."""
    try:
        chosen = torch.empty(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise QloadError(
            "the device cannot be used",
            where=str(device),
            found=reason,
            remedy="name one that this machine and this build of torch have (for make: TORCH in README)",
        ) from error
    if chosen.type == "meta":
        raise QloadError("a checkpoint cannot be loaded there", where="meta", expected="a device that holds data")
    return chosen


def _choose_quantization(
    checkpoint: Checkpoint, registry: Registry, asked: Asked | Quantization | None
) -> Quantization:
    """What the checkpoint is quantized with, or is to be. Raises MethodError where it is, and is to be anew."""
    found = resolve(checkpoint, registry)
    if asked is None:
        return found
    if found.method.name != UNQUANTIZED:
        raise MethodError(
            "the checkpoint is quantized already",
            method=found.method.name,
            where=str(checkpoint.path),
            found=found.method.name,
            remedy="load it as it is, or quantize the checkpoint that it was made of",
        )
    return asked if isinstance(asked, Quantization) else choose_quantization(asked, registry=registry)


def _raise_errors(checkpoint: Checkpoint, ignore: Sequence[str]) -> None:
    """Raise CheckpointError where there is nothing to plan with: no config, or no tensor that can be read."""
    stopping = errors(checkpoint.findings, ignore)
    if stopping and not checkpoint.is_readable:
        raise CheckpointError(str(checkpoint.path), collapse(stopping))


def _held_bytes(module: nn.Module) -> int:
    """The bytes of a module's parameters and buffers; memory that several share counts once."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if not tensor.is_meta]
    return sum({(held := tensor.untyped_storage()).data_ptr(): held.nbytes() for tensor in tensors}.values())


def _dense_bytes(target: Target | None, nbytes: int, dtype: torch.dtype) -> int:
    """What a layer's weight would take in the dtype that the model computes in."""
    if target is None:
        return nbytes
    local = target.shard.local(target.geometry)
    count = local.out_features * local.in_features * (local.experts or 1)
    rows = local.out_features * (local.experts or 1) if local.bias else 0
    return storage_bytes(dtype_code(dtype), count + rows)
