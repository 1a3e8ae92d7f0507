"""What is wrong between declarations and stored tensors, and the tensors that nobody took."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qload.checkpoint import Modules, TensorEntry
from qload.checkpoint.names import split_name
from qload.declare import ParameterKind, ParameterSpec
from qload.dtypes import FLOATS
from qload.findings import Finding, report
from qload.plan.copies import Copy, Slot
from qload.plan.fits import Fit
from qload.plan.forms import Arrangement, Gap
from qload.plan.targets import PlainTarget, Source, Target
from qload.quantization import Quantization

_SHAPE_RULES = {
    ParameterKind.GROUP_SCALE: "QL301",
    ParameterKind.PACKED: "QL302",
    ParameterKind.BLOCK_SCALE: "QL303",
    ParameterKind.ZERO_POINT: "QL305",
}


def check_entry(fit: Fit, entry: TensorEntry, source: Source, target: Target) -> Iterator[Finding]:
    """Compare a stored tensor with its declaration: dtype, then shape."""
    if entry.dtype not in fit.stored.dtypes:
        yield report(
            _dtype_rule(fit.stored),
            f"the {fit.stored.kind.value} has the wrong dtype",
            where=entry.name,
            file=entry.file,
            expected=" or ".join(fit.stored.dtypes),
            found=entry.dtype,
        )
    if fit.read(entry.shape) is None:
        yield report(
            _SHAPE_RULES.get(fit.stored.kind, "QL307"),
            f"the {fit.stored.kind.value} has the wrong shape",
            where=entry.name,
            file=entry.file,
            expected=fit.expected,
            found=list(entry.shape),
            remedy=f"{source.prefix} is {_size(target, source)} and {target.treatment.label}",
        )


def check_coverage(target: Target, arrangement: Arrangement) -> Iterator[Finding]:
    """Every part of every expert that the rank owns must come from exactly one source."""
    for gap in arrangement.gaps:
        what = "a part of the layer" if gap.expert is None else "an expert"
        yield report(
            "QL201" if gap.expert is None else "QL205",
            f"{what} is not stored" if gap.count == 0 else f"{what} is stored more than once",
            where=_name_part(target, gap),
            expected="one module",
            found=f"{gap.count}",
        )


def _name_part(target: Target, gap: Gap) -> str:
    """What the checkpoint would call a part of an expert: as it calls that of another one."""
    for source in target.sources:
        first, number, last = source.prefix.rpartition(f".{source.expert}.")
        if gap.expert is not None and source.part == gap.part and number:
            return f"{first}.{gap.expert}.{last}"
    names = (target.name, "" if gap.expert is None else str(gap.expert), target.geometry.parts[gap.part].name)
    return ".".join(name for name in names if name)


def stray(source: Source, target: Target) -> Finding:
    """A module of the checkpoint that has no place in its layer."""
    if source.expert is not None and source.expert not in range(target.geometry.experts or 0):
        return report(
            "QL205",
            "the model has no such expert",
            where=source.prefix,
            expected=f"{target.geometry.experts or 0} experts",
            found=f"expert {source.expert}",
            remedy="correct the number of experts in config.json",
        )
    return report(
        "QL210",
        "the layer has no such part",
        where=source.prefix,
        expected=f"{len(target.geometry.parts)} parts",
        found=f"part {source.part + source.parts - 1}",
    )


def missing(name: str, spec: ParameterSpec, target: Target) -> Finding:
    """A tensor that a layer needs and the checkpoint lacks."""
    return report(
        "QL201",
        f"the {spec.kind.value} is not stored",
        where=name,
        expected=f"a tensor of a module that is {target.treatment.label}",
        remedy="the checkpoint is incomplete, or its config names the wrong modules",
    )


def mixed_dtypes(spec: ParameterSpec, target: Target, dtypes: Iterable[str]) -> Finding:
    return report(
        "QL204",
        f"the parts of one layer store their {spec.kind.value} in different dtypes",
        where=f"{target.name}.{spec.name}",
        expected="one dtype",
        found=", ".join(sorted(dtypes)),
    )


def missing_plain(tensor: PlainTarget) -> Finding:
    return report(
        "QL201",
        "a tensor of the model is not stored",
        where=tensor.stored_as,
        expected=f"shape {list(tensor.shape)}",
        remedy="the checkpoint is incomplete, or was made for another architecture",
    )


def check_plain(tensor: PlainTarget, entry: TensorEntry) -> Iterator[Finding]:
    """Compare a tensor that is loaded as it is with what the model has."""
    # Only ordinary floats are cast: anything else would lose its values, or their meaning.
    allowed = FLOATS if tensor.dtype in FLOATS else (tensor.dtype or entry.dtype,)
    if entry.dtype not in allowed:
        yield report(
            "QL308",
            "the tensor has the wrong dtype",
            where=entry.name,
            file=entry.file,
            expected=" or ".join(allowed),
            found=entry.dtype,
        )
    if entry.shape != tensor.shape:
        yield report(
            "QL307",
            "the tensor has the wrong shape",
            where=entry.name,
            file=entry.file,
            expected=list(tensor.shape),
            found=list(entry.shape),
        )


def plain_slot(tensor: PlainTarget, entry: TensorEntry, copies: tuple[Copy, ...]) -> Slot:
    dtype = tensor.dtype or entry.dtype
    fill = float("nan") if dtype in FLOATS else 0
    return Slot(tensor.name.rpartition(".")[2], ParameterKind.WEIGHT, dtype, tensor.shape, fill, copies)


def explain_leftovers(
    left: Sequence[TensorEntry], modules: Modules, targets: Sequence[Target], quantization: Quantization
) -> Iterator[Finding]:
    """Say of every tensor that nobody took what it most likely is."""
    if not left:
        return
    owners = {source.prefix: target for target in targets for source in target.sources}
    places = {name: (module, leaf) for module, stored in modules.items() for leaf, name in stored.items()}
    foreign: dict[str, dict[str, TensorEntry]] = defaultdict(dict)
    for entry in left:
        prefix, leaf = places[entry.name]
        owner = owners.get(prefix)
        if owner is None:
            yield _unexpected(entry)
        elif leaf == "bias":
            yield report(
                "QL208",
                "a bias is stored, and the model has none; it is not loaded",
                where=entry.name,
                file=entry.file,
            )
        elif owner.treatment.scheme is None:
            foreign[prefix][leaf] = entry
        else:
            yield _unexpected(entry, f"{prefix} is {owner.treatment.label}")
    for prefix, entries in foreign.items():
        yield _stored_quantized(prefix, entries, quantization)


def merge_unquantized(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Drop the missing tensors of modules for which a better reason was found."""
    findings = list(findings)
    explained = {finding.where for finding in findings if finding.code in ("QL101", "QL202")}
    for finding in findings:
        if finding.code != "QL201" or explained.isdisjoint(_owners(finding.where)):
            yield finding


