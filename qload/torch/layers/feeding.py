"""Loads a layer by hand, from pairs of stored names and whole tensors."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from torch import Tensor

from qload.checkpoint.names import spell_name
from qload.declare import ParameterSpec
from qload.errors import CheckpointError, ParameterError
from qload.findings import Finding, report
from qload.geometry import Geometry
from qload.plan import Source
from qload.quantization import Treatment
from qload.torch.identity import PartOfExpert, list_parts
from qload.torch.parameters import TypedParameter


class Place(NamedTuple):
    """Where a stored tensor goes: the parameter's name, and the source that stores it."""

    parameter: str
    source: Source


class Fed(Protocol):
    """What loading by hand needs of a layer."""

    name: str
    geometry: Geometry
    treatment: Treatment
    sources: tuple[Source, ...]
    declared: dict[str, ParameterSpec]

    @property
    def places(self) -> dict[str, Place]: ...

    def find_parameter(self, name: str) -> TypedParameter | None: ...

    def set_tensor(self, name: str, tensor: Tensor | None) -> None: ...


def list_places(layer: Fed) -> dict[str, Place]:
    """The places of all tensors that a checkpoint can store for a layer, those included that are not loaded."""
    places: dict[str, Place] = {}
    specs = layer.treatment.declare(layer.geometry)
    for source in layer.sources:
        for spec in specs:
            below, beside = spell_name(source.prefix, spec.stored_as)
            places[below] = Place(spec.name, source)
            if layer.geometry.experts is not None and source.expert is None:
                places.setdefault(beside, Place(spec.name, source))
    return places


def load_place(layer: Fed, name: str, tensor: Tensor, synchronize: Callable[[], None] | None) -> int:
    """Load one tensor; returns the entries written, which are none for what is stored and not needed."""
    place = layer.places.get(name)
    if place is None:
        names = ", ".join(dict.fromkeys(source.prefix for source in layer.sources))
        expected = f"a tensor of {names}"
        raise ParameterError(
            "nothing of that name is stored for the layer", where=layer.name, expected=expected, found=name
        )
    if place.parameter not in layer.declared:
        return 0
    parameter = layer.find_parameter(place.parameter)
    if parameter is None or parameter.identity.layer != layer.name:
        raise ParameterError(
            "the layer has no memory of its own for the tensor",
            where=f"{layer.name}.{place.parameter}",
            found="one that is taken away, put there by others, or shared with another layer",
            remedy="load the layer that it is shared with, or make it again with layer.allocate(device)",
        )
    return parameter.load_source(tensor, place.source, synchronize=synchronize)


def finish_loading(layer: Fed) -> bool:
    """Take away what is optional and was not loaded; whether the layer has tensors of its own.

    Raises CheckpointError with all that are missing.
    """
    held = [layer.find_parameter(name) for name in layer.declared]
    own = [each for each in held if each is not None and each.identity.layer == layer.name]
    missing = [finding for each in own for finding in _find_missing(layer, each)]
    if missing:
        raise CheckpointError(layer.name, missing)
    for parameter in own:
        if not parameter.loaded:
            layer.set_tensor(parameter.spec.name, None)
    return len(own) == len([each for each in held if each is not None])


def _find_missing(layer: Fed, parameter: TypedParameter) -> Iterator[Finding]:
    """What is not loaded of a tensor that is needed, or of which something is loaded, as a plan has it."""
    spec = parameter.spec
    if not spec.required and (spec.partial or not parameter.loaded):
        return
    for source in layer.sources:
        if parameter.missing & _list_owned(source, parameter):
            yield report(
                "QL201",
                f"the {spec.kind.value} was not loaded",
                where=spell_name(source.prefix, spec.stored_as)[0],
                expected=f"a tensor of a module that is {layer.treatment.label}",
                remedy="load every tensor of the layer before it is finished",
            )


def _list_owned(source: Source, parameter: TypedParameter) -> frozenset[PartOfExpert]:
    experts = parameter.geometry.experts
    return list_parts(source, None if experts is None else range(experts))
