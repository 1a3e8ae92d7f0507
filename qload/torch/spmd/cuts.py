"""Cuts the tensors of a layer that is there whole."""

from collections.abc import Container, Mapping, Sequence

from torch import Tensor

from qload.declare import ParameterSpec
from qload.geometry import Shard
from qload.sharding import choose_parts, match_share
from qload.torch.layers import Layer


def cut_tensors(layer: Layer, shard: Shard, parts: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The tensors of a rank's share of a whole layer, or of some of its parts; padding is zero.

    What the rank has whole is the layer's own tensor. Raises LayoutError where a unit is split.
    """
    chosen = tuple(range(len(layer.geometry.parts))) if parts is None else tuple(parts)
    held = {name: getattr(layer, name, None) for name in layer.specs}
    return {
        name: cut_tensor(tensor, layer.specs[name], layer, shard, chosen)
        for name, tensor in held.items()
        if tensor is not None
    }


def cut_tensor(tensor: Tensor, spec: ParameterSpec, layer: Layer, shard: Shard, parts: Sequence[int]) -> Tensor:
    """One of them."""
    layout = spec.layout
    if layout.is_measured:
        layout = layout.measure(next(n for n, axis in zip(tensor.shape, layout.axes, strict=True) if axis.measured))
    whole, local = (choose_parts(each, parts) for each in (layer.geometry, shard.local(layer.geometry)))
    shape = layout.local_shape(whole.extents, local.extents)
    if shape == tuple(tensor.shape):
        return tensor
    made = tensor.new_zeros(shape)
    for source, goal in match_share(layout, layer.geometry, shard, held=layer.local, parts=parts):
        made[tuple(each.slice for each in goal)] = tensor[tuple(each.slice for each in source)]
    return made


def put_tensors(layer: Layer, tensors: Mapping[str, Tensor], trained: Container[str]) -> None:
    """Give a layer these of its tensors, and no others."""
    for name in layer.specs:
        tensor = tensors.get(name)
        layer.set_tensor(name, None if tensor is None else tensor.detach())
        if name in trained:
            layer.get_parameter(name).requires_grad_()
    layer.settle_share()


def trained(layer: Layer) -> frozenset[str]:
    """The names of the tensors that are trained."""
    return frozenset(name for name, tensor in layer.named_parameters(recurse=False) if tensor.requires_grad)
