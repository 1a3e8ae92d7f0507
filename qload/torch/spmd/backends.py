"""What a backend does: it lays a whole layer's tensors over the devices along one axis of a mesh."""

from collections.abc import Callable
from typing import Any, Protocol

from qload.geometry import Sharding
from qload.torch.layers import Layer


class Backend(Protocol):
    """The devices along one axis of a mesh."""

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def device_type(self) -> str:
        """Their type, on which a layer's tensors are."""
        ...

    def place(self, layer: Layer, sharding: Sharding) -> None:
        """Divide a whole layer, which can be, and whose parts are held apart where they are divided each.

        Afterwards the layer computes what its flow says, on every process.
        """
        ...


MakeBackend = Callable[[Any, str | None], Backend]
"""(mesh, axis) -> the devices along that axis."""
