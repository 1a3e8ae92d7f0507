"""Configs for quantizing while loading, by the names that users ask for."""

from collections.abc import Mapping
from typing import Any

_SKIPPED = [r".*\.(gate|router)"]
"""The routers of mixtures of experts; heads are left alone in any case."""


def _make(name: str) -> Mapping[str, Any]:
    """One of torchao's configs as it is without arguments, but for a scale for each row."""
    fields = {"granularity": {"_type": "PerRow", "_data": {}}}
    return {"quant_type": {"default": {"_type": name, "_data": fields}}, "modules_to_not_convert": _SKIPPED}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "torchao-fp8": _make("Float8WeightOnlyConfig"),
    "torchao-int8": _make("Int8WeightOnlyConfig"),
    "torchao-w8a8": _make("Int8DynamicActivationInt8WeightConfig"),
}
