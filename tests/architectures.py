"""Tiny models of many architectures: made by transformers, and quantized by compressed-tensors."""

import warnings
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from qload.torch.models.stacks import describe_stack

SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5 = {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "num_layers": 2}
MARIAN = {
    f"{side}_{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"layers": 2, "ffn_dim": 96, "attention_heads": 4}.items()
} | {"d_model": 64, "decoder_start_token_id": 1}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
NEMOTRON_H = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 32, "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16,
    "n_groups": 1, "chunk_size": 8, "num_hidden_layers": 3, "layers_block_type": ["mamba", "moe", "attention"],
}  # fmt: skip
ZAMBA = {
    "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 2, "mamba_dt_rank": 16,
    "use_mamba_kernels": False,
}  # fmt: skip

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"mlp_bias": True, "attention_bias": True},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {},  # tied to an embedding that scales what it looks up
    "phi3": {},  # projections fused in the model itself
    "gpt2": GPT,  # convolutions in place of linear layers
    "gptj": {**GPT, "rotary_dim": 8},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},  # learned positions, a base model of another name
    "gpt_neox": {},
    "bloom": {"n_head": 4},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 64},
    "cohere2": {},
    "olmo2": {},
    "mamba": {},  # no attention
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},  # parts finished by the whole model
    "hy_v4": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},  # reaches for a layer's weight
    "lfm2": {},  # short convolutions between attention
    "hrm_text": {},  # gate and up projections fused on disk, and separate in the model
    "qwen3_moe": EXPERTS,
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "mixtral": LOCAL,  # names on disk of an older model
    "granitemoe": LOCAL,  # experts in one tensor, under another name
    "gpt_oss": LOCAL,  # transposed experts with biases
    "t5": {**T5, "tie_word_embeddings": False},  # looks at a layer's weight
    "umt5": T5,  # scales what a tied head sees
    "marian": MARIAN,  # adds to a tied head's logits
    "nemotron_h": NEMOTRON_H,  # experts with an up projection alone
    "olmo_hybrid": DELTA,  # three convolutions on disk that are one in the model
    "inkling2_text": EXPERTS,  # rows of gate and up projections in turns on disk
    "zamba": ZAMBA,  # whole blocks tied to one
    "falcon": {"head_dim": None, "num_key_value_heads": None},  # a class of its own for plain linear layers
    "llama4_text": {**LOCAL, "num_experts_per_tok": 1, "intermediate_size_mlp": 96},
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
GROUP = 16


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    settings = {**SIZES, **ARCHITECTURES[name]}
    config = AutoConfig.for_model(name, **{key: value for key, value in settings.items() if value is not None})
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return kind.from_config(config).eval()


def compute(model: Any, **inputs: Tensor) -> Tensor:
    """What a model makes of `inputs`, or of IDS: logits, or the last hidden states of one without a head."""
    inputs = inputs or ({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}) | {"input_ids": IDS}
    with torch.inference_mode():
        output = model(**inputs)
    found: Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def round_experts(model: Any) -> dict[str, Tensor]:
    """Round a model's stacks of experts to int8 by output feature; each one's tensors by their names in the model.

    They are [out, in], also where the model has them transposed, and gate and up projection one after the other.
    """
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        stack = describe_stack(module)
        if stack is None:
            continue
        for key in (stack.up, "down_proj"):
            weight = module.get_parameter(key)
            lying = weight.mT if stack.is_transposed else weight
            scale = lying.abs().amax(-1, keepdim=True) / 127
            values = (lying / scale).round()
            dense = values * scale
            weight.data.copy_(dense.mT if stack.is_transposed else dense)
            tensors = {"weight": values.to(torch.int8), "weight_scale": scale}
            if stack.bias:
                tensors["bias"] = module.get_parameter(f"{key}_bias").data.normal_()
            is_interleaved = stack.is_interleaved and key == stack.up
            for leaf, tensor in tensors.items():
                rows = torch.cat((tensor[:, ::2], tensor[:, 1::2]), 1) if is_interleaved else tensor
                found[f"{name}.{key}.{leaf}"] = rows.detach()
    return found


def split_experts(stacks: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts one by one, as tools name them, of whole stacks."""
    found: dict[str, Tensor] = {}
    for name, stack in stacks.items():
        path, key, leaf = name.rsplit(".", 2)
        for number, expert in enumerate(stack):
            parts = expert.chunk(2) if key == "gate_up_proj" else (expert,)
            names = ("gate_proj", "up_proj") if len(parts) == 2 else (key,)
            found |= {f"{path}.{number}.{part}.{leaf}": each for part, each in zip(names, parts, strict=True)}
    return found


def quantize(model: Any, path: Path, **inputs: Tensor) -> Tensor:
    """Save the model with its linear layers packed to 4 bits by the package; the logits of what that means."""
    linear = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    odd = [name for name, weight in linear.items() if weight.shape[0] % 8 or weight.shape[1] % (2 * GROUP)]
    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=GROUP, symmetric=False)
    config = QuantizationConfig(
        config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)},
        ignore=["re:.*lm_head", "proj_out", "re:.*router.*", "re:.*gate$", "re:.*(dt|x)_proj$", *odd],
        quantization_status="frozen",
    )
    apply_quantization_config(model, config, show_progress=False)
    layers = [module for module in model.modules() if hasattr(module, "quantization_scheme")]
    for layer in layers:
        grouped = layer.weight.data.unflatten(1, (-1, GROUP))
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), weights)
        layer.weight_scale.data, layer.weight_zero_point.data = scale, zero
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(path)
    compressor.update_config(path)
    compressor.decompress_model(model)
    for layer in layers:
        layer.quantization_enabled = False
    return compute(model, **inputs)
