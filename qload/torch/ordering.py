"""Columns that are assigned to groups by an index, as activation order leaves them."""

from typing import NamedTuple

import torch
from torch import Tensor

from qload.errors import ModelError
from qload.torch.dtypes import torch_dtype
from qload.torch.layers import Layer


def settle_group_index(layer: Layer, name: str, group: int, *, ordered: bool) -> None:
    """Drop an index of groups [parts, columns] that says only what the columns' positions say.

    `ordered` is whether the method keeps the scales whole, as an order by activation needs. An index below
    zero means no order. Where it was dropped for the whole layer, and a rank has a share of the columns, which are
    beside whole scales, it is made again. Raises ModelError where the columns are reordered, and the scales have been
    cut.
    """
    index = getattr(layer, name)
    start, columns = layer.shard.in_.start, layer.local.in_features
    cut = columns != layer.geometry.in_features
    if index is None:
        if cut and ordered:
            layer.set_tensor(name, _make_index(layer, name, group))
        return
    position = (torch.arange(start, start + columns, dtype=index.dtype, device=index.device) // group).expand_as(index)
    # Nearly all are plain as they are stored.
    plain = torch.equal(index, position)
    settled = index if plain else torch.where((index < 0).all(-1, keepdim=True), position, index)
    if (plain or torch.equal(settled, position)) and not (cut and ordered):
        layer.set_tensor(name, None)
    elif cut and not ordered:
        raise ModelError(
            "the columns are reordered, and the config says that they are not",
            where=f"{layer.name}.{name}",
            remedy="correct the config, or load without tensor parallelism",
        )
    else:
        layer.set_tensor(name, settled)


class Runs(NamedTuple):
    """Columns sorted by their groups: the order of the columns, None where they are in it, and each run's group."""

    order: Tensor | None
    groups: Tensor


def sort_columns(index: Tensor, group: int) -> Runs | str:
    """Columns [columns], each with its group in `index`, in runs of `group` of one group; or why they have none."""
    order = index.argsort(stable=True)
    ordered = index[order].long()
    places = torch.arange(len(index), device=index.device)
    first = places // group * group
    if not torch.equal(ordered, ordered[first]):
        return f"of its columns, which are ordered by activations, other than {group} have one scale"
    return Runs(None if torch.equal(order, places) else order, ordered[::group])


def _make_index(layer: Layer, name: str, group: int) -> Tensor:
    """The groups of a rank's columns, which are in their order."""
    spec, start = layer.specs[name], layer.shard.in_.start
    columns = torch.arange(start, start + layer.local.in_features, device=next(layer.parameters()).device)
    groups = (columns // group).to(torch_dtype(spec.dtypes[0]))
    return groups.expand(layer.local_shape(spec)).contiguous()
