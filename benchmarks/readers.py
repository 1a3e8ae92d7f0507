"""Ways to load a checkpoint into parameters that are ready: qload's, and those of others.

`measure` is what a run calls, in a process of its own (forking.py). Peers that do no more than read are given as short
loops here, each with its source.
"""

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from limits import count_threads, prepare_disk, prepare_pinned, prepare_reading
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

PACKED, PACKED_OTHER, DENSE, PICKLED = "gptq", "compressed-tensors", "dense", "pickled"
"""The checkpoints, by their folders' names: the same bytes, but for the second."""
WHOLE, ROWS, COLUMNS = None, 0, 1


@dataclass(frozen=True, slots=True)
class Task:
    """What a run loads: a checkpoint, onto a device, on rank `rank` of `size`; with the other ranks, or alone."""

    folder: Path
    device: str = "cpu"
    size: int = 1
    together: bool = False
    rank: int = 0

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    @property
    def threads(self) -> int:
        """So many as this rank can have."""
        return max(1, count_threads() // (self.size if self.together else 1))

    def count_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.files or self.folder.iterdir()))


Load = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Way:
    """How to load: `prepare` does the imports, and gives what loads.

    `mapped` says that tensors stay in the files' own pages: a run then reads of each page what a first use would.
    `needs` is a package that must be there. `wholly` says that it cannot load a rank's share.
    """

    prepare: Callable[[Task], Load]
    checkpoint: str = PACKED
    mapped: bool = False
    needs: str | None = None
    wholly: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")


def prepare_limit(task: Task) -> Load:
    return prepare_reading(task.files, task.rank, task.size, task.threads)


def prepare_disk_limit(task: Task) -> Load:
    return prepare_disk(task.files, task.rank, task.size)


def prepare_pinned_limit(task: Task) -> Load:
    return prepare_pinned(task.count_bytes(), task.device)


def prepare_qload(task: Task, **options: Any) -> Load:
    importlib.import_module("qload.torch.models")
    importlib.import_module("transformers.models.llama.modeling_llama")
    if "reader" in options:
        importlib.import_module(READERS[options["reader"]])
    load = importlib.import_module("qload").load
    if task.size == 1:
        return lambda: load(task.folder, device=task.device, **options)
    if not task.together:
        # Alone, and a rank all the same: a group whose collectives do nothing.
        fake = importlib.import_module("torch.testing._internal.distributed.fake_pg")
        dist.init_process_group("fake", rank=task.rank, world_size=task.size, store=fake.FakeStore())
    mesh = init_device_mesh("cpu", (task.size,), mesh_dim_names=("tp",))
    return lambda: load(task.folder, mesh=mesh, **options)


def prepare_transformers(task: Task) -> Load:
    load = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained
    importlib.import_module("transformers.models.llama.modeling_llama")
    if task.folder.name == PACKED_OTHER:
        importlib.import_module("compressed_tensors")
    return lambda: load(task.folder, dtype=torch.bfloat16).to(task.device)


def prepare_fastsafetensors(task: Task) -> Load:
    """fastsafetensors' `fastsafe_open`, without GPUDirect: one image of each file, and views into it."""
    fast = importlib.import_module("fastsafetensors")
    files = [str(path) for path in task.files]

    def load() -> dict[str, Tensor]:
        with fast.fastsafe_open(files, device=task.device, nogds=True) as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    return load


def prepare_streamer(task: Task) -> Load:
    """Run:ai's Model Streamer, whose tensors are kept as it hands them over."""
    streamer = importlib.import_module("runai_model_streamer").SafetensorsStreamer
    files = [str(path) for path in task.files]

    def load() -> dict[str, Tensor]:
        with streamer() as opened:
            opened.stream_files(files, device=task.device)
            return dict(opened.get_tensors())

    return load


def prepare_pickled(task: Task) -> Load:
    """A pickled state dict, mapped by torch.load, and copied into parameters."""
    files = sorted(task.folder.glob("*.pt"))

    def read() -> Iterator[tuple[str, Tensor]]:
        for path in files:
            yield from torch.load(path, mmap=True, weights_only=True).items()

    return lambda: copy_all(read(), task.device)


def prepare_load_file(task: Task) -> Load:
    return lambda: [load_file(path, device=task.device) for path in task.files]


def prepare_lazily(task: Task) -> Load:
    """vLLM's iterator (model_loader/weight_utils.py, safetensors_weights_iterator), whose tensors are copied."""
    return lambda: copy_all(read_lazily(task.files), task.device)


