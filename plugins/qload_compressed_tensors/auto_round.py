"""AutoRound's config, for checkpoints that it stores as this format does: small floats, and fp8 by row or tensor.

Source: AutoRound's `export_to_nvfp_mx.py` and `export_to_fp8.py`, its `QuantizationScheme`, and `get_layer_config` of
its `convert_model.py`, by which it finds the settings of a module again.
"""

import re
from collections.abc import Iterator, Mapping
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
_UNQUANTIZED_BITS = 16
_KINDS = ("mx_fp", "nv_fp", "fp")
_PLAIN_NAME = re.compile(r"[\w.-]+")

Settings = Mapping[str, Any]


def claim_auto_round(section: Settings) -> Claim | None:
    """A claim on what is stored in one of our formats, with what our own config would say of it."""
    if section.get("quant_method") != AUTO_ROUND or _find_format(section) is None:
        return None
    return Claim(20, translate_auto_round(section), alias=AUTO_ROUND, fields=tuple(AUTO_ROUND_FIELDS.split()))


def translate_auto_round(section: Settings) -> dict[str, Any]:
    """What our own config says: the linear layers of the blocks, but for those that `extra_config` leaves alone."""
    extra = section.get("extra_config")
    overrides = dict(_read_overrides(section, extra)) if isinstance(extra, Mapping) else {}
    ignored = [target for target, settings in overrides.items() if settings is None]
    groups = {"default": _make_group(["Linear"], section)}
    for target, settings in overrides.items():
        if settings is not None:
            groups[target] = _make_group([target], settings)
    return {"config_groups": groups, "ignore": [*ignored, _leave_out(section, overrides)]}


def _read_overrides(section: Settings, extra: Settings) -> Iterator[tuple[str, Settings | None]]:
    """The settings of each name, and of each regex, which AutoRound searches for anywhere in a name."""
    for name, entry in extra.items():
        if isinstance(entry, Mapping):
            settings = {**section, **entry}
            bits = settings.get("bits")
            is_quantized = isinstance(bits, int) and bits < _UNQUANTIZED_BITS
            yield _name_target(name), settings if is_quantized else None


def _name_target(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else f"re:.*(?:{name})"


def _leave_out(section: Settings, overrides: Mapping[str, Settings | None]) -> str:
    """A regex for what lies outside of the quantized blocks, and has no settings of its own."""
    blocks = section.get("block_name_to_quantize")
    if blocks is None:
        return "lm_head"
    names = blocks.split(",") if isinstance(blocks, str) else blocks
    quantized = [re.escape(name) for name, settings in overrides.items() if settings is not None]
    inside = [f"{re.escape(str(name).strip())}\\." for name in names] + [f"{name}$" for name in quantized]
    return f"re:(?!{'|'.join(inside)})"


def _make_group(targets: list[str], settings: Settings) -> dict[str, Any]:
    return {
        "targets": targets,
        "format": _find_format(settings),
        "weights": _describe(settings, ""),
        "input_activations": _describe(settings, "act_") if _quantizes_inputs(settings) else None,
    }


def _quantizes_inputs(settings: Settings) -> bool:
    """Whatever is no number of bits goes to our own config, which refuses it."""
    bits = settings.get("act_bits")
    return bits is not None and not (isinstance(bits, int) and bits >= _UNQUANTIZED_BITS)


def _find_format(settings: Settings) -> str | None:
    """The format of the settings' weights; None for one that is not ours."""
    kind, bits = _kind(settings, ""), settings.get("bits")
    formats = {
        ("mx_fp", 4): "mxfp4-pack-quantized",
        ("mx_fp", 8): "mxfp8-quantized",
        ("nv_fp", 4): "nvfp4-pack-quantized",
        ("fp", 8): "float-quantized",
    }
    by_block = isinstance(settings.get("group_size"), list | tuple)
    return None if by_block else formats.get((kind, bits if isinstance(bits, int) else 0))


def _kind(settings: Settings, prefix: str) -> str:
    """The family of a data type: what AutoRound adds to its name says how it was found, and not how it is stored."""
    written = str(settings.get(f"{prefix}data_type") or settings.get("data_type") or "")
    if "e5m2" in written or settings.get("fmt") == "e5m2" or "v2" in written:
        return ""
    return next((kind for kind in _KINDS if written.startswith(kind)), written)


def _describe(settings: Settings, prefix: str) -> dict[str, Any]:
    """The quantization of weights, or with the prefix of inputs, in our words."""
    kind, bits = _kind(settings, prefix), settings.get(f"{prefix}bits")
    dynamic = bool(prefix) and bool(settings.get("act_dynamic", True))
    # What is none of these is left for our own config to refuse.
    number = "float" if kind in _KINDS else kind
    described = {"num_bits": bits, "type": number, "dynamic": dynamic}
    if kind == "mx_fp":
        dtype = _power_dtype(settings) if prefix else "torch.uint8"
        return {**described, "strategy": "group", "group_size": 32, "scale_dtype": dtype}
    if kind == "nv_fp":
        return {**described, "strategy": "tensor_group", "group_size": 16, "dynamic": "local" if prefix else False}
    size = settings.get(f"{prefix}group_size")
    if isinstance(size, int) and size > 0:
        return {**described, "strategy": "group", "group_size": size}
    rows = "token" if prefix else "channel"
    return {**described, "strategy": "tensor" if size == 0 else rows}


def _power_dtype(settings: Settings) -> str:
    """How the scales of inputs are found: as the specification does, or in a way of its own, which is refused.

    Source: AutoRound's `data_type/mxfp.py`, `quant_mx` and `quant_mx_rceil`.
    """
    written = str(settings.get("act_data_type") or settings.get("data_type"))
    return written if "rceil" in written else "torch.float8_e8m0fnu"
