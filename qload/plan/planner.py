"""Puts targets and stored tensors together: every slot filled exactly once, every tensor accounted for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qload.checkpoint import Checkpoint, Modules, TensorEntry
from qload.checkpoint.names import join_name
from qload.errors import QloadError
from qload.findings import Finding, report
from qload.layout import Interval, volume
from qload.plan import accounts
from qload.plan.copies import Copy, Slot
from qload.plan.fits import Reading, view_bytes
from qload.plan.forms import Arrangement, Blank, Filling, Form, Forms
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


_Found = tuple[TensorEntry, Reading]
"""A stored tensor that is as declared, and how it is read."""


@dataclass(slots=True)
class _Ledger:
    """What has been taken of a checkpoint, and what was found wrong."""

    tensors: Mapping[str, TensorEntry]
    modules: Modules
    lost: frozenset[str]
    used: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def list_names(self, sources: Sequence[Source], leaf: str) -> list[str]:
        """What the sources store their tensors of that name under, as far as they do."""
        modules, nothing = self.modules, dict[str, str]()
        found = [modules.get(source.prefix, nothing).get(leaf) for source in sources]
        return [name for name in found if name is not None]

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

    `is_expected` says which stored tensors may be left over without a finding. Raises QloadError where a method's
    declaration makes copies that leave entries of a parameter unwritten, or write some twice.
    """
    ledger, targets = _open_ledger(checkpoint), tuple(targets)
    layers = tuple(_plan_layers(targets, plain, quantization, ledger))
    return Plan(layers, _settle(ledger, targets, quantization, is_expected))


def find_faults(
    checkpoint: Checkpoint, quantization: Quantization, targets: Iterable[Target], plain: Iterable[PlainTarget] = ()
) -> tuple[Finding, ...]:
    """The findings of `make_plan`, without keeping the plan, which has a value or more for every stored tensor."""
    ledger, targets = _open_ledger(checkpoint), tuple(targets)
    for _ in _plan_layers(targets, plain, quantization, ledger):
        pass
    return _settle(ledger, targets, quantization, lambda name: False)


def _open_ledger(checkpoint: Checkpoint) -> _Ledger:
    return _Ledger(checkpoint.tensors, checkpoint.modules, checkpoint.lost, findings=list(checkpoint.findings))


def _plan_layers(
    targets: Sequence[Target], plain: Iterable[PlainTarget], quantization: Quantization, ledger: _Ledger
) -> Iterator[LayerPlan]:
    forms = Forms(quantization)
    for target in targets:
        yield _plan_layer(target, forms.of(target, ledger.tensors), ledger)
    for tensor in plain:
        layer = _plan_plain(tensor, ledger)
        if layer is not None:
            yield layer


def _settle(
    ledger: _Ledger, targets: Sequence[Target], quantization: Quantization, is_expected: Callable[[str], bool]
) -> tuple[Finding, ...]:
    """All findings, those of the tensors that nobody took included."""
    left = [entry for name, entry in ledger.tensors.items() if name not in ledger.used and not is_expected(name)]
    ledger.findings += accounts.explain_leftovers(left, ledger.modules, targets, quantization)
    return tuple(accounts.merge_unquantized(ledger.findings))


def _plan_layer(target: Target, form: Form, ledger: _Ledger) -> LayerPlan:
    arrangement = form.arrange(target.sources)
    sources = [target.sources[number] for number in arrangement.used]
    slots = []
    for filling in arrangement.fillings:
        found = _find_tensors(filling, target, sources, ledger)
        if found and filling.blank.spec.loaded:
            # What is missing has a finding; what is there must fill the rest.
            complete = len(found) == len(sources) and not arrangement.gaps
            slot = _fill_slot(filling.blank, target, found, complete, ledger)
            slots += [slot] if slot is not None else []
    if arrangement.strays or arrangement.gaps:
        _account_sources(target, arrangement, ledger)
    ledger.findings += _check_sources(target, ledger)
    return LayerPlan(target.name, tuple(slots), target)


