"""Takes a fused layer apart, for a rank's share of several parts is no run of its rows."""

from dataclasses import replace
from functools import partial

from torch import nn

from qload.geometry import Geometry, Shard, Sharding
from qload.layout import Dim
from qload.sharding import divided_dims
from qload.torch.layers import Layer
from qload.torch.layers.packing import PLAIN
from qload.torch.spmd.cuts import cut_tensors, put_tensors, trained


def must_be_apart(layer: Layer, sharding: Sharding, size: int) -> bool:
    """Whether the parts, one after another, are divided each."""
    shards = [sharding(layer.geometry, rank, size) for rank in range(size)]
    is_fused = len(layer.geometry.parts) > 1 and not layer.geometry.interleaved
    return is_fused and Dim.OUT in divided_dims(shards)


def take_apart(layer: Layer) -> None:
    """Give each part's tensors to a layer of its own, below the fused one, which computes with them."""
    made = []
    for number in range(len(layer.geometry.parts)):
        part = make_part(layer, number)
        put_tensors(part, cut_tensors(layer, layer.shard, [number]), trained(layer))
        made.append(part)
    for name in layer.specs:
        delattr(layer, name)
    layer.declared, layer.derived = {}, {}
    layer.apart = tuple(_name(layer, part, number) for number, part in enumerate(made))
    for name, part in zip(layer.apart, made, strict=True):
        layer.add_module(name, part)
    layer.settle_share()


def _name(layer: Layer, part: Layer, number: int) -> str:
    """The part's own name, unless the layer has something else of that name."""
    name = part.geometry.parts[0].name
    return name if name and "." not in name and not hasattr(layer, name) else f"part_{number}"


def make_part(layer: Layer, number: int) -> Layer:
    """One of a layer's parts as a layer of its own, on as many ranks, without tensors."""
    made = Layer.__new__(Layer)
    nn.Module.__init__(made)
    made.packed = None
    made.path = PLAIN if layer.treatment.scheme is None else layer.path
    made.geometry = replace(layer.geometry.select(number), experts=layer.geometry.experts)
    made.name = f"{layer.name}.{made.geometry.parts[0].name or number}"
    made.sources = tuple(source.of_part(number, layer.geometry) for source in layer.sources if source.has(number))
    made.treatment, made.hooks, made.dtype = layer.treatment, layer.hooks, layer.dtype
    made.quantize_activations = layer.quantize_activations
    made.declared, made.derived = dict(layer.declared), dict(layer.derived)
    made.aliases = layer.aliases[number : number + 1]
    made.take_share(layer.group, divide_part(layer, number, layer.sharding))
    return made


def divide_part(layer: Layer, number: int, sharding: Sharding) -> Sharding:
    """How one of a layer's parts is divided where the whole is divided so."""
    return partial(_shard_part, layer.geometry, sharding, number)


def _shard_part(whole: Geometry, sharding: Sharding, number: int, geometry: Geometry, rank: int, size: int) -> Shard:  # noqa: ARG001
    """A part's share, as the layer that it belongs to is divided."""
    shard = sharding(whole, rank, size)
    return replace(shard, out=(shard.out[number],))
