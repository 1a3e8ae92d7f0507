"""What a process that torchrun started finds of its mesh: `meshes.py FOLDER DP PP TP`, an answer for each rank."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from qload.errors import ParallelError
from qload.torch.parallel import Group, device_of, group_of, make_mesh, start_mesh
from qload.torch.parallel.mesh import AXES

WRONG: dict[str, dict[str, Any]] = {
    "sizes": {"dp": 3},
    "product": {"dp": 2, "tp": 1},
    "nothing": {"dp": 0},
    "backend": {"backends": {"tp": "carrier pigeons"}},
    "fake": {"backends": {"tp": "fake"}},
    "of another device": {"backends": {"tp": "nccl"}},
    "axis": {"backends": {"ep": "gloo"}},
    "device": {"device": "abacus"},
    "gpu": {"device": "cuda"},
}


def refuse(**arguments: Any) -> tuple[str, bool]:
    """What start_mesh says of them, and whether it left the processes joined."""
    try:
        start_mesh(**arguments)
    except ParallelError as error:
        return str(error), dist.is_initialized()
    return "started", dist.is_initialized()


def place(group: Group) -> tuple[int, int, list[int]]:
    """A rank's place in a group, the group's size, and the ranks of the world that are in it, in order."""
    return group.rank, group.size, group.gather(torch.tensor([dist.get_rank()])).tolist()


def describe(dp: int, pp: int, tp: int) -> dict[str, Any]:
    """Every wrong start, the right one, and one too many."""
    wrong = {name: refuse(**{"device": "cpu", **arguments}) for name, arguments in WRONG.items()}
    mesh = start_mesh(dp=dp, pp=pp, tp=tp, device="cpu", backends={"tp": "gloo"})
    return {
        "wrong": wrong,
        "again": refuse(device="cpu"),
        "places": {axis: place(group_of(mesh, axis)) for axis in AXES},
        "default": place(group_of(mesh)),
        "device": str(device_of(mesh)),
    }


def lay_out(group: Group) -> tuple[list[Any], list[str]]:
    """Meshes of ranks that are joined already: the places in them, and what is refused."""
    made = make_mesh(dp=2)
    single = init_device_mesh("cpu", (group.size,))
    half = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    groups = [*(group_of(made, axis) for axis in AXES), group_of(single), group_of(made["dp"])]
    asked: list[Callable[[], object]] = [
        lambda: make_mesh(dp=3),
        lambda: group_of(made, "ep"),
        lambda: group_of(single, "tp"),
        lambda: group_of(half).rank,
    ]
    return [place(each) for each in groups], [answer(ask) for ask in asked]


def answer(ask: Callable[[], object]) -> str:
    try:
        return str(ask())
    except ParallelError as error:
        return str(error)


if __name__ == "__main__":
    folder, *sizes = sys.argv[1:]
    found = describe(*map(int, sizes))
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
