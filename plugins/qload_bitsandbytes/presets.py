"""Configs for quantizing while loading, by the names that users ask for."""

from collections.abc import Mapping
from typing import Any

_SKIPPED = ["lm_head", r".*\.(gate|router)"]
"""The head, and the routers of mixtures of experts."""


def _make_four_bits(quant_type: str, nested: bool) -> Mapping[str, Any]:
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": nested,
        "llm_int8_skip_modules": _SKIPPED,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fp4": _make_four_bits("fp4", nested=False),
    "llm-int8": {"load_in_8bit": True, "llm_int8_skip_modules": _SKIPPED},
    "nf4": _make_four_bits("nf4", nested=False),
    "nf4-double": _make_four_bits("nf4", nested=True),
}
