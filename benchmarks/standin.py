"""A stand-in for the largest checkpoints: real headers before sparse data, which takes no room and nothing here reads.

    python benchmarks/standin.py FOLDER

It is made as DeepSeek-V3 is: block-wise fp8 with scales of 128 x 128, 61 layers, of which 58 are mixtures with experts
stored one by one, in 163 files with an index. Its 89,716 tensors take some 614 GB.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

Tensors = Iterator[tuple[str, str, tuple[int, ...]]]
"""Name, dtype and shape of each tensor."""

BYTES = {"F8_E4M3": 1, "BF16": 2, "F32": 4}
BLOCK = 128


@dataclass(frozen=True)
class Model:
    """The sizes of a mixture of experts with latent attention; those of the defaults make 89,716 tensors."""

    hidden: int = 7040
    layers: int = 61
    dense_layers: int = 3
    dense_inner: int = 18432
    experts: int = 254
    inner: int = 1920
    biased_layers: int = 43
    heads: int = 128
    query_rank: int = 1536
    key_rank: int = 512
    rotated: int = 64
    head: int = 128
    vocabulary: int = 129280

    def config(self) -> dict[str, object]:
        """config.json, as transformers' DeepSeek-V3 has it."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "torch_dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.dense_inner,
            "moe_intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "first_k_dense_replace": self.dense_layers,
            "n_routed_experts": self.experts,
            "n_shared_experts": 1,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "q_lora_rank": self.query_rank,
            "kv_lora_rank": self.key_rank,
            "qk_rope_head_dim": self.rotated,
            "qk_nope_head_dim": self.head,
            "v_head_dim": self.head,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "quantization_config": {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [BLOCK, BLOCK],
            },
        }

    def tensors(self) -> Tensors:
        """Every tensor, layer by layer."""
        yield "model.embed_tokens.weight", "BF16", (self.vocabulary, self.hidden)
        for number in range(self.layers):
            yield from self._layer(number)
        yield "model.norm.weight", "BF16", (self.hidden,)
        yield "lm_head.weight", "BF16", (self.vocabulary, self.hidden)

    def _layer(self, number: int) -> Tensors:
        name = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", "BF16", (self.hidden,)
        yield from self._attention(f"{name}.self_attn")
        mixture = number - self.dense_layers
        if mixture < 0:
            yield from self._mlp(f"{name}.mlp", self.dense_inner)
            return
        yield f"{name}.mlp.gate.weight", "BF16", (self.experts, self.hidden)
        if mixture < self.biased_layers:
            yield f"{name}.mlp.gate.e_score_correction_bias", "F32", (self.experts,)
        yield from self._mlp(f"{name}.mlp.shared_experts", self.inner)
        for expert in range(self.experts):
            yield from self._mlp(f"{name}.mlp.experts.{expert}", self.inner)

    def _attention(self, name: str) -> Tensors:
        wide = self.heads * (self.head + self.rotated)
        yield from _quantized(f"{name}.q_a_proj", self.query_rank, self.hidden)
        yield f"{name}.q_a_layernorm.weight", "BF16", (self.query_rank,)
        yield from _quantized(f"{name}.q_b_proj", wide, self.query_rank)
        yield from _quantized(f"{name}.kv_a_proj_with_mqa", self.key_rank + self.rotated, self.hidden)
        yield f"{name}.kv_a_layernorm.weight", "BF16", (self.key_rank,)
        yield from _quantized(f"{name}.kv_b_proj", self.heads * 2 * self.head, self.key_rank)
        yield from _quantized(f"{name}.o_proj", self.hidden, self.heads * self.head)

    def _mlp(self, name: str, inner: int) -> Tensors:
        for leaf, shape in (
            ("gate_proj", (inner, self.hidden)),
            ("up_proj", (inner, self.hidden)),
            ("down_proj", (self.hidden, inner)),
        ):
            yield from _quantized(f"{name}.{leaf}", *shape)


def _quantized(name: str, rows: int, columns: int) -> Tensors:
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale_inv", "F32", (-(-rows // BLOCK), -(-columns // BLOCK))


def make_standin(folder: Path, model: Model | None = None, files: int = 163) -> int:
    """Write config.json, the index and the sparse files into a folder; returns the number of tensors."""
    model = model or Model()
    (folder / "config.json").write_text(json.dumps(model.config(), indent=2))
    tensors = list(model.tensors())
    size = -(-len(tensors) // files)
    placed: dict[str, str] = {}
    for number in range(1, files + 1):
        group = tensors[(number - 1) * size : number * size]
        file = f"model-{number:05}-of-{files:06}.safetensors"
        _write(folder / file, group)
        placed |= {name: file for name, _, _ in group}
    total = sum(prod(shape) * BYTES[dtype] for _, dtype, shape in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return len(tensors)


def _write(path: Path, tensors: list[tuple[str, str, tuple[int, ...]]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{make_standin(folder)} tensors in {folder}")


if __name__ == "__main__":
    main()
