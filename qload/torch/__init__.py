"""The part of qload that imports torch: layers, reading, loading, and transformers models."""

from qload.torch.layers import (
    ColumnParallelLinear,
    ExpertLinear,
    Experts,
    Layer,
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    added_rows,
    all_rows,
    apply_one_by_one,
    base_rows,
    make_experts,
)
from qload.torch.sites import Site

__all__ = [
    "ColumnParallelLinear",
    "ExpertLinear",
    "Experts",
    "Layer",
    "MergedColumnParallelLinear",
    "ParallelLMHead",
    "QKVParallelLinear",
    "ReplicatedLinear",
    "RowParallelLinear",
    "Site",
    "VocabParallelEmbedding",
    "added_rows",
    "all_rows",
    "apply_one_by_one",
    "base_rows",
    "make_experts",
]
