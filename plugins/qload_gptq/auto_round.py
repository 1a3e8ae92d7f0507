"""AutoRound's config, for checkpoints that it packs as GPTQ.

Source: AutoRound's export to `auto_round:auto_gptq`, which stores zero-points less one and no order of columns.
"""

import re
from collections.abc import Mapping
from typing import Any

from qload_gptq.config import NEGATIVE, POSITIVE

AUTO_ROUND = "auto-round"
"""The quant_method that AutoRound writes."""
AUTO_ROUND_PACKING = "auto_round:auto_gptq"
_SETTINGS = ("bits", "group_size", "sym")
_UNQUANTIZED_BITS = 16


def translate_auto_round(section: Mapping[str, Any]) -> dict[str, Any]:
    """The same as GPTQ's config says it; `extra_config` has the settings of modules that differ, by name."""
    settings = {key: section[key] for key in _SETTINGS if key in section}
    extra = section.get("extra_config")
    overrides = extra.items() if isinstance(extra, Mapping) else ()
    dynamic = dict(_translate(name, entry) for name, entry in overrides if isinstance(entry, Mapping))
    return {**settings, "quant_method": "gptq", "checkpoint_format": "gptq", "desc_act": False, "dynamic": dynamic}


def _translate(name: str, entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An override by a regex for the name; one of 16 bits leaves the module as it is."""
    bits = entry.get("bits")
    left_out = isinstance(bits, int) and bits >= _UNQUANTIZED_BITS
    pattern = f"{NEGATIVE if left_out else POSITIVE}{re.escape(name)}$"
    return pattern, {key: entry[key] for key in _SETTINGS if key in entry}
