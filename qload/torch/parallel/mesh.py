"""Device meshes: the ranks of a job along the axes of data, pipeline and tensor parallelism."""

import os
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
    Raises ParallelError where the processes were joined already, the sizes do not make up their number, or a backend
    or device is not there; the processes are then not joined.
    """
    if dist.is_initialized():
        raise ParallelError(
            "the processes have been joined already",
            expected="one start of each process",
            found=f"a {dist.get_backend()} group of {dist.get_world_size()}",
            remedy="make a mesh of them with qload.torch.parallel.make_mesh",
        )
    world, local = _read("WORLD_SIZE"), _read("LOCAL_RANK")
    chosen = device or ("cuda" if torch.cuda.device_count() > local else "cpu")
    _divide(dp, pp, tp, world)
    _check_device(chosen, local)
    _check_backends(chosen, backends or {})
    _join(chosen, local)
    try:
        return make_mesh(dp=dp, pp=pp, tp=tp, device=chosen, backends=backends)
    except BaseException:
        dist.destroy_process_group()
        raise


def make_mesh(
    *,
    dp: int = 1,
    pp: int = 1,
    tp: int | None = None,
    device: str | None = None,
    backends: Mapping[str, str] | None = None,
) -> DeviceMesh:
    """Lay out processes that are joined already, by `run_ranks` or by torch, as `start_mesh` does.

    `device` is by default cuda where nccl joins them. Raises ParallelError as `start_mesh` does, and where the
    processes are not joined.
    """
    if not dist.is_initialized():
        raise ParallelError("the processes are not joined", remedy="join them with qload.torch.parallel.start_mesh")
    shape = _divide(dp, pp, tp, dist.get_world_size())
    chosen = device or ("cuda" if "nccl" in dist.get_backend_config() else "cpu")
    _check_backends(chosen, backends or {})
    override: dict[int | str, Any] = {AXES.index(axis): name for axis, name in (backends or {}).items()}
    try:
        return init_device_mesh(chosen, shape, mesh_dim_names=AXES, backend_override=override or None)
    except (ValueError, RuntimeError) as error:
        raise ParallelError("the ranks cannot be laid out as a mesh", found=_first_line(error)) from error


def group_of(mesh: DeviceMesh, axis: str | None = None) -> Group:
    """This rank's group along an axis of a mesh, and its place inside; of a mesh with several, by default along tp.

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


def _read(name: str) -> int:
    """A number that torchrun tells each process in its environment."""
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise ParallelError(
            "the processes cannot be joined",
            expected=f"{name} in the environment",
            found=text or "none",
            remedy="start them with torchrun --nproc-per-node N, or with qload.torch.parallel.run_ranks",
        )
    return int(text)


def _join(device: str, local: int) -> None:
    if device == "cuda":
        torch.cuda.set_device(local)
    try:
        dist.init_process_group(BACKENDS[device])
    except (ValueError, RuntimeError) as error:
        raise ParallelError(
            "the processes cannot be joined",
            found=_first_line(error),
            remedy="start them with torchrun --nproc-per-node N",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_device(device: str, local: int) -> None:
    if device not in BACKENDS:
        raise ParallelError("ranks cannot be joined on such devices", expected=" or ".join(BACKENDS), found=device)
    if device == "cuda" and torch.cuda.device_count() <= local:
        raise ParallelError(
            "there is no GPU for each rank",
            expected=f"more than {local} on this machine",
            found=str(torch.cuda.device_count()),
            remedy="start fewer ranks on it, or use device='cpu'",
        )


def _check_backends(device: str, backends: Mapping[str, str]) -> None:
    """`backends` by axis: each is there, and takes what lies on a device of that type."""
    for axis, name in backends.items():
        if axis not in AXES:
            raise ParallelError("a mesh has no such axis", expected=" or ".join(AXES), found=axis)
        known = [each for each, types in dist.Backend.backend_capability.items() if device in types and each != "fake"]
        if name not in known:
            raise ParallelError(f"no such backend joins ranks on {device}", expected=" or ".join(known), found=name)
        if not dist.is_backend_available(name):
            raise ParallelError("this build of torch lacks the backend", where=f"axis {axis}", found=name)


def _divide(dp: int, pp: int, tp: int | None, world: int) -> tuple[int, int, int]:
    others = dp * pp
    inner = tp if tp is not None else world // max(1, others)
    if min(dp, pp, inner) < 1 or others * inner != world:
        raise ParallelError(
            "the axes' sizes do not make up the ranks",
            expected=f"{world} ranks",
            found=f"{dp} x {pp} x {inner}",
        )
    return dp, pp, inner
