"""What `qload run` does on each rank: loads, and generates. Imports torch when it is called, as the command does."""

import importlib
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qload
from qload.cli.progress import OwnBar, RanksBar


@dataclass(frozen=True, slots=True)
class Request:
    """What to load, how, and what to go on from: the ids of a prompt's tokens."""

    path: Path
    ids: Sequence[int]
    max_new_tokens: int
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was loaded on every rank, and the tokens that were generated in so many seconds."""

    reports: "tuple[qload.LoadReport, ...]"
    tokens: tuple[int, ...]
    seconds: float


def is_joined() -> bool:
    """Whether torchrun started this process, among others."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def generate_alone(request: Request) -> Outcome:
    """Load and generate in this process."""
    return _generate(request, OwnBar())


def generate_on_ranks(request: Request, size: int, device: str) -> Outcome:
    """Start so many processes of this machine, and load and generate on all of them."""
    parallel = importlib.import_module("qload.torch.parallel")
    outcome: Outcome = parallel.run_ranks(generate_on_rank, size, request, device=device)
    return outcome


def generate_joined(request: Request, size: int | None, device: str | None) -> Outcome | None:
    """Load and generate with the processes that torchrun started; None on all but the first.

    Raises ParallelError where they are not `size`, if there is one.
    """
    parallel = importlib.import_module("qload.torch.parallel")
    mesh = parallel.start_mesh(tp=size, device=device)
    try:
        group = parallel.group_of(mesh)
        outcome = _generate(_on(request, mesh), _make_bar(group))
    finally:
        importlib.import_module("torch.distributed").destroy_process_group()
    return outcome if group.rank == 0 else None


def generate_on_rank(group: Any, request: Request) -> Outcome:
    """One rank's part of `generate_on_ranks`."""
    meshes = importlib.import_module("torch.distributed.device_mesh")
    device = request.options["device"]
    mesh = meshes.init_device_mesh(device, (group.size,), mesh_dim_names=("tp",))
    return _generate(_on(request, mesh), _make_bar(group))


def _on(request: Request, mesh: Any) -> Request:
    """The request on a rank of a mesh, whose device the mesh knows."""
    return Request(request.path, request.ids, request.max_new_tokens, {**request.options, "device": None, "mesh": mesh})


def _make_bar(group: Any) -> RanksBar:
    parallel = importlib.import_module("qload.torch.parallel")
    done, total = parallel.SharedCount("loaded"), parallel.SharedCount("to load")
    return RanksBar(done, total, shows=group.rank == 0)


def _generate(request: Request, bar: AbstractContextManager[Any]) -> Outcome:
    torch = importlib.import_module("torch")
    with bar as show:
        model: Any = qload.load(request.path, progress=show, **request.options)
    ids = torch.tensor([request.ids], device=model.device)
    started = time.perf_counter()
    with torch.inference_mode():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_new_tokens, do_sample=False
        )
    seconds = time.perf_counter() - started
    return Outcome(_gather_reports(model, request), tuple(output[0, ids.shape[1] :].tolist()), seconds)


def _gather_reports(model: Any, request: Request) -> "tuple[qload.LoadReport, ...]":
    own = qload.report(model)
    if "mesh" not in request.options:
        return (own,)
    reports: list[Any] = [None] * own.size
    distributed = importlib.import_module("torch.distributed")
    distributed.all_gather_object(reports, own, group=request.options["mesh"].get_group("tp"))
    return tuple(reports)
