"""AutoRound's config, for checkpoints that it stores as this format does: fp8 by blocks.

Source: `FP8BlockQLinear` of AutoRound's `export_to_fp8.py`.
"""

from collections.abc import Mapping
from typing import Any

from qload.hookspecs import Claim

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
    return Claim(20, {**settings, **inputs}, alias=AUTO_ROUND, fields=tuple(AUTO_ROUND_FIELDS.split()))


def _is_ours(section: Mapping[str, Any]) -> bool:
    by_block = isinstance(section.get("group_size"), list) and section.get("bits") == 8
    is_e4m3 = str(section.get("data_type")).startswith("fp") and section.get("fmt", "e4m3") == "e4m3"
    return section.get("quant_method") == AUTO_ROUND and by_block and is_e4m3


def _is_left_out(entry: object) -> bool:
    return isinstance(entry, Mapping) and entry.get("bits") in (16, 32)
