"""Puts targets and stored tensors together: every slot filled exactly once, every tensor accounted for."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qload.checkpoint import Checkpoint, TensorEntry
from qload.declare import ParameterSpec
from qload.errors import LayoutError
from qload.findings import Finding, report
from qload.layout import Interval, volume
from qload.plan import accounts
from qload.plan.copies import Copy, Slot, local_shape, make_copies
from qload.plan.targets import PlainTarget, Source, Target
from qload.quantization import Quantization


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """A layer's slots, in the order in which they are filled; a plain tensor has no target."""

    name: str
    slots: tuple[Slot, ...]
    target: Target | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that the layer takes in memory."""
        return sum(slot.nbytes for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rank copies, layer by layer, and every finding on the way."""

    layers: tuple[LayerPlan, ...]
    findings: tuple[Finding, ...]

    @property
    def copies(self) -> Iterator[Copy]:
        return (copy for layer in self.layers for slot in layer.slots for copy in slot.copies)

    @property
    def bytes_read(self) -> int:
        return sum(copy.nbytes for copy in self.copies)

    @property
    def nbytes(self) -> int:
        """Bytes that all layers take in memory."""
        return sum(layer.nbytes for layer in self.layers)


@dataclass(slots=True)
class _Ledger:
    """What has been taken of a checkpoint, and what was found wrong."""

    tensors: Mapping[str, TensorEntry]
    modules: Mapping[str, tuple[str, ...]]
    lost: frozenset[str]
    used: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def take(self, name: str) -> TensorEntry | None:
        self.used.add(name)
        return self.tensors.get(name)


def make_plan(
    checkpoint: Checkpoint,
    quantization: Quantization,
    targets: Iterable[Target],
    plain: Iterable[PlainTarget] = (),
    *,
    is_expected: Callable[[str], bool] = lambda name: False,
) -> Plan:
    """Plan the load of `targets` and `plain` tensors; never raises for what is wrong with the checkpoint.

    `is_expected` says which stored tensors may be left over without a finding.
    """
    ledger = _Ledger(checkpoint.tensors, checkpoint.modules, checkpoint.lost, findings=list(checkpoint.findings))
    targets = tuple(targets)
    layers = [_plan_layer(target, quantization, ledger) for target in targets]
    layers += [layer for tensor in plain if (layer := _plan_plain(tensor, ledger)) is not None]
    left = [entry for name, entry in checkpoint.tensors.items() if name not in ledger.used]
    ledger.findings += accounts.explain_leftovers(
        [entry for entry in left if not is_expected(entry.name)], targets, quantization
    )
    return Plan(tuple(layers), tuple(accounts.merge_unquantized(ledger.findings)))


def _plan_layer(target: Target, quantization: Quantization, ledger: _Ledger) -> LayerPlan:
    specs = quantization.declare(target.treatment, target.geometry)
    slots = []
    for spec in specs:
        slot = _plan_slot(spec, target, quantization, ledger)
        if slot is not None:
            slots.append(slot)
    ledger.findings += (*accounts.check_coverage(target), *_check_sources(target, ledger))
    return LayerPlan(target.name, tuple(slots), target)


def _plan_slot(spec: ParameterSpec, target: Target, quantization: Quantization, ledger: _Ledger) -> Slot | None:
    found: list[tuple[Source, ParameterSpec, TensorEntry]] = []
    missing: list[str] = []
    for source in target.sources:
        name = f"{source.prefix}.{spec.stored_as}"
        entry = ledger.take(name)
        if entry is None:
            # A finding says already that its file cannot be read.
            missing += [] if name in ledger.lost else [name]
            continue
        stored = _stored_spec(spec, target, source, quantization)
        faults = list(accounts.check_entry(stored, entry, source, target))
        ledger.findings += faults
        if not faults:
            found.append((source, stored, entry))
    if missing and (spec.required or found):
        ledger.findings += (accounts.missing(name, spec, target) for name in missing)
    if not found or not spec.loaded:
        return None
    return _fill_slot(spec, target, found, ledger)


def _stored_spec(spec: ParameterSpec, target: Target, source: Source, quantization: Quantization) -> ParameterSpec:
    specs = quantization.declare(target.treatment, source.geometry(target.geometry))
    return next(each for each in specs if each.name == spec.name)


def _fill_slot(
    spec: ParameterSpec,
    target: Target,
    found: list[tuple[Source, ParameterSpec, TensorEntry]],
    ledger: _Ledger,
) -> Slot | None:
    dtypes = {entry.dtype for _, _, entry in found}
    if len(dtypes) > 1 and not spec.cast:
        ledger.findings.append(accounts.mixed_dtypes(spec, target, dtypes))
        return None
    try:
        copies = tuple(
            copy for source, stored, entry in found for copy in make_copies(spec, target, source, stored, entry)
        )
        shape = local_shape(spec, target)
    except LayoutError as error:
        ledger.findings.append(report("QL401", str(error), where=f"{target.name}.{spec.name}"))
        return None
    padded = any(cut.padding for cut in target.shard.out)
    dtype = target.geometry.dtype if spec.cast else dtypes.pop()
    return Slot(spec.name, spec.kind, dtype, shape, 0 if padded else spec.fill, copies, spec.bounds)


def _check_sources(target: Target, ledger: _Ledger) -> Iterator[Finding]:
    """A method's own rules, for each of a layer's sources."""
    check = target.treatment.method.declaration.get("qload_check")
    if check is None or target.treatment.scheme is None:
        return
    for source in target.sources:
        leaves = ledger.modules.get(source.prefix, ())
        stored = {leaf: ledger.tensors[f"{source.prefix}.{leaf}"] for leaf in leaves}
        yield from check(target.treatment.scheme, stored)


def _plan_plain(tensor: PlainTarget, ledger: _Ledger) -> LayerPlan | None:
    entry = ledger.take(tensor.stored_as)
    if entry is None:
        if tensor.required and tensor.stored_as not in ledger.lost:
            ledger.findings.append(accounts.missing_plain(tensor))
        return None
    faults = list(accounts.check_plain(tensor, entry))
    ledger.findings += faults
    if faults:
        return None
    region = tuple(Interval(0, size) for size in tensor.shape)
    copies = (Copy(entry, tensor.shape, region, region),) if volume(region) else ()
    return LayerPlan(
        tensor.name.rpartition(".")[0],
        (accounts.plain_slot(tensor, entry, copies),),
    )
