"""Whole models, on the ranks of a group."""

from pathlib import Path

import torch
from llama import Llama
from torch import Tensor

import qload
from qload.torch.parallel import Group


def compute_llama(group: Group, path: Path, ids: Tensor) -> Tensor:
    """The logits of a checkpoint's model whose layers the ranks divide."""
    model = Llama(path, qload.read_quantization(path), group)
    qload.load_weights(model, path, quantize_activations=False, ignore=["QL210"])
    with torch.inference_mode():
        logits: Tensor = model(ids).clone()
    return logits
