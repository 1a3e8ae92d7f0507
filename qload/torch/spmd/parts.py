"""Takes a fused layer apart, for a rank's share of several parts is no run of its rows."""

from qload.geometry import Sharding
from qload.layout import Dim
from qload.sharding import divided_dims
from qload.torch.layers import Layer
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
        part = layer.make_part(number)
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
