"""Checkpoints of random values, in the layouts that benchmarks load: Llamas, dense or quantized in several ways."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

GROUP, BLOCK, MX_GROUP, NF4_GROUP = 128, 128, 32, 64
PER_WORD = 8
"""4-bit values in a word of 32 bits."""
SCALE = 0.002
E4M3_MOST, FLOATS_SPREAD = 448, 100
"""The greatest value of E4M3, and the deviation of such weights, with which their greatest come near it."""
ZEROS = 0x77777777
"""GPTQ's zero-points of a symmetric weight, one below 8, in a word."""

NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""The values of bitsandbytes' table of that name."""

Linear = Callable[[int, int], dict[str, Tensor]]
"""The tensors of a linear layer of so many rows and columns, by the ends of their names."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a Llama."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int

    def linear(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each linear layer of a decoder layer."""
        wide, narrow = self.heads * self.head, self.kv_heads * self.head
        return {
            "self_attn.q_proj": (wide, self.hidden),
            "self_attn.k_proj": (narrow, self.hidden),
            "self_attn.v_proj": (narrow, self.hidden),
            "self_attn.o_proj": (self.hidden, wide),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    def config(self, layers: int) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
        }


@dataclass(frozen=True, slots=True)
class Format:
    """How linear layers are stored, and what config.json says of it; None for dense weights."""

    linear: Linear
    config: dict[str, Any] | None = None


def make_checkpoint(folder: Path, sizes: Sizes, layers: int, form: Format, *, in_a_file: int = 4) -> int:
    """Write a checkpoint, `in_a_file` layers to a file; returns the bytes of its tensors."""
    folder.mkdir(parents=True)
    placed: dict[str, str] = {}
    total = 0
    for first in range(0, layers, in_a_file):
        tensors = {} if first else make_outer(sizes)
        for layer in range(first, min(first + in_a_file, layers)):
            tensors |= dict(make_layer(f"model.layers.{layer}", sizes, form))
        file = f"model-{first // in_a_file + 1:05}-of-{-(-layers // in_a_file):05}.safetensors"
        save_file(tensors, folder / file)
        placed |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = sizes.config(layers) | ({"quantization_config": form.config} if form.config else {})
    (folder / "config.json").write_text(json.dumps(config))
    return total


def make_outer(sizes: Sizes) -> dict[str, Tensor]:
    shape = (sizes.vocabulary, sizes.hidden)
    return {
        "model.embed_tokens.weight": torch.randn(shape).to(torch.bfloat16),
        "lm_head.weight": (torch.randn(shape) / 50).to(torch.bfloat16),
        "model.norm.weight": torch.ones(sizes.hidden, dtype=torch.bfloat16),
    }


def make_layer(name: str, sizes: Sizes, form: Format) -> Iterator[tuple[str, Tensor]]:
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.{norm}.weight", torch.ones(sizes.hidden, dtype=torch.bfloat16)
    for leaf, shape in sizes.linear().items():
        for end, tensor in form.linear(*shape).items():
            yield f"{name}.{leaf}.{end}", tensor


def make_words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def make_scales(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.full(shape, SCALE, dtype=dtype)


def make_floats(*shape: int) -> Tensor:
    """E4M3 over all of its range, as producers scale weights to it: with few values so small that CPUs trip on them."""
    return (torch.randn(shape) * FLOATS_SPREAD).clamp(-E4M3_MOST, E4M3_MOST).to(torch.float8_e4m3fn)


def store_dense(rows: int, columns: int) -> dict[str, Tensor]:
    return {"weight": (torch.randn(rows, columns) / 50).to(torch.bfloat16)}


def store_gptq(rows: int, columns: int) -> dict[str, Tensor]:
    return {
        "qweight": make_words(columns // PER_WORD, rows),
        "scales": make_scales(columns // GROUP, rows, dtype=torch.float16),
        "qzeros": torch.full((columns // GROUP, rows // PER_WORD), ZEROS, dtype=torch.int32),
        "g_idx": torch.arange(columns, dtype=torch.int32) // GROUP,
    }


def store_int4(rows: int, columns: int) -> dict[str, Tensor]:
    return {
        "weight_packed": make_words(rows, columns // PER_WORD),
        "weight_scale": make_scales(rows, columns // GROUP),
        "weight_shape": torch.tensor([rows, columns]),
    }


def store_int8(rows: int, columns: int) -> dict[str, Tensor]:
    return {
        "weight_packed": make_words(rows, columns // 4),
        "weight_scale": make_scales(rows, 1) / 16,
        "weight_shape": torch.tensor([rows, columns]),
    }


def store_w8a8(rows: int, columns: int) -> dict[str, Tensor]:
    weight = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    return {"weight": weight, "weight_scale": make_scales(rows, 1) / 16}


def store_fp8(rows: int, columns: int) -> dict[str, Tensor]:
    return {"weight": make_floats(rows, columns), "weight_scale": make_scales(rows, 1) / FLOATS_SPREAD}


def store_fp8_blocks(rows: int, columns: int) -> dict[str, Tensor]:
    shape = (-(-rows // BLOCK), -(-columns // BLOCK))
    scales = make_scales(*shape, dtype=torch.float32) / FLOATS_SPREAD
    return {"weight": make_floats(rows, columns), "weight_scale_inv": scales}


def store_mxfp4(rows: int, columns: int) -> dict[str, Tensor]:
    """Two values in a byte; a scale is a power of two, here of 2**-7."""
    return {
        "weight_packed": torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8),
        "weight_scale": torch.full((rows, columns // MX_GROUP), 127 - 7, dtype=torch.uint8),
    }


def store_nf4(rows: int, columns: int) -> dict[str, Tensor]:
    """As bitsandbytes saves it: flat codes, a scale for each block, the table, and a document beside them."""
    state = {"quant_type": "nf4", "blocksize": NF4_GROUP, "dtype": "bfloat16", "shape": [rows, columns]}
    return {
        "weight": torch.randint(0, 256, (rows * columns // 2, 1), dtype=torch.uint8),
        "weight.absmax": make_scales(rows * columns // NF4_GROUP, dtype=torch.float32) * 16,
        "weight.quant_map": NF4.clone(),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def compress(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """What compressed-tensors writes into the config, for one scheme of all linear layers but the head."""
    group = {"targets": ["Linear"], "format": form, "weights": {"symmetric": True, "dynamic": False, **weights}}
    if inputs is not None:
        group["input_activations"] = {"symmetric": True, "dynamic": True, **inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def number(bits: int, kind: str, strategy: str, size: int | None = None) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, **({"group_size": size} if size else {})}


DENSE = Format(store_dense)
GPTQ = Format(
    store_gptq,
    {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
    },
)
FORMATS = {
    "int4 g128": Format(store_int4, compress("pack-quantized", number(4, "int", "group", GROUP))),
    "int8": Format(store_int8, compress("pack-quantized", number(8, "int", "channel"))),
    "w8a8 int8": Format(store_w8a8, compress("int-quantized", number(8, "int", "channel"), number(8, "int", "token"))),
    "fp8": Format(store_fp8, compress("float-quantized", number(8, "float", "channel"), number(8, "float", "token"))),
    "block fp8": Format(
        store_fp8_blocks,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]},
    ),
    "nf4": Format(
        store_nf4,
        {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_use_double_quant": False,
        },
    ),
    "mxfp4": Format(store_mxfp4, compress("mxfp4-pack-quantized", number(4, "float", "group", MX_GROUP))),
}
"""Formats by the names that figures give them."""
