"""Configs for quantizing while loading, by the names that users ask for; none needs calibration data."""

from collections.abc import Mapping
from typing import Any

_IGNORED = ["lm_head", r"re:.*\.(gate|router)$"]
"""What producers leave alone: the head, and the routers of mixtures of experts."""

_POWERS = {"type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
"""Floats in groups with powers of two as scales."""


def _make(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> Mapping[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"format": form, "config_groups": {"group_0": group}, "ignore": _IGNORED}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "int4": _make("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 128}),
    "int8": _make("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    "mxfp4": _make("mxfp4-pack-quantized", {"num_bits": 4, **_POWERS}),
    "mxfp8": _make("mxfp8-quantized", {"num_bits": 8, **_POWERS}),
    "nvfp4": _make(
        "nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    ),
    "w8a8": _make(
        "int-quantized", {"num_bits": 8, "strategy": "channel"}, {"num_bits": 8, "strategy": "token", "dynamic": True}
    ),
}
