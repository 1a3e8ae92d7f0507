"""What the headers alone say of a model: its modules, their kinds, and their sizes.

Without torch there is no model to ask. A quantized module's size is solved from the shapes of its tensors by
the axis formula, read backwards; tensors of one module that disagree are then found by the plan.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qload.checkpoint import Checkpoint, TensorEntry
from qload.declare import ParameterKind, ParameterSpec
from qload.dtypes import FLOATS
from qload.findings import Finding, refusals
from qload.geometry import Geometry, Kind, replicated, single
from qload.hookspecs import ModuleInfo
from qload.layout import Dim
from qload.plan import PlainTarget, Source, Target
from qload.quantization import Quantization, Treatment

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
_HEADS = ("lm_head", "embed_out")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
_QUANTIZED_DTYPES = ("I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2", "F4")
_PROBE = single(1, 1)


@dataclass(frozen=True, slots=True)
class Outline:
    """The layers and plain tensors that a checkpoint's headers speak of, and what is wrong with them."""

    targets: tuple[Target, ...]
    plain: tuple[PlainTarget, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class _Module:
    info: ModuleInfo
    tensors: Mapping[str, TensorEntry]
    treatment: Treatment
    refused: bool = False


def outline(checkpoint: Checkpoint, quantization: Quantization) -> Outline:
    """Read a model's outline off the headers; what a method refuses is a finding."""
    refused: dict[str, str] = {}
    modules = list(_modules(checkpoint, quantization, refused))
    quantized = {_last(module.info.name) for module in modules if _is_quantized(module, quantization)}
    marks = _marks(modules, quantization)
    targets: list[Target] = []
    plain: list[PlainTarget] = []
    for module in modules:
        if not module.refused and _is_layer(module, quantized, marks, quantization):
            targets.append(_target(module, quantization, checkpoint.config))
        else:
            plain += _plain(module)
    return Outline(tuple(targets), tuple(plain), tuple(refusals(refused)))


def _modules(checkpoint: Checkpoint, quantization: Quantization, refused: dict[str, str]) -> Iterator[_Module]:
    for name, leaves in checkpoint.modules.items():
        prefix = f"{name}." if name else ""
        tensors = {leaf: checkpoint.tensors[prefix + leaf] for leaf in leaves}
        info = _describe(name, tensors)
        try:
            yield _Module(info, tensors, quantization.treat(info))
        except ValueError as error:
            refused[name] = str(error)
            yield _Module(info, tensors, Treatment(quantization.unquantized, None), refused=True)


def _describe(name: str, tensors: Mapping[str, TensorEntry]) -> ModuleInfo:
    last = _last(name)
    kind = Kind.LINEAR
    classes: tuple[str, ...] = ("Linear",)
    if last in _EMBEDDINGS:
        kind, classes = Kind.EMBEDDING, ("Embedding",)
    elif last in _HEADS:
        kind = Kind.LM_HEAD
    elif last in _ATTENTIONS:
        kind, classes = Kind.KV_CACHE, ()
    elif all(len(entry.shape) != 2 for entry in tensors.values()):
        classes = ()
    return ModuleInfo((name,), kind, classes)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _is_quantized(module: _Module, quantization: Quantization) -> bool:
    """Whether a module is to be quantized, and stores a tensor that only a quantized one has."""
    return module.treatment.scheme is not None and any(
        leaf in module.tensors for leaf in _own_leaves(module.treatment, quantization)
    )


def _own_leaves(treatment: Treatment, quantization: Quantization) -> set[str]:
    specs = quantization.declare(treatment, _PROBE)
    return {spec.stored_as for spec in specs} - {"weight", "bias"}


def _marks(modules: Iterable[_Module], quantization: Quantization) -> set[str]:
    """The names that tell a quantized module in this checkpoint."""
    treatments = {
        (module.treatment.label, module.info.kind): module.treatment
        for module in modules
        if module.treatment.scheme is not None
    }
    return {leaf for treatment in treatments.values() for leaf in _own_leaves(treatment, quantization)}


def _is_layer(module: _Module, quantized: set[str], marks: set[str], quantization: Quantization) -> bool:
    """Whether to hold a module against a declaration, or to take its tensors as they are.

    A class name in a config cannot be matched without the model. So a module that stores nothing but a plain
    weight counts as quantized only where a module of the same name elsewhere is.
    """
    if module.treatment.scheme is not None:
        return _is_quantized(module, quantization) or _last(module.info.name) in quantized
    if quantization.config is not None:
        return any(leaf in marks for leaf in module.tensors)
    return any(entry.dtype in _QUANTIZED_DTYPES and len(entry.shape) == 2 for entry in module.tensors.values())


def _target(module: _Module, quantization: Quantization, config: Mapping[str, Any]) -> Target:
    geometry = _solve(module, quantization, _sizes(config))
    source = Source(module.info.name)
    return Target(module.info.name, geometry, module.treatment, replicated(geometry), (source,))


def _plain(module: _Module) -> Iterator[PlainTarget]:
    for entry in module.tensors.values():
        yield PlainTarget(entry.name, entry.name, entry.shape, None)


def _solve(module: _Module, quantization: Quantization, known: frozenset[int]) -> Geometry:
    """The size of a module that agrees with most of its tensors, the packed one first."""
    specs = quantization.declare(module.treatment, _PROBE)
    order = sorted(specs, key=lambda spec: spec.kind not in (ParameterKind.PACKED, ParameterKind.WEIGHT))
    counts = {Dim.OUT: range(1, 1), Dim.IN: range(1, 1)}
    for spec in order:
        entry = module.tensors.get(spec.stored_as)
        if entry is not None and len(entry.shape) == len(spec.layout.axes):
            _narrow(counts, spec, entry)
    return single(
        _choose(counts[Dim.OUT], known),
        _choose(counts[Dim.IN], known),
        kind=module.info.kind,
        dtype=_dtype(module.tensors.values()),
        bias="bias" in module.tensors,
    )


def _narrow(counts: dict[Dim, range], spec: ParameterSpec, entry: TensorEntry) -> None:
    for axis, size in zip(spec.layout.axes, entry.shape, strict=True):
        if axis.dim not in counts:
            continue
        said, before = axis.counts(size), counts[axis.dim]
        both = range(max(said.start, before.start), min(said.stop, before.stop))
        if not before:
            counts[axis.dim] = said
        elif both:
            counts[axis.dim] = both


def _choose(counts: range, known: frozenset[int]) -> int:
    if not counts:
        return 1
    return max((count for count in counts if count in known), default=counts[-1])


def _sizes(config: Mapping[str, Any]) -> frozenset[int]:
    """Every number in a model's config, which its layers' sizes are likely to be among."""
    sections = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    return frozenset(value for section in sections for value in section.values() if type(value) is int)


def _dtype(entries: Iterable[TensorEntry]) -> str:
    return next((entry.dtype for entry in entries if entry.dtype in FLOATS), "F32")
