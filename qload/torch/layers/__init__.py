"""Layers whose tensors are declared by a method and cut by a shard."""

from qload.torch.layers.base import Layer
from qload.torch.layers.embedding import VocabParallelEmbedding
from qload.torch.layers.experts import ExpertLinear, Experts, Gate, SortedExperts, apply_one_by_one, make_experts
from qload.torch.layers.head import ParallelLMHead
from qload.torch.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from qload.torch.layers.vocabulary import added_rows, all_rows, base_rows

__all__ = [
    "ColumnParallelLinear",
    "ExpertLinear",
    "Experts",
    "Gate",
    "Layer",
    "MergedColumnParallelLinear",
    "ParallelLMHead",
    "QKVParallelLinear",
    "ReplicatedLinear",
    "RowParallelLinear",
    "SortedExperts",
    "VocabParallelEmbedding",
    "added_rows",
    "all_rows",
    "apply_one_by_one",
    "base_rows",
    "make_experts",
]