def _owners(name: str) -> Iterator[str]:
    """The modules whose tensor a name could be: `a.stack_scales` is one of `a`, or of `a.stack`."""
    module, leaf = split_name(name)
    words = leaf.split("_")
    yield module
    yield from (f"{module}.{'_'.join(words[:count])}" for count in range(1, len(words) + 1))


def _stored_quantized(prefix: str, entries: Mapping[str, TensorEntry], quantization: Quantization) -> Finding:
    names, file = ", ".join(entries), next(iter(entries.values())).file
    if quantization.config is None:
        return report(
            "QL101",
            "the module is stored quantized, and the checkpoint has no quantization config",
            where=prefix,
            file=file,
            found=names,
            remedy="put the quantization_config into config.json",
        )
    return report(
        "QL202",
        "the config leaves the module unquantized, and it is stored quantized",
        where=prefix,
        file=file,
        expected="weight",
        found=names,
        remedy="correct the config's ignore list or targets",
    )


def _unexpected(entry: TensorEntry, remedy: str = "") -> Finding:
    return report(
        "QL210",
        "nothing in the model reads this tensor",
        where=entry.name,
        file=entry.file,
        found=f"{entry.dtype} {list(entry.shape)}",
        remedy=remedy,
    )


def _dtype_rule(spec: ParameterSpec) -> str:
    if spec.kind.is_scale:
        return "QL304"
    return "QL305" if spec.kind is ParameterKind.ZERO_POINT else "QL308"


def _size(target: Target, source: Source) -> str:
    geometry = source.geometry(target.geometry)
    return f"{geometry.out_features} x {geometry.in_features}"
