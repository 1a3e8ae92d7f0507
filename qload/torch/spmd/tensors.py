"""The backend of `torch.distributed.tensor`: each rank holds its share, and knows of what it is one."""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from qload.errors import ModelError
from qload.geometry import Sharding
from qload.torch.layers import Layer
from qload.torch.parallel import group_of
from qload.torch.spmd.checks import table_of
from qload.torch.spmd.cuts import cut_tensors, put_tensors, trained
from qload.torch.spmd.ways import Way, find_way

_AXES = ("share", "replica")


class TensorBackend:
    """The ranks along one axis of a device mesh; by default along the axis tp, or the only one.

    Parameters become DTensors, whose shapes are those of all ranks' shares together. Raises ParallelError for an axis
    that the mesh does not have.
    """

    def __init__(self, mesh: DeviceMesh, axis: str | None = None) -> None:
        if not isinstance(mesh, DeviceMesh):
            raise ModelError("a model is divided over a device mesh", expected="DeviceMesh", found=type(mesh).__name__)
        self.group = group_of(mesh, axis)
        self.device_type = mesh.device_type
        self._mesh = mesh if mesh.ndim == 1 else mesh[axis or "tp"]
        self._finer: dict[int, DeviceMesh] = {}
        self._held: dict[int, tuple[Tensor, nn.Parameter]] = {}

    @property
    def size(self) -> int:
        return self.group.size

    def place(self, layer: Layer, sharding: Sharding) -> None:
        """Cut the layer's tensors to this rank's share, let its method see to them, and hold them as DTensors."""
        before = dict(layer.named_parameters(recurse=False))
        kept, group = trained(layer), self.group
        tensors = cut_tensors(layer, sharding(layer.geometry, group.rank, group.size))
        layer.take_share(group, sharding)
        put_tensors(layer, tensors, kept)
        if tensors and table_of(layer) is None:
            layer.hooks.process(layer)
        self._hold(layer, before)

    def _hold(self, layer: Layer, before: dict[str, nn.Parameter]) -> None:
        for name, tensor in list(layer.named_parameters(recurse=False)):
            held = self._wrap(tensor, find_way(layer.specs[name], layer.geometry, layer.shards))
            layer.register_parameter(name, self._once(before.get(name), held))
        layer.localize = localize
        layer.settle_share()

    def _once(self, before: nn.Parameter | None, held: nn.Parameter) -> nn.Parameter:
        """What was one tensor in several layers, which are divided alike, is one again."""
        if before is None:
            return held
        _, found = self._held.setdefault(id(before), (before, held))
        return found if _is_alike(found, held) else held

    def _wrap(self, tensor: nn.Parameter, way: Way) -> nn.Parameter:
        mesh, placements = self._lay(way)
        held = DTensor.from_local(tensor.detach(), mesh, placements, run_check=False)
        return nn.Parameter(held, requires_grad=tensor.requires_grad)

    def _lay(self, way: Way) -> tuple[DeviceMesh, tuple[Placement, ...]]:
        if way.dim is None:
            return self._mesh, (Replicate(),)
        if way.shares == self.size:
            return self._mesh, (Shard(way.dim),)
        return self._refine(way.shares), (Shard(way.dim), Replicate())

    def _refine(self, shares: int) -> DeviceMesh:
        """The ranks as a mesh of `shares` by as many as have the same share."""
        if shares not in self._finer:
            self._finer[shares] = self._mesh._unflatten(0, (shares, self.size // shares), _AXES)
        return self._finer[shares]


def localize(tensor: Tensor) -> Tensor:
    """This rank's share of a DTensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _is_alike(one: nn.Parameter, other: nn.Parameter) -> bool:
    lain = [(each.shape, each.dtype, getattr(each, "placements", None)) for each in (one, other)]
    return lain[0] == lain[1]
