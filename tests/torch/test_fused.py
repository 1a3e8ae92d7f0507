"""A user's own model with merged and QKV layers, whole and by rank, from the same checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import edit_tensors
from jobs.models import compute_llama
from llama import Llama
from samples import DATA, DEMO, is_swept, read_config, read_reference, relative_error, supported
from torch import Tensor, nn
from worlds import World

import qload
from qload.errors import CheckpointError, QloadError, ShardError
from qload.findings import errors
from qload.torch import QKVParallelLinear, RowParallelLinear, Site
from qload.torch.parallel import Group

LLAMAS = [path for path in filter(is_swept, supported()) if read_config(path)["model_type"] == "llama"]
names = pytest.mark.parametrize("path", LLAMAS, ids=lambda path: path.name)

WHOLE = (
    "autoawq-gemv",
    "autoround-gguf",
    "ct-fp8-block",
    "ct-sparse-bitmask",
    "gptqmodel-fp8-block",
    "gptqmodel-gguf",
    "hf-bitnet",
    "hf-fp8-block",
    "hqq-3bit",
    "hqq-4bit",
    "modelopt-fp8-block",
    "quanto-qint4",
)
"""What no rank can have a part of, by the beginnings of names: one KV head is half a block of 128 rows; AWQ's gemv
versions pad the groups of inputs; ggml's K types have blocks of 256; the others have rows that share bytes."""

HALVES = (
    "autoawq-gemm-g128",
    "autoround-llmc-w4a16",
    "autoround-w4g128",
    "ct-w3a16-g128",
    "ct-w4a16-24-marlin",
    "ct-w4a16-g128-asym",
    "ct-w4a16-lmhead",
    "gptq-3bit-g128",
    "gptq-4bit-g128",
    "gptq-8bit-g128",
    "gptq-dynamic",
    "gptq-v2-4bit-g128",
    "hqq-8bit-g128",
    "modelopt-int4-awq",
    "quark-uint4-wo-128",
)
"""Those with groups of 128 of the 256 inputs of o_proj; an order of activation keeps scales whole."""


def can_be_cut(path: Path, size: int) -> bool:
    """Whether `size` ranks, 1, 2 or 4, can divide the layers."""
    if path.name.startswith(WHOLE):
        return size == 1
    return size < 4 or not (path.name.startswith(HALVES) or path.name == "ct-w4a16-g128-sym")


def build(path: Path, size: int = 1) -> list[Any]:
    quantization = qload.read_quantization(path)
    ranks = [Llama(path, quantization, Group(rank, size)) for rank in range(size)]
    for rank in ranks:
        qload.load_weights(rank, path, quantize_activations=False, ignore=["QL210"])
    return ranks


def separate(path: Path) -> Any:
    return qload.load(path, dtype=torch.float32, quantize_activations=False)


MIXED = ("autoround-gguf-q4_k_m", "ct-mixed-fp8-w4", "gptq-dynamic-mixed")
"""In some layers the values are stored otherwise than the queries, so that they cannot be fused."""
FUSABLE = [path for path in LLAMAS if path.name not in MIXED]


