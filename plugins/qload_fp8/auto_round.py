"""AutoRound's config, for checkpoints that it stores as this format does: fp8 by blocks.

Source: `FP8BlockQLinear` of AutoRound's `export_to_fp8.py`.
"""

from collections.abc import Mapping
from typing import Any

from qload.hookspecs import Claim

AUTO_ROUND = "auto-round"
"""The quant_method that AutoRound writes."""


def claim_auto_round(section: Mapping[str, Any]) -> Claim | None:
    """A claim on fp8 by blocks, with what our own config would say of it."""
    if not _is_ours(section):
        return None
    bits = section.get("act_bits")
    # What is not of 8 bits is left for the config to refuse.
    inputs = {} if bits in (None, 16, 32) else {"activation_scheme": "dynamic" if bits == 8 else f"of {bits} bits"}
    extra = section.get("extra_config")
    left_out = [name for name, entry in extra.items() if _is_left_out(entry)] if isinstance(extra, Mapping) else []
    settings = {"weight_block_size": section["group_size"], "modules_to_not_convert": left_out}
    return Claim(20, {**settings, **inputs}, alias=AUTO_ROUND)


def _is_ours(section: Mapping[str, Any]) -> bool:
    by_block = isinstance(section.get("group_size"), list) and section.get("bits") == 8
    is_e4m3 = str(section.get("data_type")).startswith("fp") and section.get("fmt", "e4m3") == "e4m3"
    return section.get("quant_method") == AUTO_ROUND and by_block and is_e4m3


def _is_left_out(entry: object) -> bool:
    return isinstance(entry, Mapping) and entry.get("bits") in (16, 32)
