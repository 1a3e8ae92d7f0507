"""What can be divided at all: a module with layers of qload's, loaded and whole, on the mesh's devices."""

from collections.abc import Iterator

from torch import nn

from qload.errors import ModelError
from qload.torch.layers import Layer, ParallelLMHead


def table_of(layer: Layer) -> Layer | None:
    """The embedding whose table a head shares."""
    return layer.table if isinstance(layer, ParallelLMHead) else None


def check_model(model: object, device_type: str) -> None:
    """Raises ModelError unless `model` is a module with layers of qload's, all whole and on such a device."""
    if not isinstance(model, nn.Module) or isinstance(model, nn.ParameterList | nn.ParameterDict):
        raise ModelError("only a module that computes can be divided", found=type(model).__name__)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Layer)}
    if not layers:
        raise ModelError(
            "the model has none of qload's layers",
            found=type(model).__name__,
            remedy="load it with qload.load, or build it from qload.torch's layers",
        )
    for name, layer in layers.items():
        _check_layer(name or layer.name, layer, device_type)
        table = table_of(layer)
        if table is not None and all(table is not each for each in layers.values()):
            raise ModelError(
                "a head is tied to a table outside of what is to be divided",
                where=name or layer.name,
                remedy="divide the model that has both",
            )


def _check_layer(name: str, layer: Layer, device_type: str) -> None:
    if layer.group.size > 1 or layer.apart or layer.localize is not None:
        raise ModelError(
            "the layer is divided already",
            where=name,
            expected="a layer of one rank",
            found=f"rank {layer.group.rank} of {layer.group.size}",
        )
    if layer.packed is not None:
        raise ModelError(
            "the layer is packed for a kernel, and cannot be divided",
            where=name,
            expected="the tensors that the checkpoint stores",
            found=layer.path.name,
            remedy="load it with kernels=()",
        )
    for tensor in own(layer):
        if tensor.is_meta:
            raise ModelError("the layer has not been loaded", where=name, remedy="load the model first")
        if tensor.device.type != device_type:
            raise ModelError(
                "the layer is not on a device of the mesh", where=name, expected=device_type, found=str(tensor.device)
            )


def own(module: nn.Module) -> Iterator[nn.Parameter]:
    """A module's own tensors, and not those of modules below it."""
    return module.parameters(recurse=False)
