"""Sizes of real models, and what their engines say of numbers of ranks; of each, only headers are there."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from headers import Shapes, write_headers

import qload

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def attention(name: str, hidden: int, heads: int, keys: int, head: int) -> dict[str, tuple[int, int]]:
    rows = {"q_proj": heads * head, "k_proj": keys * head, "v_proj": keys * head}
    return {
        **{f"{name}.self_attn.{leaf}": (count, hidden) for leaf, count in rows.items()},
        f"{name}.self_attn.o_proj": (hidden, heads * head),
    }


def mlp(name: str, hidden: int, inner: int) -> dict[str, tuple[int, int]]:
    return {
        f"{name}.gate_proj": (inner, hidden),
        f"{name}.up_proj": (inner, hidden),
        f"{name}.down_proj": (hidden, inner),
    }


def as_gptq(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    yield f"{name}.qweight", ("I32", (columns // 8, rows))
    yield f"{name}.qzeros", ("I32", (columns // 128, rows // 8))
    yield f"{name}.scales", ("F16", (columns // 128, rows))
    yield f"{name}.g_idx", ("I32", (columns,))


def as_awq(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    yield f"{name}.qweight", ("I32", (columns, rows // 8))
    yield f"{name}.qzeros", ("I32", (columns // 128, rows // 8))
    yield f"{name}.scales", ("F16", (columns // 128, rows))


def as_blocks(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    yield f"{name}.weight", ("F8_E4M3", (rows, columns))
    yield f"{name}.weight_scale_inv", ("F32", (-(-rows // 128), -(-columns // 128)))


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
Store = Callable[[str, int, int], Iterator[tuple[str, tuple[str, tuple[int, ...]]]]]


def write_model(
    folder: Path, store: Store, section: dict[str, Any], modules: dict[str, tuple[int, int]], **sizes: int
) -> Path:
    tensors: Shapes = {name: entry for module, size in modules.items() for name, entry in store(module, *size)}
    return write_headers(folder, {**sizes, "quantization_config": section}, tensors)


UNTILED = ("QL405 gate_proj", "QL405 up_proj")
LLAMA = {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}
MIXTURE = {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4}
DEEPSEEK = {"hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128}
LATENT = {
    "model.layers.3.self_attn.q_a_proj": (1536, 7168),
    "model.layers.3.self_attn.q_b_proj": (24576, 1536),
    "model.layers.3.self_attn.kv_a_proj_with_mqa": (576, 7168),
    "model.layers.3.self_attn.kv_b_proj": (32768, 512),
    "model.layers.3.self_attn.o_proj": (7168, 16384),
    **mlp("model.layers.0.mlp", 7168, 18432),
    **mlp("model.layers.3.mlp.experts.0", 7168, 2048),
    **mlp("model.layers.3.mlp.shared_experts", 7168, 2048),
}
MODELS: tuple[
    tuple[str, Store, dict[str, Any], dict[str, tuple[int, int]], dict[str, int], dict[int, set[str]]], ...
] = (
    (
        "Llama-3-70B AWQ",
        as_awq,
        AWQ,
        attention("model.layers.0", 8192, 64, 8, 128) | mlp("model.layers.0.mlp", 8192, 28672),
        LLAMA,
        {1: set(), 2: set(), 4: set(), 8: set()},
    ),
    (
        "Qwen2-72B GPTQ, whose first release engines refused",
        as_gptq,
        GPTQ,
        attention("model.layers.0", 8192, 64, 8, 128) | mlp("model.layers.0.mlp", 8192, 29568),
        LLAMA,
        {1: set(), 2: {"QL401 down_proj"}, 4: {"QL401 down_proj"}, 8: {"QL401 down_proj", *UNTILED}},
    ),
    (
        "Qwen3-30B-A3B GPTQ",
        as_gptq,
        GPTQ,
        attention("model.layers.0", 2048, 32, 4, 128) | mlp("model.layers.0.mlp.experts.0", 2048, 768),
        MIXTURE,
        {1: set(), 2: set(), 4: {"QL401 down_proj"}, 8: {"QL401 down_proj", *UNTILED}},
    ),
    (
        "DeepSeek-V3 fp8",
        as_blocks,
        FP8,
        LATENT,
        DEEPSEEK,
        {1: set(), 4: set(), 8: set(), 16: set(), 32: {"QL403 down_proj", "QL403 gate_proj", "QL403 up_proj"}},
    ),
)


def name_briefly(code: str, where: str) -> str:
    """The code, and the module's own name."""
    module = where.removesuffix(".scales").removesuffix(".weight_scale_inv")
    return f"{code} {module.rpartition('.')[2]}"


