"""The outline itself: which stored modules are layers of a method, and which are taken as they are."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from qload.checkpoint import Checkpoint
from qload.dtypes import FLOATS
from qload.findings import Finding, refusals
from qload.geometry import Kind, replicated, single
from qload.outline.modules import StoredModule, list_modules
from qload.outline.sizes import PROBE, Solver, find_known_sizes
from qload.plan import PlainTarget, Source, Target
from qload.quantization import Quantization, Treatment

_STACKS = ("gate_up_proj", "up_proj", "down_proj", "input_linear", "output_linear")
"""What transformers and models call the two tensors of a stack of experts."""
_QUANTIZED_DTYPES = ("I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2", "F4")


@dataclass(frozen=True, slots=True)
class Outline:
    """The layers and plain tensors that a checkpoint's headers speak of, and what is wrong with them.

    `layers` are their names, each with the target of the first layer that is alike: that headers cannot tell from it,
    its name aside.
    """

    layers: tuple[tuple[str, Target], ...]
    plain: tuple[PlainTarget, ...]
    findings: tuple[Finding, ...]

    @property
    def samples(self) -> tuple[Target, ...]:
        """One target of each likeness."""
        return tuple(sample for name, sample in self.layers if name == sample.name)

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(
            Target(name, sample.geometry, sample.treatment, sample.shard, (replace(sample.sources[0], prefix=name),))
            for name, sample in self.layers
        )


def outline(checkpoint: Checkpoint, quantization: Quantization) -> Outline:
    """Read a model's outline off the headers; what a method refuses is a finding."""
    refused: dict[str, str] = {}
    # One module stands for all that are alike, however many a checkpoint has.
    modules = list_modules(checkpoint, quantization, refused)
    found = _find_targets(tuple(dict.fromkeys(sample for _, sample in modules)), checkpoint, quantization)
    layers = [(name, found[sample]) for name, sample in modules if sample in found]
    plain = [tensor for name, sample in modules if sample not in found for tensor in _plain(name, checkpoint)]
    return Outline(tuple(layers), tuple(plain), tuple(refusals(refused)))


def _find_targets(
    samples: Collection[StoredModule], checkpoint: Checkpoint, quantization: Quantization
) -> dict[StoredModule, Target]:
    """The targets of the modules that are layers of a method, or of none: those that store a plain matrix."""
    quantized = _find_layers(samples, quantization)
    known = set(quantized)
    plain = Treatment(quantization.unquantized, None)
    others = [sample for sample in samples if sample not in known and not sample.refused and _is_matrix(sample)]
    layers = [*quantized, *(replace(sample, treatment=plain) for sample in others)]
    geometries = Solver(quantization, find_known_sizes(checkpoint.config)).solve_all(layers)
    found = {
        sample: Target(layer.info.name, geometry, layer.treatment, replicated(geometry), (Source(layer.info.name),))
        for sample, layer, geometry in zip([*quantized, *others], layers, geometries, strict=True)
    }
    left = [sample for sample in samples if sample not in found and not sample.refused]
    return {**found, **{sample: _outline_plain(sample, plain) for sample in left if _is_plain(sample)}}


def _is_matrix(module: StoredModule) -> bool:
    """Whether it stores a matrix of values, perhaps with a bias for its rows, and nothing else."""
    weight, bias = module.tensors.get("weight"), module.tensors.get("bias")
    if weight is None or len(weight.shape) != 2 or len(module.tensors) != 1 + (bias is not None):
        return False
    return weight.dtype in FLOATS and (bias is None or (bias.dtype in FLOATS and bias.shape == weight.shape[:1]))


def _is_plain(module: StoredModule) -> bool:
    """Whether it stores a matrix that may lie as [in, out], or those of a stack of experts, and perhaps biases."""
    weight, bias = module.tensors.get("weight"), module.tensors.get("bias")
    last = module.info.name.rpartition(".")[2]
    if weight is None or weight.dtype not in FLOATS or len(weight.shape) != (3 if last in _STACKS else 2):
        return False
    *experts, rows, columns = weight.shape
    lengths = {(*experts, rows), (*experts, columns)}
    alone = len(module.tensors) == 1 + (bias is not None)
    return alone and (bias is None or (bias.dtype in FLOATS and bias.shape in lengths))


def _outline_plain(module: StoredModule, plain: Treatment) -> Target:
    """A plain layer or stack, of which only biases tell whether it lies as [in, out]."""
    name, weight, bias = module.info.name, module.tensors["weight"], module.tensors.get("bias")
    *experts, rows, columns = weight.shape
    turned = bias is not None and bias.shape[-1] != rows
    geometry = single(
        *((columns, rows) if turned else (rows, columns)),
        kind=Kind.EXPERTS if experts else module.info.kind,
        dtype=weight.dtype,
        bias=bias is not None,
        experts=experts[0] if experts else None,
    )
    return Target(name, geometry, plain, replicated(geometry), (Source(name, turned=turned),))


def _find_layers(samples: Collection[StoredModule], quantization: Quantization) -> list[StoredModule]:
    quantized = {sample.pattern for sample in samples if _is_quantized(sample, quantization)}
    marks = _marks(samples, quantization)
    return [sample for sample in samples if not sample.refused and _is_layer(sample, quantized, marks, quantization)]


def _is_quantized(module: StoredModule, quantization: Quantization) -> bool:
    """Whether a module is to be quantized, and stores a tensor that only a quantized one has."""
    return module.treatment.scheme is not None and any(
        leaf in module.tensors for leaf in _own_leaves(module.treatment, quantization)
    )


def _own_leaves(treatment: Treatment, quantization: Quantization) -> set[str]:
    """The names that a quantized module alone has; what some parts may have besides tells nothing."""
    specs = quantization.declare(treatment, PROBE)
    return {spec.stored_as for spec in specs if not spec.partial} - {"weight", "bias"}


def _marks(modules: Iterable[StoredModule], quantization: Quantization) -> set[str]:
    """The names that tell a quantized module in this checkpoint."""
    treatments = {
        (module.treatment.label, module.info.kind): module.treatment
        for module in modules
        if module.treatment.scheme is not None
    }
    return {leaf for treatment in treatments.values() for leaf in _own_leaves(treatment, quantization)}


def _is_layer(module: StoredModule, quantized: set[str], marks: set[str], quantization: Quantization) -> bool:
    """Whether to hold a module against a declaration, or to take its tensors as they are.

    A class name in a config cannot be matched without the model. So a module that stores nothing but a plain
    weight counts as quantized only where a module of the same place in another layer is.
    """
    if module.treatment.scheme is not None:
        return _is_quantized(module, quantization) or module.pattern in quantized
    if quantization.config is not None and any(leaf in marks for leaf in module.tensors):
        return True
    return any(entry.dtype in _QUANTIZED_DTYPES and len(entry.shape) == 2 for entry in module.tensors.values())


def _plain(name: str, checkpoint: Checkpoint) -> Iterator[PlainTarget]:
    for stored in checkpoint.modules.get(name, {}).values():
        entry = checkpoint.tensors[stored]
        yield PlainTarget(entry.name, entry.name, entry.shape, None)
