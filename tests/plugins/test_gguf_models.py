"""Models in GGUF files: every architecture against llama.cpp's converters, and what is refused of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ggml import GOLDENS, Choice, keep, matrices, read_tensor, rewrite
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file
from samples import DATA, relative_error
from torch import Tensor

import qload
from qload import Quantization
from qload.errors import CheckpointError
from qload.examination import read_quantization
from qload.torch import ColumnParallelLinear, Layer, QKVParallelLinear, Site
from qload.torch.parallel import Group

LOGITS = load_file(GOLDENS / "logits.safetensors")
NAMES = sorted(LOGITS.keys() - {"input_ids"})
MIXED = DATA / "autoround-gguf-q4_k_m"


def compute(path: Path, **options: Any) -> Tensor:
    model = qload.load(path, dtype=torch.float32, **options, kernels=())
    with torch.inference_mode():
        logits: Tensor = model(LOGITS["input_ids"]).logits
    return logits


@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_computes_what_it_did_before(name: str) -> None:
    path = GOLDENS / f"{name}.gguf"
    assert qload.validate(path).findings == ()
    assert relative_error(compute(path), LOGITS[name]) < 1e-6


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2moe", "qwen3", "qwen3moe", "gemma3"])
@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0])
def test_a_quantized_model_computes_with_the_dequantized_weights(name: str, kind: Type, tmp_path: Path) -> None:
    """Heads tied to quantized tables, stacks of experts, and reordered rows of blocks."""
    source = GOLDENS / f"{name}.gguf"
    rewrite(source, tmp_path / "q.gguf", matrices(kind))
    rewrite(source, tmp_path / "dense.gguf", matrices(kind), dense=True)
    assert qload.validate(tmp_path / "q.gguf").findings == ()
    assert relative_error(compute(tmp_path / "q.gguf"), compute(tmp_path / "dense.gguf")) < 1e-6
    model = qload.load(tmp_path / "q.gguf", kernels=())
    held = qload.report(model)
    assert {f"gguf {kind.name}"} <= held.layers.keys() <= {f"gguf {kind.name}", "unquantized"}
    assert held.bytes_in_memory < 0.5 * held.bytes_dense


def test_gate_and_up_in_one_stack(tmp_path: Path) -> None:
    """llama.cpp's option --fuse-gate-up-exps: each expert's gate, then its up."""
    source, fused = GOLDENS / "qwen3moe.gguf", tmp_path / "fused.gguf"
    parts = [f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up")]
    both = np.concatenate([read_tensor(source, name) for name in parts], axis=1)
    rewrite(source, fused, without(*parts), extra={"blk.0.ffn_gate_up_exps.weight": both})
    assert relative_error(compute(fused), LOGITS["qwen3moe"]) < 1e-6


def test_experts_in_tensors_of_their_own(tmp_path: Path) -> None:
    """As llama.cpp wrote them before it stacked them."""
    source, old = GOLDENS / "mixtral.gguf", tmp_path / "old.gguf"
    stacks = {f"blk.0.ffn_{part}_exps.weight": f"blk.0.ffn_{part}.{{}}.weight" for part in ("gate", "up", "down")}
    single = {
        name.format(number): values
        for stack, name in stacks.items()
        for number, values in enumerate(read_tensor(source, stack))
    }
    rewrite(source, old, without(*stacks), extra=single)
    assert relative_error(compute(old), LOGITS["mixtral"]) < 1e-6


def without(*names: str) -> Choice:
    return lambda name, values: None if name in names else Type.F32


def test_several_types_in_one_model() -> None:
    model = qload.load(MIXED, kernels=())
    assert qload.report(model).layers == {"gguf Q4_K": 13, "gguf Q6_K": 3}
    report = qload.report(model)
    stored = (MIXED / "model.gguf").stat().st_size
    assert 0.96 * stored < report.bytes_in_memory < stored
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
    assert qload.report(model).bytes_in_memory == report.bytes_in_memory


@pytest.fixture(scope="module")
def quantization() -> Quantization:
    return read_quantization(MIXED)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_ranks_read_their_own_heads(size: int, quantization: Quantization) -> None:
    """Of reordered rows, of different matrices, with heads that several ranks share."""
    whole = qload.load(MIXED, kernels=())
    attention = whole.model.layers[0].self_attn
    parts = [qload.dequantize(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
    for rank in range(size):
        layer = QKVParallelLinear(
            256, 64, 4, 2, Site(quantization, "model.layers.0.self_attn.qkv_proj", Group(rank, size))
        )
        report = load_one(layer)
        expected = [shard(part, heads, rank, size) for part, heads in zip(parts, (4, 2, 2), strict=True)]
        assert torch.equal(qload.dequantize(layer), torch.cat(expected))
        assert report.bytes_read == sum(each.shape[0] for each in expected) * 144


def shard(weight: Tensor, heads: int, rank: int, size: int) -> Tensor:
    cuts = min(heads, size)
    return weight.chunk(cuts)[rank * cuts // size]


def load_one(layer: Layer) -> Any:
    module = torch.nn.ModuleDict({"layer": layer})
    return qload.load_weights(module, MIXED, ignore=["QL210"], kernels=())


@pytest.mark.parametrize("size", [8, 16])
def test_ranks_that_cut_heads(size: int, quantization: Quantization) -> None:
    name = "model.layers.1.self_attn.q_proj"
    whole: Any = qload.load(MIXED, kernels=()).get_submodule(name)
    expected = qload.dequantize(whole)
    parts = []
    for rank in range(size):
        layer = ColumnParallelLinear(256, 256, Site(quantization, name, Group(rank, size)))
        load_one(layer)
        parts.append(qload.dequantize(layer))
    assert torch.equal(torch.cat(parts), expected)


def test_parts_of_different_types_are_not_fused(quantization: Quantization) -> None:
    with pytest.raises(CheckpointError, match=r"QL204.*Q6_K"):
        QKVParallelLinear(256, 64, 4, 2, Site(quantization, "model.layers.1.self_attn.qkv_proj"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"llama.embedding_length": None}, "QL105"),
        ({"llama.block_count": 0}, "QL105"),
        ({"llama.block_count": 2_000_000}, "QL105"),
        ({"llama.attention.head_count": 0}, "QL105"),
        ({"llama.rope.freq_base": float("nan")}, "QL105"),
        ({"llama.attention.value_length": 8}, "QL104"),
        ({"llama.rope.dimension_count": 8}, "QL104"),
        ({"llama.rope.scaling.type": "spiral"}, "QL104"),
        ({"llama.rope.scaling.factor": 2.0}, "QL104"),
        ({"llama.rope.scaling.type": "yarn"}, "QL105"),
        ({"llama.attention.clamp_kqv": 8.0}, "QL104"),
    ],
)
def test_metadata_that_cannot_be_followed(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    rewrite(GOLDENS / "llama.gguf", tmp_path / "m.gguf", keep, changes=changes)
    (finding,) = qload.validate(tmp_path / "m.gguf").findings
    assert finding.code == expected
    assert finding.where.removeprefix("llama.").split(".")[0] in next(iter(changes))
    with pytest.raises(CheckpointError, match=expected):
        qload.load(tmp_path / "m.gguf", kernels=())


def test_a_table_of_frequencies_that_is_no_known_scaling(tmp_path: Path) -> None:
    table = read_tensor(GOLDENS / "llama-3.gguf", "rope_freqs.weight").copy()
    table[1] *= 1.5
    rewrite(
        GOLDENS / "llama-3.gguf", tmp_path / "m.gguf", without("rope_freqs.weight"), extra={"rope_freqs.weight": table}
    )
    with pytest.raises(CheckpointError, match=r"QL104.*rope_freqs"):
        qload.load(tmp_path / "m.gguf", kernels=())


def test_a_scaling_of_one_is_none(tmp_path: Path) -> None:
    changes = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0}
    rewrite(GOLDENS / "llama.gguf", tmp_path / "m.gguf", keep, changes=changes)
    assert relative_error(compute(tmp_path / "m.gguf"), LOGITS["llama"]) < 1e-6


def test_keys_that_older_files_lack(tmp_path: Path) -> None:
    changes = {"gemma2.attn_logit_softcapping": None, "gemma2.final_logit_softcapping": None}
    rewrite(GOLDENS / "gemma2.gguf", tmp_path / "m.gguf", keep, changes=changes)
    assert relative_error(compute(tmp_path / "m.gguf"), LOGITS["gemma2"]) < 1e-6


def test_tensors_that_nothing_reads(tmp_path: Path) -> None:
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32), "v.patch": np.zeros(4, np.float32)}
    rewrite(GOLDENS / "llama.gguf", tmp_path / "m.gguf", keep, extra=extra)
    findings = qload.validate(tmp_path / "m.gguf").findings
    assert [(finding.code, finding.where) for finding in findings] == [("QL210", name) for name in extra]
    with pytest.raises(CheckpointError, match="attn_sinks"):
        qload.load(tmp_path / "m.gguf", kernels=())
    assert relative_error(compute(tmp_path / "m.gguf", ignore=["QL210"]), LOGITS["llama"]) < 1e-6


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "blk.0.ffn_down.bias", "output_norm.weight"])
def test_a_missing_tensor(name: str, tmp_path: Path) -> None:
    rewrite(GOLDENS / "llama.gguf", tmp_path / "m.gguf", without(name))
    with pytest.raises(CheckpointError, match="QL201"):
        qload.load(tmp_path / "m.gguf", kernels=())


def test_a_missing_expert_is_missed(tmp_path: Path) -> None:
    short = read_tensor(GOLDENS / "qwen3moe.gguf", "blk.0.ffn_up_exps.weight")[:2]
    name = "blk.0.ffn_up_exps.weight"
    rewrite(GOLDENS / "qwen3moe.gguf", tmp_path / "m.gguf", without(name), extra={name: short})
    with pytest.raises(CheckpointError, match="QL205"):
        qload.load(tmp_path / "m.gguf", kernels=())