@pytest.mark.parametrize("path", FUSABLE, ids=lambda path: path.name)
def test_fused_layers_hold_the_separate_ones_weights(path: Path) -> None:
    (model,), other = build(path), separate(path)
    for number, block in enumerate(model.model.layers):
        theirs = other.model.layers[number]
        attention, mlp = theirs.self_attn, theirs.mlp
        qkv = [qload.dequantize(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
        assert torch.equal(qload.dequantize(block.self_attn.qkv_proj), torch.cat(qkv))
        gate_up = [qload.dequantize(each) for each in (mlp.gate_proj, mlp.up_proj)]
        assert torch.equal(qload.dequantize(block.mlp.gate_up_proj), torch.cat(gate_up))


@pytest.mark.parametrize("path", FUSABLE, ids=lambda path: path.name)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_ranks_together_compute_the_whole(worlds: Callable[[int], World], path: Path, size: int) -> None:
    if not can_be_cut(path, size):
        with pytest.raises(ShardError) as caught:
            build(path, size)
        assert caught.value.sizes in ((1,), (1, 2))
        return
    ids = read_reference(path).input_ids
    with torch.inference_mode():
        expected = separate(path)(ids).logits
    for found in worlds(size).run(compute_llama, path, ids):
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("name", [DEMO.name, "ct-w4a16-lmhead-embed"])
@pytest.mark.parametrize("size", [1, 2])
def test_a_tied_head_computes_with_its_ranks_share_of_the_table(
    worlds: Callable[[int], World], name: str, size: int
) -> None:
    """Plain and quantized."""
    path = DATA / name
    ids = read_reference(path).input_ids
    with torch.inference_mode():
        model = separate(path)
        hidden = model.model(ids).last_hidden_state
        expected = hidden @ qload.dequantize(model.model.embed_tokens).float().T
    for found in worlds(size).run(compute_llama, path, ids, True):
        assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("path", FUSABLE, ids=lambda path: path.name)
@pytest.mark.parametrize("size", [2, 4])
def test_every_ranks_shards_make_the_whole(path: Path, size: int) -> None:
    if not can_be_cut(path, size):
        return
    (whole,), ranks = build(path), build(path, size)
    for number, block in enumerate(whole.model.layers):
        blocks = [rank.model.layers[number] for rank in ranks]
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            shards = [qload.dequantize(each.get_submodule(name)) for each in blocks]
            assert torch.equal(torch.cat(shards, 1), qload.dequantize(block.get_submodule(name)))
        assert torch.equal(join([each.mlp.gate_up_proj for each in blocks]), qload.dequantize(block.mlp.gate_up_proj))
    for name in ("model.embed_tokens", "lm_head"):
        shards = [qload.dequantize(rank.get_submodule(name)) for rank in ranks]
        assert torch.equal(torch.cat(shards), qload.dequantize(whole.get_submodule(name)))


def join(layers: list[Any]) -> Tensor:
    """The whole weight of a merged layer, from its ranks' shards."""
    parts = [qload.dequantize(each).split([part.size for part in each.local.parts]) for each in layers]
    return torch.cat([torch.cat(shards) for shards in zip(*parts, strict=True)])


@names
def test_ranks_read_what_they_own(path: Path) -> None:
    if path not in FUSABLE or not can_be_cut(path, 2):
        return
    quantization = qload.read_quantization(path)
    reports = [qload.load_weights(Llama(path, quantization, Group(n, 2)), path, ignore=["QL210"]) for n in range(2)]
    whole = qload.load_weights(Llama(path, quantization), path, ignore=["QL210"])
    assert all(report.bytes_in_memory < 0.62 * whole.bytes_in_memory for report in reports)


def test_parts_that_are_quantized_differently_cannot_be_fused() -> None:
    with pytest.raises(CheckpointError, match="QL204") as caught:
        build(DATA / "gptq-dynamic-mixed")
    assert "int8 group 32" in str(caught.value)


def test_a_cut_that_does_not_fit_names_layer_tensor_unit_and_sizes() -> None:
    quantization = qload.read_quantization(DATA / "gptq-4bit-g128-asym")
    site = Site(quantization, "model.layers.0.mlp.down_proj", group=Group(0, 8))
    with pytest.raises(ShardError) as caught:
        RowParallelLinear(512, 256, site)
    error = caught.value
    assert (error.unit, error.sizes) == (128, (1, 2, 4))
    assert error.where.startswith("model.layers.0.mlp.down_proj.")
    assert "tensor-parallel sizes that fit: 1, 2, 4" in str(error)


def test_rows_that_do_not_divide_raise() -> None:
    site = Site(qload.read_quantization(DEMO), "model.layers.0.self_attn.qkv_proj", group=Group(0, 3))
    with pytest.raises(ShardError, match="4 heads of q_proj cannot be divided by 3") as caught:
        QKVParallelLinear(256, 64, 4, 2, site)
    assert caught.value.sizes == (1, 2, 4)


def test_what_the_model_does_not_read_is_an_error_unless_waived(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    edit_tensors(folder, lambda tensors: tensors.update(surplus=torch.zeros(3)))
    quantization = qload.read_quantization(folder)
    with pytest.raises(CheckpointError, match="QL210 surplus"):
        qload.load_weights(Llama(folder, quantization), folder)
    report = qload.load_weights(Llama(folder, quantization), folder, ignore=["QL210"])
    assert [finding.where for finding in errors(report.findings)] == ["surplus"]


def test_a_prefix_for_models_inside_models() -> None:
    (model,) = build(DEMO)
    inner: Any = nn.ModuleDict({"norm": nn.Module()})
    inner["norm"].weight = nn.Parameter(torch.empty(256))
    qload.load_weights(inner, DEMO, prefix="model.", ignore=["QL210"])
    assert torch.equal(inner["norm"].weight, model.model.norm.weight)
    inner["norm"].weight = nn.Parameter(torch.empty(256))
    qload.load_tensors(inner, {"model.norm.weight": torch.ones(256)}, qload.read_quantization(DEMO), prefix="model.")
    assert inner["norm"].weight.tolist() == [1.0] * 256


def test_loading_again_gives_the_same() -> None:
    path = DATA / "gptq-4bit-g32-sym-descact"
    (model,) = build(path)
    before = qload.dequantize(model.model.layers[0].mlp.down_proj).clone()
    qload.load_weights(model, path, ignore=["QL210"])
    assert torch.equal(qload.dequantize(model.model.layers[0].mlp.down_proj), before)


def test_a_layer_without_a_name_for_its_parts() -> None:
    site = Site(qload.read_quantization(DEMO), "a.qkv_proj")
    with pytest.raises(QloadError, match="parts of a fused layer need names"):
        QKVParallelLinear(256, 64, 4, 2, site, names=("q_proj", "k_proj", ""))
