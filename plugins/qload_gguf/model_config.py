"""Transformers' config of the model in a GGUF file, from its metadata and the shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from qload.findings import report
from qload_gguf.architectures import ARCHITECTURES, LLAMA, MIXTRAL, Architecture
from qload_gguf.facts import Facts, RefusalError
from qload_gguf.header import Header, Tensor
from qload_gguf.rope import Table, read_rope
from qload_gguf.types import BLOCKS

EMBEDDING, HEAD = "token_embd.weight", "output.weight"

_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}

_WIDE = {"gemma2": 46, "gemma3": 62}
"""The layers of the models whose queries are scaled by hidden size and heads, not by a head's own size.

Source: llama.cpp's `f_attention_scale`, which goes by the number of layers, too.
"""


def find_architecture(header: Header, file: str) -> tuple[str, Architecture]:
    """The architecture's name, and what is known of it. Raises RefusalError for one that is not known."""
    name = header.metadata.get("general.architecture")
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        raise RefusalError(
            report(
                "QL104",
                "the architecture cannot be put back into transformers' form",
                where="general.architecture",
                file=file,
                expected=f"one of {', '.join(ARCHITECTURES)}",
                found=repr(name),
            )
        )
    if found is LLAMA and header.metadata.get("llama.expert_count"):
        found = MIXTRAL
    return str(name), found


def build_config(
    facts: Facts,
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    rope: Mapping[str, Table],
) -> dict[str, Any]:
    """What config.json would say. Raises RefusalError where transformers' model would compute something else."""
    sizes = _read_sizes(facts, tensors)
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **architecture.constants,
        **sizes,
        **{name: facts.need(key) for key, name in architecture.keys.items()},
        **_read_optional(facts, architecture),
        **{name: tensor in tensors for name, tensor in architecture.flags.items()},
        **{name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _TOKENS.items()},
        "tie_word_embeddings": HEAD not in tensors,
    }
    config |= _read_rotation(facts, architecture, sizes["head_dim"], rope)
    config |= _read_exceptions(architecture, config, tensors)
    facts.check_all_used()
    if any(tensor.type in BLOCKS for tensor in tensors.values()):
        config["quantization_config"] = {"quant_method": "gguf"}
    return config


def _read_sizes(facts: Facts, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    hidden, heads = facts.count("embedding_length"), facts.count("attention.head_count")
    head = facts.count("attention.key_length", max(1, hidden // heads))
    if facts.find("attention.value_length") not in (None, head):
        raise facts.refuse("keys and values differ in size", "attention.value_length", code="QL104", expected=head)
    layers = facts.count("block_count")
    if layers > len(tensors):
        raise facts.refuse("there are fewer tensors than blocks", "block_count", found=layers)
    table = tensors.get(EMBEDDING)
    if table is None or len(table.shape) != 2:
        raise facts.refuse(f"{EMBEDDING} is not stored as a table", code="QL201")
    return {
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": facts.count("attention.head_count_kv", heads),
        "head_dim": head,
        "intermediate_size": facts.count("feed_forward_length"),
        "max_position_embeddings": facts.count("context_length"),
    }


def _read_optional(facts: Facts, architecture: Architecture) -> dict[str, Any]:
    """Metadata that need not be there; zero stands for nothing."""
    found = {name: facts.find(key) for key, name in architecture.optional.items()}
    return {name: value or None if type(value) is int else value for name, value in found.items() if value is not None}


def _read_rotation(facts: Facts, architecture: Architecture, head: int, tables: Mapping[str, Table]) -> dict[str, Any]:
    dimensions = facts.count("rope.dimension_count", head)
    if dimensions != head and not architecture.partial:
        raise facts.refuse(
            "a part of each head is rotated", "rope.dimension_count", code="QL104", expected=head, found=dimensions
        )
    rope = read_rope(facts, dimensions, tables)
    if architecture.model_type != "gemma3_text":
        share = {"partial_rotary_factor": dimensions / head} if architecture.partial else {}
        return {"rope_parameters": {**rope, **share}, **share}
    local = {"rope_type": "default", "rope_theta": facts.number("rope.freq_base_swa", 10000.0)}
    return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}


def _read_exceptions(
    architecture: Architecture, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What follows from other settings, as llama.cpp has it, or from what is stored."""
    found: dict[str, Any] = {}
    if architecture.experts and "moe_intermediate_size" in config:
        routed = {int(match[1]) for name in tensors if (match := re.match(r"blk\.(\d+)\.ffn_gate_inp\.", name))}
        found["mlp_only_layers"] = [layer for layer in range(config["num_hidden_layers"]) if layer not in routed]
    if architecture.model_type in ("gemma2", "gemma3_text"):
        wide = config["num_hidden_layers"] == _WIDE[architecture.model_type.removesuffix("_text")]
        by_heads = config["hidden_size"] // config["num_attention_heads"]
        found["query_pre_attn_scalar"] = by_heads if wide else config["head_dim"]
    if "original_max_position_embeddings" in config["rope_parameters"] and architecture.model_type == "phi3":
        found["original_max_position_embeddings"] = config["rope_parameters"]["original_max_position_embeddings"]
    return found
