"""The backend of torch_xla: one process sees whole tensors, and XLA divides what is computed with them.

Imports torch_xla, which has an environment of its own: see docs/spmd.md.
"""

from torch import Tensor
from torch_xla.distributed.spmd import Mesh, mark_sharding

from qload.errors import ModelError, ParallelError
from qload.geometry import Sharding
from qload.torch.layers import Layer
from qload.torch.spmd.ways import Way, find_way


class XlaBackend:
    """The devices along one axis of an XLA mesh; by default along the axis tp, or the only one.

    Layers stay those of one rank: their tensors are whole, and marked. Raises ParallelError for an axis that the mesh
    does not have.
    """

    device_type = "xla"

    def __init__(self, mesh: Mesh, axis: str | None = None) -> None:
        if not isinstance(mesh, Mesh):
            raise ModelError("a model is divided over an XLA mesh", expected="Mesh", found=type(mesh).__name__)
        names = tuple(map(str, mesh.axis_names or range(len(mesh.mesh_shape))))
        self._number = _find_axis(names, axis)
        self._mesh, self._names = mesh, names
        self.size = int(mesh.mesh_shape[self._number])

    def place(self, layer: Layer, sharding: Sharding) -> None:
        """Mark how each tensor is divided; the layer computes on as if it were whole."""
        shards = [sharding(layer.geometry, rank, self.size) for rank in range(self.size)]
        for name, tensor in layer.named_parameters(recurse=False):
            self._mark(tensor, find_way(layer.specs[name], layer.geometry, shards))
        layer.localize = keep

    def _mark(self, tensor: Tensor, way: Way) -> None:
        """XLA's meshes are divided by number: an axis of its own has the replicas of a share."""
        shape = list(self._mesh.mesh_shape)
        shape[self._number : self._number + 1] = [way.shares, self.size // way.shares]
        names = [*self._names[: self._number], "share", "replica", *self._names[self._number + 1 :]]
        mesh = Mesh(self._mesh.device_ids, tuple(shape), tuple(names))
        mark_sharding(tensor, mesh, tuple("share" if dim == way.dim else None for dim in range(tensor.dim())))


def keep(tensor: Tensor) -> Tensor:
    """What a process that sees whole tensors has of one: all."""
    return tensor


def _find_axis(names: tuple[str, ...], axis: str | None) -> int:
    if axis is None and len(names) == 1:
        return 0
    if (axis or "tp") not in names:
        raise ParallelError("the mesh has no such axis", expected=" or ".join(names), found=axis or "tp")
    return names.index(axis or "tp")
