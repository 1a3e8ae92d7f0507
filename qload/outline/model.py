"""The outline itself: which stored modules are layers of a method, and which are taken as they are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qload.checkpoint import Checkpoint
from qload.findings import Finding, refusals
from qload.geometry import Geometry, replicated
from qload.outline.modules import StoredModule, list_modules
from qload.outline.sizes import PROBE, Solver, find_known_sizes
from qload.plan import PlainTarget, Source, Target
from qload.quantization import Quantization, Treatment

_QUANTIZED_DTYPES = ("I8", "U8", "I16", "I32", "F8_E4M3", "F8_E5M2", "F4")


@dataclass(frozen=True, slots=True)
class Outline:
    """The layers and plain tensors that a checkpoint's headers speak of, and what is wrong with them."""

    targets: tuple[Target, ...]
    plain: tuple[PlainTarget, ...]
    findings: tuple[Finding, ...]


def outline(checkpoint: Checkpoint, quantization: Quantization) -> Outline:
    """Read a model's outline off the headers; what a method refuses is a finding."""
    refused: dict[str, str] = {}
    modules = list(list_modules(checkpoint, quantization, refused))
    quantized = {module.pattern for module in modules if _is_quantized(module, quantization)}
    marks = _marks(modules, quantization)
    solver = Solver(quantization, find_known_sizes(checkpoint.config))
    layers: list[StoredModule] = []
    plain: list[PlainTarget] = []
    for module in modules:
        if not module.refused and _is_layer(module, quantized, marks, quantization):
            layers.append(module)
            solver.learn(module)
        else:
            plain += _plain(module)
    targets = tuple(_target(module, solver.solve(module)) for module in layers)
    return Outline(targets, tuple(plain), tuple(refusals(refused)))


def _target(module: StoredModule, geometry: Geometry) -> Target:
    name = module.info.name
    return Target(name, geometry, module.treatment, replicated(geometry), (Source(name),))


def _is_quantized(module: StoredModule, quantization: Quantization) -> bool:
    """Whether a module is to be quantized, and stores a tensor that only a quantized one has."""
    return module.treatment.scheme is not None and any(
        leaf in module.tensors for leaf in _own_leaves(module.treatment, quantization)
    )


def _own_leaves(treatment: Treatment, quantization: Quantization) -> set[str]:
    specs = quantization.declare(treatment, PROBE)
    return {spec.stored_as for spec in specs} - {"weight", "bias"}


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
    if quantization.config is not None:
        return any(leaf in marks for leaf in module.tensors)
    return any(entry.dtype in _QUANTIZED_DTYPES and len(entry.shape) == 2 for entry in module.tensors.values())


def _plain(module: StoredModule) -> Iterator[PlainTarget]:
    for entry in module.tensors.values():
        yield PlainTarget(entry.name, entry.name, entry.shape, None)
