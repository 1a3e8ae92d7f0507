"""Configs for quantizing while loading, by the names that users ask for."""

from collections.abc import Mapping
from typing import Any

_SKIPPED = ["lm_head", "mlp.gate", "mlp.router", "block_sparse_moe.gate"]
"""The head, and the routers of mixtures of experts, by their tags."""


def _make(bits: int) -> Mapping[str, Any]:
    """As hqq's own defaults are along the inputs."""
    weights = {"nbits": bits, "group_size": 64, "axis": 1, "optimize": True, "round_zero": bits == 4}
    return {"quant_config": {"weight_quant_params": weights}, "skip_modules": _SKIPPED}


PRESETS: Mapping[str, Mapping[str, Any]] = {f"hqq-int{bits}": _make(bits) for bits in (2, 3, 4, 8)}
