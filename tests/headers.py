"""Checkpoints of which only config and headers are written: what they lie before takes no room."""

import json
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from qload.dtypes import storage_bytes

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""dtype and shape by a tensor's name."""

HIDDEN, INNER, VOCABULARY, HEAD = 256, 512, 1024, 64


def write_headers(folder: Path, config: Mapping[str, Any], tensors: Shapes) -> Path:
    """A checkpoint with that config and those tensors, in one sparse file."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + storage_bytes(dtype, prod(shape))
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(table).encode()
    folder.mkdir(exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", **config}))
    return folder


def plain(name: str, *shape: int, bias: bool = False) -> Shapes:
    biases: Shapes = {f"{name}.bias": ("BF16", shape[:1])} if bias else {}
    return {f"{name}.weight": ("BF16", shape), **biases}


def fp8_block(name: str, rows: int, columns: int) -> Shapes:
    return {
        f"{name}.weight": ("F8_E4M3", (rows, columns)),
        f"{name}.weight_scale_inv": ("F32", (-(-rows // 128), -(-columns // 128))),
    }


def fp8_tensor(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": ("F8_E4M3", (rows, columns)), f"{name}.weight_scale": ("F32", ())}


def packed(name: str, rows: int, columns: int, bits: int = 4) -> Shapes:
    """As compressed-tensors packs in groups of 128."""
    return {
        f"{name}.weight_packed": ("I32", (rows, columns * bits // 32)),
        f"{name}.weight_scale": ("BF16", (rows, columns // 128)),
        f"{name}.weight_shape": ("I64", (2,)),
    }


def awq(name: str, rows: int, columns: int) -> Shapes:
    return {
        f"{name}.qweight": ("I32", (columns, rows // 8)),
        f"{name}.qzeros": ("I32", (columns // 128, rows // 8)),
        f"{name}.scales": ("F16", (columns // 128, rows)),
    }


def mxfp4_stack(name: str, experts: int, rows: int, columns: int) -> Shapes:
    return {
        f"{name}_blocks": ("U8", (experts, rows, columns // 32, 16)),
        f"{name}_scales": ("U8", (experts, rows, columns // 32)),
        f"{name}_bias": ("BF16", (experts, rows)),
    }


def outer(prefix: str = "model", *, head: bool = True) -> Shapes:
    tensors = plain(f"{prefix}.embed_tokens", VOCABULARY, HIDDEN) | plain(f"{prefix}.norm", HIDDEN)
    return tensors | (plain("lm_head", VOCABULARY, HIDDEN) if head else {})


def norms(layer: str) -> Shapes:
    return plain(f"{layer}.input_layernorm", HIDDEN) | plain(f"{layer}.post_attention_layernorm", HIDDEN)


def attention(layer: str, make: Any, *, bias: bool = False) -> Shapes:
    """Projections of queries, keys and values, and out of them; with `bias`, those of the first three."""
    tensors: Shapes = {}
    for leaf, rows in {"q_proj": HIDDEN, "k_proj": 128, "v_proj": 128, "o_proj": HIDDEN}.items():
        name = f"{layer}.self_attn.{leaf}"
        tensors |= make(name, rows, HIDDEN)
        if bias and leaf != "o_proj":
            tensors[f"{name}.bias"] = ("BF16", (rows,))
    return tensors


def mlp(name: str, make: Any, leaves: Iterable[str] = ("gate_proj", "up_proj", "down_proj")) -> Shapes:
    """Two projections inwards, and the last one outwards again."""
    *inwards, outwards = leaves
    tensors: Shapes = make(f"{name}.{outwards}", HIDDEN, INNER)
    for leaf in inwards:
        tensors |= make(f"{name}.{leaf}", INNER, HIDDEN)
    return tensors


def mixture(
    name: str, make: Any, experts: int = 4, leaves: Iterable[str] = ("gate_proj", "up_proj", "down_proj")
) -> Shapes:
    tensors: Shapes = {}
    for expert in range(experts):
        tensors |= mlp(f"{name}.experts.{expert}", make, leaves)
    return tensors


def model_config(kind: str, layers: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["AnyForCausalLM"],
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        **more,
    }


def ct_section(*ignore: str, targets: Iterable[str] = ("Linear",), bits: int = 4) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": list(targets), "weights": weights}},
        "ignore": list(ignore),
    }


def fp8_section(*ignore: str) -> dict[str, Any]:
    return {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": list(ignore),
    }
