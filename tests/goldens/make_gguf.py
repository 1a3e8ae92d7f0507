"""Makes tests/goldens/gguf: a tiny model of each architecture, as llama.cpp's own converters write it, and its logits.

Run `python tests/goldens/make_gguf.py FOLDER`, where FOLDER holds llama.cpp's package `conversion`. Made with the one
that AutoRound 0.16.1 carries in auto_round/export/export_to_gguf, gguf 0.19.0 and transformers 5.23.0.
"""

import importlib
import json
import sys
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import gguf
import torch
import transformers as hf
from safetensors.torch import save_file

OUT = Path(__file__).parent / "gguf"
VOCABULARY = 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE = {**SIZES, "head_dim": 16}
MOE: dict[str, Any] = {**SIZES, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.25, 1.5, 2.0],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
GLOBAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}

CONFIGS: dict[str, Any] = {
    "llama": hf.LlamaConfig(**WIDE, attention_bias=True, mlp_bias=True),
    "llama-3": hf.LlamaConfig(**{**SIZES, "max_position_embeddings": 131072}, rope_parameters=LLAMA3),
    "llama-linear": hf.LlamaConfig(**SIZES, rope_parameters={**PLAIN, "rope_type": "linear", "factor": 4.0}),
    "mixtral": hf.MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2),
    "qwen2": hf.Qwen2Config(**SIZES, rope_parameters=YARN),
    "qwen2moe": hf.Qwen2MoeConfig(**MOE, shared_expert_intermediate_size=64),
    "qwen3": hf.Qwen3Config(**WIDE, tie_word_embeddings=True),
    "qwen3moe": hf.Qwen3MoeConfig(**{**MOE, "head_dim": 16}, norm_topk_prob=True),
    "phi3": hf.Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=16),
    "phi4": hf.Phi3Config(
        **SIZES,
        sliding_window=7,
        original_max_position_embeddings=128,
        rope_parameters={**PLAIN, "partial_rotary_factor": 0.5},
    ),
    "gemma": hf.GemmaConfig(**WIDE),
    "gemma2": hf.Gemma2Config(**{**WIDE, "num_hidden_layers": 2}, query_pre_attn_scalar=16, sliding_window=7),
    "gemma3": hf.Gemma3TextConfig(
        **{**WIDE, "num_hidden_layers": 6},
        query_pre_attn_scalar=16,
        sliding_window=7,
        rope_parameters={"full_attention": GLOBAL, "sliding_attention": PLAIN},
    ),
    "granite": hf.GraniteConfig(
        **SIZES, attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.3, logits_scaling=2.0
    ),
    "olmo2": hf.Olmo2Config(**SIZES),
    "command-r": hf.CohereConfig(**SIZES, logit_scale=0.1, use_qk_norm=True),
    "smollm3": hf.SmolLM3Config(**{**SIZES, "num_hidden_layers": 4}),
    "stablelm": hf.StableLmConfig(**SIZES, use_qkv_bias=True),
    "starcoder2": hf.Starcoder2Config(**SIZES),
}


class _Names:
    """An enumeration of gguf-py with nothing in place of names that are newer than it."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name, None)


def load_converters(folder: str) -> Any:
    """llama.cpp's package, without the two helpers of AutoRound's that its copy asks for."""
    paths: Any = types.ModuleType("auto_round.utils.path_safety")
    paths.resolve_within_directory = lambda directory, name: Path(directory) / name
    paths.validate_weight_map = lambda *_: None
    parents = {name: types.ModuleType(name) for name in ("auto_round", "auto_round.utils")}
    sys.modules.update({**parents, "auto_round.utils.path_safety": paths})
    for name in ("MODEL_ARCH", "MODEL_TENSOR"):
        setattr(gguf, name, _Names(getattr(gguf, name)))
    sys.path.insert(0, folder)
    return importlib.import_module("conversion")


def make_model(config: Any) -> Any:
    """A model of random weights that bfloat16 holds, but for its norms, which stay in float32."""
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        spread, middle = (0.2, 0.0) if weight.dim() > 1 or name.endswith("bias") else (0.1, 1.0)
        middle = 0.0 if "gemma" in config.model_type else middle
        value = torch.randn_like(weight) * spread + middle
        weight.data = value.bfloat16().float() if weight.dim() > 1 else value
    return model


def convert(converters: Any, model: Any, out: Path) -> None:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        vocabulary = {"model": {"vocab": {str(n): n for n in range(VOCABULARY)}}, "added_tokens": []}
        (Path(folder) / "tokenizer.json").write_text(json.dumps(vocabulary))
        converter = converters.get_model_class(model.config.architectures[0])
        with mock.patch.object(converter, "set_vocab"), torch.no_grad():
            converter(Path(folder), gguf.LlamaFileType.MOSTLY_BF16, out, eager=True).write()


def main() -> None:
    converters = load_converters(sys.argv[1])
    torch.manual_seed(0)
    OUT.mkdir(exist_ok=True)
    ids = torch.randint(0, VOCABULARY, (1, 24))
    found = {"input_ids": ids}
    for name, config in CONFIGS.items():
        model = make_model(config)
        convert(converters, model, OUT / f"{name}.gguf")
        with torch.inference_mode():
            found[name] = model(ids).logits
    save_file(found, OUT / "logits.safetensors")


if __name__ == "__main__":
    main()
