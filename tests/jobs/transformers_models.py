"""Transformers models, divided over ranks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import qload
from qload.torch.parallel import Group


@dataclass(frozen=True)
class Computed:
    """What one rank computed, and what it read and holds."""

    logits: Tensor
    tokens: Tensor
    report: "qload.LoadReport"


def compute(group: Group, path: Path, ids: Tensor, **options: Any) -> Computed:
    """Load a checkpoint on all ranks; logits of `ids`, and what is generated from the first of them."""
    mesh = init_device_mesh("cpu", (group.size,)) if group.size > 1 else None
    model = qload.load(path, mesh=mesh, **{"dtype": "float32", **options})
    return compute_loaded(model, ids)


def compute_in_float64(group: Group, path: Path, ids: Tensor) -> Computed:
    """The same, so precisely that ranks round alike whatever the order in which they take their sums."""
    return compute(group, path, ids, dtype="float64")


def compute_loaded(model: Any, ids: Tensor) -> Computed:
    with torch.inference_mode():
        logits = model(ids).logits
        tokens = model.generate(ids[:1, :4], max_new_tokens=8, do_sample=False)
    return Computed(logits.clone(), tokens.clone(), qload.report(model))
