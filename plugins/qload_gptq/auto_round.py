"""AutoRound's config, for checkpoints that it packs as GPTQ.

Source: AutoRound's export to `auto_round:auto_gptq`, which stores zero-points less one and no order of columns, and
`_expand_regex_config` of its `inference/utils.py`.
"""

import re
from collections.abc import Mapping
from typing import Any

from qload.patterns import NEGATIVE, POSITIVE

AUTO_ROUND = "auto-round"
"""The quant_method that AutoRound writes."""
AUTO_ROUND_FIELDS = """
    act_bits act_data_type act_dynamic act_group_size act_sym activation_scheme amp autoround_version backend batch_size
    bits block_name_to_quantize data_type dataset desc_act disable_opt_rtn enable_alg_ext enable_minmax_tuning
    enable_norm_bias_tuning enable_quanted_input extra_config fmt fp_layers gradient_accumulate_steps group_size
    hadamard_config ignore_layers iters layer_config lm_head low_cpu_mem_usage low_gpu_mem_usage lr minmax_lr
    modules_to_not_convert momentum not_use_best_mse nsamples packing_format provider quant_block_list quant_lm_head
    quant_method regex_config rotation_config sampler scale_dtype seqlen static_attention_dtype static_kv_dtype
    super_bits super_group_size sym to_quant_block_names transform_config true_sequential
"""
"""The names of the fields that AutoRound writes, used or not. Source: its `SERIALIZATION_KEYS` and exports."""
AUTO_ROUND_PACKINGS = ("auto_round:auto_gptq", "auto_round:gptq", "auto_round:gptqmodel")
_SETTINGS = ("bits", "group_size", "sym")
_UNQUANTIZED_BITS = 16
_PLAIN_NAME = re.compile(r"[\w.-]+")


def translate_auto_round(section: Mapping[str, Any]) -> dict[str, Any]:
    """The same as GPTQ's config says it; `extra_config` has the settings of modules that differ."""
    settings = {key: section[key] for key in _SETTINGS if key in section}
    extra = section.get("extra_config")
    overrides = extra.items() if isinstance(extra, Mapping) else ()
    # Names before regexes, as AutoRound takes them.
    ordered = sorted(overrides, key=lambda entry: _PLAIN_NAME.fullmatch(entry[0]) is None)
    dynamic = dict(_translate(name, entry) for name, entry in ordered if isinstance(entry, Mapping))
    return {**settings, "quant_method": "gptq", "checkpoint_format": "gptq", "desc_act": False, "dynamic": dynamic}


def _translate(name: str, entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An override by a name, or by a regex for any part of it; one of 16 bits leaves the module as it is."""
    bits = entry.get("bits")
    left_out = isinstance(bits, int) and bits >= _UNQUANTIZED_BITS
    pattern = f"{re.escape(name)}$" if _PLAIN_NAME.fullmatch(name) else f".*(?:{name})"
    return f"{NEGATIVE if left_out else POSITIVE}{pattern}", {key: entry[key] for key in _SETTINGS if key in entry}
