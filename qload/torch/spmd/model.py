"""Divides a whole model over a mesh."""

from typing import TypeVar

from torch import nn

from qload.roles import choose_sharding
from qload.torch.layers import Experts, ParallelLMHead
from qload.torch.spmd.backends import Backend, MakeBackend
from qload.torch.spmd.divisions import Division, Plan, find_divisions
from qload.torch.spmd.parts import divide_part, take_apart
from qload.torch.spmd.tensors import TensorBackend

Model = TypeVar("Model", bound=nn.Module)


def shard_model(
    model: Model,
    mesh: object,
    *,
    axis: str | None = None,
    plan: Plan | None = choose_sharding,
    backend: MakeBackend = TensorBackend,
) -> Model:
    """Divide a model, which every process has whole, over the devices along an axis of a mesh; in place.

    Each of qload's layers is divided as it says itself. A linear layer that is whole on every rank asks `plan`, with
    its name, geometry, declared tensors and the number of devices; the default goes by names, and None leaves it
    whole. Other modules stay as they are. Afterwards the model computes what it computed before, on every process.

    Raises ModelError for what is no loaded, undivided model with layers of qload's, ParallelError for an axis that the
    mesh does not have, and ShardError, with the layer, the unit and the sizes that fit, for a layer that cannot be
    divided: all before anything is changed. Returns the model.
    """
    devices = backend(mesh, axis)
    for division in find_divisions(model, devices.size, devices.device_type, plan):
        _carry_out(division, devices)
    for module in model.modules():
        if isinstance(module, Experts):
            module.settle_flows()
    return model


def _carry_out(division: Division, devices: Backend) -> None:
    layer, sharding = division.layer, division.sharding
    if division.apart:
        take_apart(layer)
    for number, part in enumerate(layer.parts_apart()):
        devices.place(part, divide_part(layer, number, sharding))
    if isinstance(layer, ParallelLMHead) and layer.table is not None:
        layer.leave_table()
        devices.place(layer, sharding)
        layer.share(layer.table)
    else:
        devices.place(layer, sharding)