def _find_tensors(filling: Filling, target: Target, sources: Sequence[Source], ledger: _Ledger) -> list[_Found]:
    """What the sources store for one parameter, as far as it is as declared."""
    names = ledger.list_names(sources, filling.blank.spec.stored_as)
    found = filling.read_all([ledger.tensors[name] for name in names]) if len(names) == len(sources) else None
    if found is None:
        return _find_some(filling, target, sources, ledger)
    ledger.used.update(names)
    return found


def _find_some(filling: Filling, target: Target, sources: Sequence[Source], ledger: _Ledger) -> list[_Found]:
    """As `_find_tensors`, of which the one knows that something is amiss, and this one what."""
    found: list[_Found] = []
    missing: list[str] = []
    spec = filling.blank.spec
    for source, fit in zip(sources, filling.fits, strict=True):
        name = join_name(source.prefix, spec.stored_as, ledger.modules)
        entry = ledger.take(name)
        if entry is None:
            # A finding says already that its file cannot be read.
            missing += [] if name in ledger.lost else [name]
            continue
        seen = view_bytes(entry, fit.stored)
        reading = fit.read(seen.shape)
        if reading is None or seen.dtype not in fit.stored.dtypes:
            ledger.findings += accounts.check_entry(fit, seen, source, target)
        else:
            found.append((seen, reading))
    if missing and (spec.required or (found and not spec.partial)):
        ledger.findings += (accounts.missing(name, spec, target) for name in missing)
    return found


def _fill_slot(blank: Blank, target: Target, found: Sequence[_Found], complete: bool, ledger: _Ledger) -> Slot | None:
    spec, dtypes = blank.spec, {entry.dtype for entry, _ in found}
    if len(dtypes) > 1 and not spec.cast:
        ledger.findings.append(accounts.mixed_dtypes(spec, target, dtypes))
        return None
    written = sum([reading.written for _, reading in found])
    if blank.owned is not None and written != blank.owned:
        fault = next((reading.fault for _, reading in found if reading.fault), "")
        if fault:
            ledger.findings.append(report("QL401", fault, where=f"{target.name}.{spec.name}"))
            return None
        if complete:
            raise _broken_law(blank, target, written)
    copies = [
        Copy(entry, reading.shape, source, destination, reading.turned)
        for entry, reading in found
        for source, destination in reading.moves
    ]
    dtype = target.geometry.dtype if spec.cast else dtypes.pop()
    return Slot(spec.name, spec.kind, dtype, blank.shape, blank.fill, tuple(copies), spec.bounds, spec.facts)


def _broken_law(blank: Blank, target: Target, written: int) -> QloadError:
    """The planner's own law: copies write every entry that the rank owns once. No checkpoint can break it."""
    return QloadError(
        "the planned copies do not write every entry exactly once",
        where=f"{target.name}.{blank.spec.name}",
        expected=f"{blank.owned} entries",
        found=f"{written}",
        remedy=f"correct the axes that {target.treatment.method.name} declares, or report a fault of qload",
    )


def _account_sources(target: Target, arrangement: Arrangement, ledger: _Ledger) -> None:
    """One finding for each module that has no place in its layer, whatever it stores, and for each that lacks."""
    for number in arrangement.strays:
        source = target.sources[number]
        ledger.used.update(ledger.modules.get(source.prefix, {}).values())
        ledger.findings.append(accounts.stray(source, target))
    ledger.findings += accounts.check_coverage(target, arrangement)


def _check_sources(target: Target, ledger: _Ledger) -> Iterator[Finding]:
    """A method's own rules, for each of a layer's sources."""
    method, scheme = target.treatment.method, target.treatment.scheme
    if scheme is None or "qload_check" not in method.declaration:
        return
    for source in target.sources:
        stored = {leaf: ledger.tensors[name] for leaf, name in ledger.modules.get(source.prefix, {}).items()}
        yield from method.check(scheme, stored)


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
