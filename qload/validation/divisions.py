"""What numbers of ranks would split that cannot be split, where modules are divided as engines do it."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qload.checkpoint import Checkpoint
from qload.declare import ParameterKind, ParameterSpec
from qload.errors import MethodError
from qload.examination import Examination
from qload.findings import Finding, errors, report
from qload.geometry import row
from qload.layout import Dim
from qload.preview import Split
from qload.preview.modules import Modules
from qload.preview.natural import Fault, NaturalDivider
from qload.preview.survey import Survey, survey
from qload.roles import read_heads
from qload.validation.tiles import find_broken_tiles
from qload.validation.wording import name_fitting, name_ranks, name_shares, name_sizes

_WAYS = {
    Split.ROW: "a row-parallel share",
    Split.COLUMN: "a column-parallel share",
    Split.VOCABULARY: "a share of the vocabulary",
}
_DIVIDES = {Split.ROW: "by rows", Split.COLUMN: "by columns", Split.VOCABULARY: "by rows of the vocabulary"}
_FEATURES = {Dim.OUT: "output features", Dim.IN: "input features"}


@dataclass(frozen=True, slots=True)
class _Likeness:
    """What the faults of several numbers of ranks have in common that are one finding."""

    split: Split
    dim: Dim
    unit: int
    spec: ParameterSpec | None
    is_solid: bool


def find_splits(found: Examination, sizes: Sequence[int]) -> Iterator[Finding]:
    """What those numbers of ranks would split, and where they would be slow; nothing of a broken checkpoint."""
    surveyed = survey(found) if sizes and not errors(found.findings) else None
    if surveyed is None:
        return
    try:
        for fault, modules in _find(surveyed, sizes):
            yield from _place(fault, modules, found.checkpoint)
    except MethodError as error:
        yield report("QL104", str(error), file="config.json")


def _find(surveyed: Survey, sizes: Sequence[int]) -> Iterator[tuple[Finding, Modules]]:
    """What is wrong with one of the modules that are alike, with all of these."""
    divider = NaturalDivider(surveyed.quantization, read_heads(surveyed.checkpoint.config))
    for modules in surveyed.modules:
        yield from ((fault, modules) for fault in _find_faults(modules, divider, sizes))
    yield from find_broken_tiles(surveyed.modules, divider, sizes)


def _place(fault: Finding, modules: Modules, checkpoint: Checkpoint) -> Iterator[Finding]:
    """The finding of one module for each that is alike; without `dataclasses.replace`, which takes thrice as long."""
    tensor, tensors = fault.where.removeprefix(modules.target.name), checkpoint.tensors
    facts = (fault.expected, fault.found, fault.remedy, fault.severity)
    for name in modules.names:
        stored = checkpoint.modules.get(name, {})
        full = stored.get(tensor[1:]) or next(iter(stored.values()), "")
        file = tensors[full].file if full in tensors else ""
        yield Finding(fault.code, fault.message, name + tensor, file, *facts)


def _find_faults(modules: Modules, divider: NaturalDivider, sizes: Sequence[int]) -> Iterator[Finding]:
    """One finding for what several numbers of ranks would split alike."""
    alike: dict[_Likeness, dict[int, Fault]] = defaultdict(dict)
    for size in sizes:
        fault = divider.find_fault(modules, size)
        if fault is not None:
            likeness = _Likeness(fault.split, fault.dim, fault.unit, fault.spec, fault.is_solid)
            alike[likeness][size] = fault
    for faults in alike.values():
        yield _report_split(modules, divider, faults)
    whole = [size for size in sizes if size > 1 and divider.find_fault(modules, size) is None]
    if whole and divider.find_way(modules) is row:
        yield from _find_ordered(modules, divider, whole)


def _report_split(modules: Modules, divider: NaturalDivider, faults: Mapping[int, Fault]) -> Finding:
    fault, name = next(iter(faults.values())), modules.target.name
    shares = {size: each.share for size, each in faults.items()}
    tensor = f".{fault.spec.stored_as}" if fault.spec is not None else ""
    return report(
        _code(fault),
        f"at {name_ranks(faults)} {_WAYS[fault.split]} {_describe(fault)}",
        where=name + tensor,
        expected=_expect(fault),
        found=name_shares(shares),
        remedy=_advise(modules, divider, faults),
    )


def _code(fault: Fault) -> str:
    if fault.spec is not None and fault.spec.kind is ParameterKind.BLOCK_SCALE:
        return "QL403"
    return "QL401" if fault.dim is Dim.IN else "QL402"


def _describe(fault: Fault) -> str:
    """What a share does to the unit."""
    spec, unit, features = fault.spec, fault.unit, _FEATURES[fault.dim]
    if spec is None and unit == 1:
        return f"has no whole number of {features}"
    if spec is None:
        return f"splits a head of {unit} {features}"
    if fault.is_solid:
        return f"splits what is packed across all {features}"
    if spec.kind is ParameterKind.BLOCK_SCALE:
        return f"splits a block of {spec.layout.unit(Dim.OUT)} x {spec.layout.unit(Dim.IN)}"
    if spec.kind is ParameterKind.GROUP_SCALE:
        return f"splits a group of {unit}"
    return f"splits a unit of {unit} {features} that are packed together"


def _expect(fault: Fault) -> str:
    if fault.is_solid:
        return f"all {_FEATURES[fault.dim]} on each rank"
    return f"multiples of {fault.unit}" if fault.unit > 1 else "features that the ranks divide"


def _advise(modules: Modules, divider: NaturalDivider, faults: Mapping[int, Fault]) -> str:
    """The numbers of ranks that fit, and what a load does at those that do not, which engines refuse."""
    fault, fitting = next(iter(faults.values())), divider.find_sizes(modules)
    others = {size: divider.find_other(modules, size) for size in faults}
    pieces = [name_fitting(fitting)]
    for split in dict.fromkeys(each for each in others.values() if each is not None):
        ranks = name_ranks([size for size, each in others.items() if each is split])
        pieces.append(f"at {ranks} qload {_compare(split, fault.split)} refuse")
    loading = divider.find_loading_sizes(modules) if None in others.values() else fitting
    if loading != fitting:
        pieces.append(f"qload divides it over {name_sizes(loading)}")
    return "; ".join(pieces)


def _compare(split: Split, natural: Split) -> str:
    """What a load does, and which engines do otherwise."""
    if split is natural:
        return "divides it as one; engines that divide its parts one by one"
    does = "keeps it whole on each rank" if split is Split.WHOLE else f"divides it {_DIVIDES[split]}"
    return f"{does}; engines that divide it {_DIVIDES[natural]}"


def _find_ordered(modules: Modules, divider: NaturalDivider, sizes: Sequence[int]) -> Iterator[Finding]:
    """Inputs whose groups lie in an order of their own: a rank's share of them can be of any group."""
    for spec in divider.declare(modules):
        groups = spec.bounds[1] if spec.bounds is not None else 0
        if spec.kind is ParameterKind.INDEX and spec.required and spec.layout.follows(Dim.IN) and groups > 1:
            yield report(
                "QL404",
                f"at {name_ranks(sizes)} a row-parallel share has input features of any group, in activation order: "
                "scales stay whole on each rank, and slower kernels compute it",
                where=f"{modules.target.name}.{spec.stored_as}",
                remedy="1 rank needs no such kernels, nor does a checkpoint whose groups lie in order",
            )