@pytest.mark.parametrize(
    ("store", "section", "modules", "sizes", "expected"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS]
)
def test_real_models_are_told_what_their_engines_say(
    store: Store,
    section: dict[str, Any],
    modules: dict[str, tuple[int, int]],
    sizes: dict[str, int],
    expected: dict[int, set[str]],
    tmp_path: Path,
) -> None:
    folder = write_model(tmp_path, store, section, modules, **sizes)
    for size, wanted in expected.items():
        found = qload.validate(folder, tp=(size,)).findings
        assert {name_briefly(each.code, each.where) for each in found} == wanted, size


def test_parts_that_are_fused_on_disk_are_divided_one_by_one(tmp_path: Path) -> None:
    """Queries, keys and values of 8 and 2 heads of 192; gates of 11 blocks, of which two ranks cannot have halves."""
    heads = {"hidden_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 2}
    modules = {
        "model.layers.0.self_attn.qkv_proj": (12 * 192, 1536),
        "model.layers.0.mlp.gate_up_proj": (2 * 1408, 1536),
    }
    folder = write_model(tmp_path, as_blocks, FP8, modules, **heads)
    found = {each.where: each for each in qload.validate(folder, tp=(1, 2, 4, 8)).findings}
    queries, gates = (found[f"{name}.weight_scale_inv"] for name in modules)
    assert queries.message == "at 2, 4 and 8 ranks a column-parallel share splits a block of 128 x 128"
    assert queries.found == "192 at 2, 4 and 8 ranks"
    assert "qload divides it as one; engines that divide its parts one by one refuse" in queries.remedy
    assert (gates.found, gates.expected) == ("704 at 2 ranks, 352 at 4 ranks, 176 at 8 ranks", "multiples of 128")
    assert qload.plan_ranks(folder, [2]).fits


def test_projections_that_engines_fuse_make_tiles_together(tmp_path: Path) -> None:
    """Halves of 96 rows each are no tiles of 64, and both together are three."""
    sizes = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    modules = mlp("model.layers.0.mlp", 512, 192 * 2)
    folder = write_model(tmp_path, as_gptq, {**GPTQ, "group_size": 64}, {}, **sizes)
    tensors: dict[str, Any] = {}
    for name, (rows, columns) in modules.items():
        tensors |= {
            f"{name}.qweight": ("I32", (columns // 8, rows)),
            f"{name}.qzeros": ("I32", (columns // 64, rows // 8)),
            f"{name}.scales": ("F16", (columns // 64, rows)),
        }
    write_headers(folder, {**sizes, "quantization_config": {**GPTQ, "group_size": 64}}, tensors)
    found = qload.validate(folder, tp=(2,)).findings
    assert [(each.code, each.where) for each in found] == [("QL405", "model.layers.0.mlp.down_proj")]
    del tensors["model.layers.0.mlp.up_proj.qweight"]
    alone = {name: entry for name, entry in tensors.items() if "up_proj" not in name}
    write_headers(folder, {**sizes, "quantization_config": {**GPTQ, "group_size": 64}}, alone)
    assert "model.layers.0.mlp.gate_proj" in {each.where for each in qload.validate(folder, tp=(4,)).findings}
