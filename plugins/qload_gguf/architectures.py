"""The architectures that can be put back into transformers' form: their names for modules, and what is changed.

Source: llama.cpp's converters (its `conversion` folder), which do what is undone here, gguf-py's
`tensor_mapping.py`, and transformers' classes of the models.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_DENSE = {**_ATTENTION, **_MLP, "ffn_norm": "post_attention_layernorm"}
_EXPERTS = {"gate": "mlp.experts.{}.gate_proj", "up": "mlp.experts.{}.up_proj", "down": "mlp.experts.{}.down_proj"}
_GEMMA2 = {
    **_DENSE,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_COUNTED = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}


@dataclass(frozen=True, slots=True)
class Architecture:
    """One of ggml's architectures, as transformers has it.

    `modules` are the names of the modules of a block, `experts` those of the parts of an expert. `keys` are the
    config's names of metadata, and `optional` those of metadata that need not be there. `flags` are settings that
    are true where a tensor is stored. `interleaved` says that the rows of queries and keys are reordered for the
    other form of rotary embedding, `shift` what undoes the one that is added to norms. With `partial`, a part of
    a head's features may be rotated.
    """

    model_type: str
    class_name: str
    modules: Mapping[str, str]
    keys: Mapping[str, str] = field(default_factory=lambda: _RMS)
    optional: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    shift: float = 0.0
    partial: bool = False

    def name(self, module: str) -> str | None:
        """Transformers' name for a module of no block."""
        return _OUTER.get(module)


_BIASES = {"attention_bias": "blk.0.attn_q.bias"}

LLAMA = Architecture(
    "llama",
    "LlamaForCausalLM",
    _DENSE,
    flags={**_BIASES, "mlp_bias": "blk.0.ffn_up.bias"},
    interleaved=True,
)
MIXTRAL = Architecture(
    "mixtral",
    "MixtralForCausalLM",
    {**_ATTENTION, "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "block_sparse_moe.gate"},
    keys={**_RMS, "expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    experts={
        "gate": "block_sparse_moe.experts.{}.w1",
        "up": "block_sparse_moe.experts.{}.w3",
        "down": "block_sparse_moe.experts.{}.w2",
    },
    interleaved=True,
)

ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": LLAMA,
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _DENSE),
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {
            **_DENSE,
            "ffn_gate_inp": "mlp.gate",
            "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
            "ffn_up_shexp": "mlp.shared_expert.up_proj",
            "ffn_down_shexp": "mlp.shared_expert.down_proj",
            "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
        },
        keys={
            **_RMS,
            **_COUNTED,
            "expert_feed_forward_length": "moe_intermediate_size",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
        optional={"expert_weights_norm": "norm_topk_prob"},
        constants={"norm_topk_prob": False},
        experts=_EXPERTS,
    ),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", _DENSE, flags=_BIASES),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        {**_DENSE, "ffn_gate_inp": "mlp.gate"},
        keys={**_RMS, **_COUNTED, "expert_feed_forward_length": "moe_intermediate_size"},
        optional={"expert_weights_norm": "norm_topk_prob"},
        # llama.cpp normalises the weights of the chosen experts, as every published model does.
        constants={"norm_topk_prob": True},
        flags=_BIASES,
        experts=_EXPERTS,
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
        optional={"attention.sliding_window": "sliding_window"},
        constants={"sliding_window": None},
        partial=True,
    ),
    "gemma": Architecture("gemma", "GemmaForCausalLM", _DENSE, shift=-1.0),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA2,
        # Files that are older than these keys mean transformers' defaults.
        optional={
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
            "attention.sliding_window": "sliding_window",
        },
        shift=-1.0,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA2,
        keys={**_RMS, "attention.sliding_window": "sliding_window"},
        optional={"final_logit_softcapping": "final_logit_softcapping"},
        shift=-1.0,
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        _DENSE,
        keys={
            **_RMS,
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        flags={**_BIASES, "mlp_bias": "blk.0.ffn_up.bias"},
        interleaved=True,
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        {
            **_ATTENTION,
            **_MLP,
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        flags=_BIASES,
    ),
    "command-r": Architecture(
        "cohere",
        "CohereForCausalLM",
        {**_ATTENTION, **_MLP},
        keys={"attention.layer_norm_epsilon": "layer_norm_eps", "logit_scale": "logit_scale"},
        flags={**_BIASES, "use_qk_norm": "blk.0.attn_q_norm.weight"},
    ),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        _DENSE,
        flags={**_BIASES, "mlp_bias": "blk.0.ffn_up.bias"},
        interleaved=True,
    ),
    "stablelm": Architecture(
        "stablelm",
        "StableLmForCausalLM",
        {name: module for name, module in _DENSE.items() if name not in ("attn_q_norm", "attn_k_norm")},
        keys={
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        flags={"use_qkv_bias": "blk.0.attn_q.bias"},
        partial=True,
    ),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        {**_ATTENTION, "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        keys={"attention.layer_norm_epsilon": "norm_epsilon"},
        constants={"sliding_window": None},
        flags={"use_bias": "blk.0.attn_q.bias"},
    ),
}
