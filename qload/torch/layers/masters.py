"""Whole tensors of layers of which each rank holds a share: made alike at every number of ranks, and gathered."""

import torch
from torch import Generator, Tensor

from qload.errors import ModelError
from qload.layout import Layout, Region, expert, in_, out
from qload.sharding import match_share
from qload.torch.layers.base import Layer
from qload.torch.parallel.partitions import Initializer, fill_whole


def initialize(layer: Layer, initializer: Initializer, generator: Generator, name: str = "weight") -> None:
    """Fill this rank's share of a weight or bias from the whole one, which every rank makes; padding becomes zero.

    The whole is the same at every number of ranks whose generators are in the same state: that of all fused parts,
    one after another. What lies on the meta device is left as it is, and the generator too. Raises ModelError for a
    tensor that the layer does not store as it is.
    """
    parameter, spec = layer._parameters.get(name), layer.declared.get(name)
    if parameter is None or spec is None or not spec.cast:
        raise ModelError(
            "only what is stored unquantized can be initialized",
            where=f"{layer.name}.{name}",
            expected=" or ".join(each.name for each in layer.declared.values() if each.cast),
            found=layer.treatment.label,
        )
    if parameter.is_meta:
        return
    shape = spec.layout.shape(layer.geometry.extents)
    whole = fill_whole(shape, initializer, generator, parameter.dtype).to(parameter.device)
    with torch.no_grad():
        parameter.zero_()
        for origin, goal in match_share(spec.layout, layer.geometry, layer.shard):
            parameter[_index(goal)] = whole[_index(origin)].to(parameter.dtype)


def gather_whole(layer: Layer, name: str = "weight") -> Tensor:
    """The whole tensor of that name, without padding, on every rank; every rank of the layer's group calls this.

    A weight that is not stored as it is, is made dense first: [out_features, in_features]. What several ranks hold is
    taken once. Raises ModelError for a tensor that the layer does not have, and ParallelError where its ranks have no
    process group.
    """
    share = _find(layer, name).detach()
    layout = layer.specs[name].layout if name in layer.specs else _dense(layer)
    whole = share.new_zeros(layout.shape(layer.geometry.extents))
    for shard, theirs in zip(layer.shards, _gather(layer, share), strict=True):
        for origin, goal in match_share(layout, layer.geometry, shard):
            whole[_index(origin)] = theirs[_index(goal)]
    return whole


def _find(layer: Layer, name: str) -> Tensor:
    tensor: Tensor | None = getattr(layer, name, None) if name == "weight" or name in layer.specs else None
    if tensor is None:
        raise ModelError(
            "the layer has no such tensor",
            where=layer.name,
            expected=" or ".join(each for each in layer.specs if getattr(layer, each) is not None),
            found=name,
        )
    return tensor


def _dense(layer: Layer) -> Layout:
    """The axes of a layer's weight as it computes with it."""
    return Layout((out(), in_()) if layer.geometry.experts is None else (expert(), out(), in_()))


def _gather(layer: Layer, share: Tensor) -> list[Tensor]:
    """Every rank's share, whose bytes are sent: not every backend knows every dtype."""
    if layer.group.size == 1:
        return [share]
    sent = share.contiguous().reshape(-1).view(torch.uint8)
    rows = layer.group.gather(sent, 0).chunk(layer.group.size)
    return [row.view(share.dtype).reshape(share.shape) for row in rows]


def _index(region: Region) -> tuple[slice, ...]:
    return tuple(interval.slice for interval in region)
