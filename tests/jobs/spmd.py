"""Models that every rank has whole, and that the ranks of a mesh then divide."""

from pathlib import Path
from typing import Any

import torch
from llama import Llama
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

import qload
from qload.torch.parallel import Group


def mesh_of(group: Group) -> DeviceMesh:
    return init_device_mesh("cpu", (group.size,), mesh_dim_names=("tp",))


def load_llama(path: Path) -> Llama:
    model = Llama(path, qload.read_quantization(path))
    qload.load_weights(model, path, quantize_activations=False, ignore=["QL210"])
    return model


def load_model(path: Path) -> Any:
    return qload.load(path, dtype=torch.float32, quantize_activations=False)


def compute(model: Any, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        made = model(ids)
    logits: Tensor = getattr(made, "logits", made)
    return logits.clone()


def count_bytes(model: nn.Module) -> int:
    """The bytes of this rank's parameters; what several layers share counts once."""
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in model.parameters())


def compute_both(group: Group, kind: str, path: Path, ids: Tensor) -> tuple[Tensor, Tensor, float]:
    """The logits before a model is divided and after, and how much of its bytes this rank still has."""
    model = load_llama(path) if kind == "fused" else load_model(path)
    before, whole = compute(model, ids), count_bytes(model)
    if qload.shard_model(model, mesh_of(group)) is not model:
        raise ValueError("another model came back")
    return before, compute(model, ids), count_bytes(model) / whole