def read_lazily(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def prepare_threaded(task: Task, workers: int = 4) -> Load:
    """vLLM's iterator with threads (weight_utils.py, multi_thread_safetensors_weights_iterator; 4 are its default)."""

    def read() -> Iterator[tuple[str, Tensor]]:
        with ThreadPoolExecutor(workers) as pool:
            for done in as_completed([pool.submit(load_file, path) for path in task.files]):
                yield from done.result().items()

    return lambda: copy_all(read(), task.device)


def copy_all(tensors: Iterable[tuple[str, Tensor]], device: str) -> dict[str, Tensor]:
    """Each tensor copied into a parameter of its own."""
    return {name: torch.empty_like(tensor, device=device).copy_(tensor) for name, tensor in tensors}


def prepare_slices(task: Task) -> Load:
    """Of each tensor a slice, as safetensors cuts it, copied into a parameter."""
    return lambda: copy_all(read_slices(task), task.device)


def read_slices(task: Task) -> Iterator[tuple[str, Tensor]]:
    for path in task.files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                yield name, part[cut(name, part.get_shape(), task)]


def prepare_narrowed(task: Task) -> Load:
    """vLLM's way to a rank's share (layers/linear.py, weight_loader): the whole tensor, narrowed, and copied."""

    def read() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read_lazily(task.files):
            yield name, tensor[cut(name, list(tensor.shape), task)]

    return lambda: copy_all(read(), task.device)


def cut(name: str, shape: list[int], task: Task) -> tuple[slice, ...]:
    """What a rank holds of a stored tensor of the GPTQ checkpoint, in which weights are stored as [in, out]."""
    axis = choose_axis(name)
    if axis is None:
        return (slice(None),) * len(shape)
    share = shape[axis] // task.size
    return (*(slice(None),) * axis, slice(share * task.rank, share * (task.rank + 1)))


def choose_axis(name: str) -> int | None:
    if "embed_tokens" in name or "lm_head" in name:
        return ROWS
    if "norm" in name:
        return WHOLE
    if "o_proj" in name or "down_proj" in name:
        return ROWS
    return WHOLE if name.endswith("g_idx") else COLUMNS


LIMIT, DISK, PINNED = "limit: into new memory", "limit: the disk", "limit: pinned copy"
QLOAD, QLOAD_PLAIN = "qload.load", "qload.load(kernels=())"
READERS = {"safetensors": "safetensors", "runai": "runai_model_streamer", "fastsafetensors": "fastsafetensors"}
"""Readers of qload's that are by other packages."""
WAYS = {
    LIMIT: Way(prepare_limit, wholly=False),
    DISK: Way(prepare_disk_limit, wholly=False),
    PINNED: Way(prepare_pinned_limit, devices=("cuda",)),
    QLOAD: Way(prepare_qload, wholly=False),
    QLOAD_PLAIN: Way(partial(prepare_qload, kernels=()), wholly=False),
    **{
        f"{QLOAD}(kernels=(), reader='{reader}')": Way(
            partial(prepare_qload, kernels=(), reader=reader), needs=needs, wholly=False
        )
        for reader, needs in READERS.items()
    },
    f"{QLOAD}, dense": Way(prepare_qload, DENSE),
    "runai-model-streamer": Way(prepare_streamer, needs="runai_model_streamer"),
    "fastsafetensors": Way(prepare_fastsafetensors, needs="fastsafetensors"),
    "get_tensor, copy_ (vLLM)": Way(prepare_lazily),
    "load_file by threads, copy_ (vLLM)": Way(prepare_threaded),
    "safetensors load_file": Way(prepare_load_file, mapped=True),
    "torch.load(mmap), copy_": Way(prepare_pickled, PICKLED),
    "transformers, dense": Way(prepare_transformers, DENSE, mapped=True),
    "transformers, packed": Way(prepare_transformers, PACKED_OTHER, mapped=True, needs="compressed_tensors"),
    "get_slice, copy_": Way(prepare_slices, wholly=False),
    "get_tensor, narrow, copy_ (vLLM)": Way(prepare_narrowed, wholly=False),
}
SHARED = ("get_slice, copy_", "get_tensor, narrow, copy_ (vLLM)")
"""Ways that only a rank's share is loaded in."""


def measure(way: str, folder: str, device: str, size: int, together: bool, meeting: str, rank: int) -> dict[str, Any]:
    """Load one way: from when to when, what is held then, and qload's own phases."""
    task = Task(Path(folder) / WAYS[way].checkpoint, device, size, together)
    if together:
        torch.set_num_threads(task.threads)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        task = replace(task, rank=rank)
    load = WAYS[way].prepare(task)
    torch.ones(1, device=device).sum().item()
    if together:
        dist.barrier()
    started = time.perf_counter()
    held = load()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    loaded = time.perf_counter()
    touched = touch(held) if WAYS[way].mapped and device == "cpu" else 0
    report = getattr(held, "_qload_report", None)
    return {
        "started": started,
        "stopped": loaded if not touched else time.perf_counter(),
        "seconds": loaded - started,
        "touch_seconds": time.perf_counter() - loaded if touched else 0.0,
        "phases": dict(report.seconds) if report is not None else {},
        "load_average": os.getloadavg()[0],
    }


def touch(held: Any) -> int:
    """Read a byte of every page of every tensor; how many there are."""
    if isinstance(held, torch.nn.Module):
        held = [*held.parameters(), *held.buffers()]
    elif isinstance(held, list):
        held = [tensor for part in held for tensor in part.values()]
    pages = [tensor.detach().reshape(-1).view(torch.uint8)[::4096] for tensor in held]
    for page in pages:
        page.sum()
    return len(pages)
