"""Whole models, on the ranks of a group."""

from pathlib import Path
from typing import Any

import torch
from llama import Llama
from torch import Tensor

import qload
from qload.torch.parallel import Group


def compute_llama(group: Group, path: Path, ids: Tensor, ties: bool = False) -> Tensor:
    """The logits of a checkpoint's model whose layers the ranks divide; one that `ties` has one table for both ends."""
    model: Any = Llama(path, qload.read_quantization(path), group)
    if ties:
        model.lm_head.tie(model.model.embed_tokens)
    qload.load_weights(model, path, quantize_activations=False, ignore=["QL210"], kernels=())
    with torch.inference_mode():
        logits: Tensor = model(ids).clone()
    return logits
