"""Finds a model's layers, and how each is to be divided; says what cannot be, before anything is changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from qload.declare import ParameterSpec
from qload.errors import LayoutError, ModelError, ShardError
from qload.geometry import Geometry, Shard, Sharding, replicated
from qload.sharding import cut_layer, fitting_sizes
from qload.torch.layers import Layer
from qload.torch.layers.flow import Projection
from qload.torch.spmd.checks import check_model, own, table_of
from qload.torch.spmd.parts import make_part, must_be_apart
from qload.torch.spmd.ways import find_way

Plan = Callable[[str, Geometry, Sequence[ParameterSpec], int], Sharding]
"""(name, geometry, declared tensors, size) -> how a linear layer that is whole on every rank is to be divided."""


@dataclass(frozen=True, slots=True)
class Division:
    """A layer of a model, and how it is to be divided; `apart`, part by part."""

    name: str
    layer: Layer
    sharding: Sharding
    apart: bool


def find_divisions(model: nn.Module, size: int, device_type: str, plan: Plan | None) -> list[Division]:
    """What is to be done to each layer; tied heads come last.

    A layer that shares a tensor with a module that is none of qload's stays as it is. Raises ModelError for a model
    that is not there whole, and ShardError for the first layer that cannot be divided.
    """
    check_model(model, device_type)
    shared = {id(tensor) for module in model.modules() if not isinstance(module, Layer) for tensor in own(module)}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    free = {name: layer for name, layer in layers.items() if shared.isdisjoint(map(id, own(layer)))}
    divisions = [_divide(name, layer, size, plan) for name, layer in free.items()]
    return sorted(divisions, key=lambda each: table_of(each.layer) is not None)


def _divide(name: str, layer: Layer, size: int, plan: Plan | None) -> Division:
    table = table_of(layer)
    sharding = table.sharding if table is not None else layer.sharding
    specs = tuple(layer.specs.values())
    if plan is not None and sharding is replicated and isinstance(layer, Projection):
        sharding = plan(name or layer.name, layer.geometry, specs, size)
    where = name or layer.name
    shards = [cut_layer(layer.geometry, sharding, specs, where, rank, size) for rank in range(size)]
    apart = must_be_apart(layer, sharding, size)
    if apart and table is not None:
        raise ModelError(
            "a head cannot share a table whose base and added rows are divided each",
            where=where,
            remedy="build the model with its ranks: Site(..., group=group_of(mesh))",
        )
    _check_ways(where, layer, sharding, shards, apart)
    return Division(where, layer, sharding, apart)


def _check_ways(where: str, layer: Layer, sharding: Sharding, shards: Sequence[Shard], apart: bool) -> None:
    """Raises ShardError where a tensor, or a part of it, does not lie in even runs over the ranks."""
    numbers = range(len(layer.geometry.parts)) if apart else (None,)
    for number in numbers:
        geometry = layer.geometry if number is None else make_part(layer, number).geometry
        lying = shards if number is None else [replace(shard, out=(shard.out[number],)) for shard in shards]
        for spec in layer.specs.values():
            try:
                find_way(spec, geometry, lying)
            except LayoutError as error:
                sizes = fitting_sizes(layer.geometry, sharding, tuple(layer.specs.values()))
                raise ShardError(
                    error.what,
                    where=f"{where}.{spec.name}",
                    unit=error.unit,
                    sizes=[each for each in sizes if each != len(shards)],
                    expected=error.expected,
                    found=error.found,
                ) from error
