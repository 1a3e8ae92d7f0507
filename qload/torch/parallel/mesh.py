"""Device meshes: the ranks of a job along the axes of data, pipeline and tensor parallelism."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from qload.errors import ParallelError
from qload.torch.parallel.groups import Group

AXES = ("dp", "pp", "tp")
"""The axes, the slowest first: ranks of one tensor-parallel group are neighbours."""
TP = "tp"
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""What joins the ranks, by the type of their devices: gloo is there for what lies on the CPU also beside GPUs."""


def start_mesh(
    *,
    dp: int = 1,
    pp: int = 1,
    tp: int | None = None,
    device: str | None = None,
    backends: Mapping[str, str] | None = None,
) -> DeviceMesh:
    """Join the processes that torchrun started, and lay them out as a mesh with the axes dp, pp and tp.

    `tp` is by default what `dp` and `pp` leave. `device` is the type of the ranks' devices, by default cuda where
    there is one for each rank of this machine. `backends` names one for an axis; by default nccl on cuda and gloo else.
    Raises ParallelError where the processes were joined already, the sizes do not divide their number, or a backend is
    not there.
    """
    chosen = device or _choose_device()
    for name in (backends or {}).values():
        _check_backend(name)
    if dist.is_initialized():
        raise ParallelError(
            "the processes have been joined already",
            expected="one start of each process",
            found=f"a {dist.get_backend()} group of {dist.get_world_size()}",
            remedy="make a mesh of them with torch.distributed.device_mesh.init_device_mesh",
        )
    _join(chosen)
    shape = _divide(dp, pp, tp, dist.get_world_size())
    override: dict[int | str, Any] = {axis: name for axis, name in (backends or {}).items()}  # noqa: C416
    return init_device_mesh(chosen, shape, mesh_dim_names=AXES, backend_override=override or None)


def group_of(mesh: DeviceMesh, axis: str | None = None) -> Group:
    """This rank's group along an axis of a mesh, and its place inside; a mesh of one axis needs no name.

    Raises ParallelError for an axis that the mesh does not have, or a rank that is not in the mesh.
    """
    names = mesh.mesh_dim_names or ()
    if axis is None and mesh.ndim == 1:
        number = 0
    elif (axis or TP) in names:
        number = names.index(axis or TP)
    else:
        raise ParallelError(
            "the mesh has no such axis", expected=" or ".join(names) or "a mesh of one axis", found=axis or TP
        )
    if mesh.get_coordinate() is None:
        raise ParallelError("this rank is not in the mesh", found=f"rank {dist.get_rank()}")
    return Group(mesh.get_local_rank(number), mesh.size(number), mesh.get_group(number))


def device_of(mesh: DeviceMesh) -> torch.device:
    """The device of this rank: on a machine of several, the one that the mesh's start made current."""
    if mesh.device_type != "cuda":
        return torch.device(mesh.device_type)
    return torch.device("cuda", torch.cuda.current_device())


def _choose_device() -> str:
    return "cuda" if torch.cuda.is_available() and torch.cuda.device_count() > dist.get_node_local_rank(0) else "cpu"


def _join(device: str) -> None:
    if device == "cuda":
        torch.cuda.set_device(dist.get_node_local_rank(0))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        raise ParallelError(
            "the processes cannot be joined",
            found=next(iter(str(error).splitlines()), type(error).__name__),
            remedy="start them with torchrun --nproc-per-node N",
        ) from error


def _check_backend(name: str) -> None:
    known = dist.Backend.backend_list
    if name not in known:
        raise ParallelError("there is no such backend", expected=" or ".join(known), found=name)
    if not dist.is_backend_available(name):
        raise ParallelError("this build of torch lacks the backend", found=name)


def _divide(dp: int, pp: int, tp: int | None, world: int) -> tuple[int, int, int]:
    others = dp * pp
    inner = tp if tp is not None else world // max(1, others)
    if min(dp, pp, inner) < 1 or math.prod((dp, pp, inner)) != world:
        raise ParallelError(
            "the axes' sizes do not make up the ranks", expected=f"{world} ranks", found=f"{dp} x {pp} x {inner}"
        )
    return dp, pp, inner
