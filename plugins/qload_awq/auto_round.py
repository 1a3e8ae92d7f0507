"""AutoRound's config, for checkpoints that it packs as AWQ.

Source: AutoRound's export to `auto_round:auto_awq`.
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
AUTO_ROUND_PACKINGS = ("auto_round:auto_awq", "auto_round:awq")


def claim_auto_round(section: Mapping[str, Any]) -> Claim | None:
    """A claim on what is packed as AWQ, with what AWQ's own config would say of it."""
    if section.get("packing_format") not in AUTO_ROUND_PACKINGS:
        return None
    settings = {key: section[key] for key in ("bits", "group_size", "extra_config") if key in section}
    return Claim(20, settings, alias=AUTO_ROUND, fields=tuple(AUTO_ROUND_FIELDS.split()))
