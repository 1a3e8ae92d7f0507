"""Transformers models, divided over ranks."""

import os
import pickle
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from architectures import compute as apply
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import qload
from qload.errors import ParallelError, QloadError
from qload.torch.layers.flow import Flow
from qload.torch.layers.linear import Linear
from qload.torch.parallel import Group


@dataclass(frozen=True)
class Computed:
    """What one rank computed, and what it read and holds."""

    logits: Tensor
    tokens: Tensor
    report: "qload.LoadReport"


def make_mesh(group: Group) -> DeviceMesh | None:
    return init_device_mesh("cpu", (group.size,)) if group.size > 1 else None


def compute(group: Group, path: Path, ids: Tensor, by_experts: bool = False, rounded: bool = False) -> Computed:
    """Load a checkpoint on all ranks; logits of `ids`, and what is generated from the first of them.

    With `rounded`, activations are quantized as the checkpoint's method says.
    """
    mesh = make_mesh(group)
    options: dict[str, Any] = {"dtype": "float32", "expert_parallel": by_experts, "quantize_activations": rounded}
    return compute_loaded(qload.load(path, mesh=mesh, **options, kernels=()), ids)


def compute_in_float64(group: Group, path: Path, ids: Tensor, by_experts: bool = False) -> Computed:
    """The same, so precisely that ranks round alike whatever the order in which they take their sums."""
    return compute_loaded(
        qload.load(path, mesh=make_mesh(group), dtype="float64", expert_parallel=by_experts, kernels=()), ids
    )


def compute_each_in_float64(group: Group, path: Path, prompts: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each prompt, computed alone."""
    model: Any = qload.load(path, mesh=make_mesh(group), dtype="float64", kernels=())
    with torch.inference_mode():
        return [model(ids).logits.clone() for ids in prompts]


def compute_loaded(model: Any, ids: Tensor) -> Computed:
    with torch.inference_mode():
        logits = model(ids).logits
        tokens = model.generate(ids[:1, :4], max_new_tokens=8, do_sample=False)
    return Computed(logits.clone(), tokens.clone(), qload.report(model))


def sample(group: Group, path: Path, seed: int, unlike: bool = False) -> Tensor:
    """What is sampled on ranks with random states of their own, of which rank 0's is `seed`."""
    model: Any = qload.load(path, mesh=make_mesh(group), dtype="float32", kernels=())
    ids = torch.tensor([[5, 6, 7]]).roll(group.rank if unlike else 0)
    torch.manual_seed(seed + group.rank)
    with torch.inference_mode():
        tokens: Tensor = model.generate(ids, max_new_tokens=12, do_sample=True, temperature=1.5)
    return tokens.clone()


def load_unlike(group: Group, paths: Sequence[Path]) -> tuple[QloadError | None]:
    """Load another folder on each rank; what that raises."""
    try:
        qload.load(paths[group.rank], mesh=make_mesh(group), kernels=())
    except QloadError as error:
        return (error,)
    return (None,)


def compute_after_death(group: Group, path: Path, ids: Tensor, signal: int) -> Any:
    """Load, and let the last rank die before all compute."""
    model: Any = qload.load(path, mesh=make_mesh(group), kernels=())
    if group.rank == group.size - 1:
        os.kill(os.getpid(), signal)
    with torch.inference_mode():
        return model(ids).logits


def compute_on_axes(group: Group, path: Path, inputs: Sequence[Tensor]) -> list[Computed]:
    """On a mesh of pairs, each of which is handed its own inputs: what a model computes, and a copy of it."""
    mesh = init_device_mesh("cpu", (group.size // 2, 2), mesh_dim_names=("dp", "tp"))
    model = qload.load(path, mesh=mesh, dtype="float64", kernels=())
    ids = inputs[mesh.get_local_rank("dp")]
    return [compute_loaded(each, ids) for each in (model, deepcopy(model))]


def compute_eagerly(group: Group, path: Path, ids: Tensor) -> tuple[Tensor, dict[str, Flow]]:
    """Logits with attention that repeats keys and values for every head, and how the layers hand on to each other."""
    model: Any = qload.load(path, mesh=make_mesh(group), dtype="float64", kernels=())
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits = model(ids).logits.clone()
    return logits, {name: module.flow for name, module in model.named_modules() if isinstance(module, Linear)}


def compute_saved(group: Group, path: Path, ids: Tensor) -> str:
    """What a model says that was divided and then pickled: it knows of no other ranks."""
    model: Any = pickle.loads(pickle.dumps(qload.load(path, mesh=make_mesh(group), kernels=())))
    try:
        model(ids)
    except ParallelError as error:
        return str(error)
    return "computed"


def compute_architecture(group: Group, path: Path, quantization: str | None = None) -> tuple[Tensor, int]:
    """What a model of any architecture makes of a few tokens, and the bytes that this rank needed."""
    model: Any = qload.load(path, mesh=make_mesh(group), dtype="float32", quantization=quantization, kernels=())
    return apply(model).clone(), qload.report(model).bytes_needed
