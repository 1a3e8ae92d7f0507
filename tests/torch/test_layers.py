"""What post-load hooks may do to a layer, and what stays true of every layer whatever its method."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from samples import DATA, DEMO, read_config
from torch import Tensor, nn

import qload
from qload.declare import channel_scale, packed
from qload.errors import CheckpointError, ModelError
from qload.geometry import Part
from qload.layout import in_, out
from qload.quantization import unquantized
from qload.torch import (
    Layer,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
    make_experts,
)
from qload.torch.parallel import Group

GATE = "model.layers.0.mlp.gate_proj"
FUSED = "model.layers.0.mlp.gate_up_proj"
TWICE = packed("weight_twice", out(), in_(), dtypes=("I8",))


def merged(name: str = "ct-w4a16-g128-asym") -> MergedColumnParallelLinear:
    site = Site(qload.read_quantization(DATA / name), FUSED)
    return MergedColumnParallelLinear(256, [("gate_proj", 512), ("up_proj", 512)], site)


def load(layer: Layer, name: str = "ct-w4a16-g128-asym") -> Layer:
    model = nn.Module()
    model.layer = layer
    qload.load_weights(model, DATA / name, ignore=["QL210"], kernels=())
    return layer


def repack(layer: nn.Module) -> None:
    """A hook that keeps one byte for each value, and no more what is stored."""
    assert isinstance(layer, Layer)
    if layer.weight_packed is not None:
        dense = layer.dequantize()
        layer.derive(TWICE, (dense * 0 + 2).to(torch.int8))
        for name in layer.declared:
            layer.set_tensor(name, None)


def apply_twice(piece: Layer, x: Tensor, bias: Tensor | None) -> Tensor:
    assert piece.weight_packed is None
    y = x @ piece.weight_twice.to(x.dtype).T
    return y if bias is None else y + bias


def with_hooks(layer: Layer) -> Layer:
    layer.hooks = replace(layer.hooks, apply=apply_twice, process=repack)  # type: ignore[arg-type]
    return layer


def test_a_hook_repacks_and_its_apply_sees_only_that() -> None:
    layer = load(with_hooks(merged()))
    assert set(dict(layer.named_parameters())) == {"weight_twice"}
    assert layer.compute(torch.ones(3, 256)).tolist() == [[512.0] * 1024] * 3


def test_the_repacking_that_the_docs_show() -> None:
    text = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()
    (code,) = re.findall(r"```python\n(def qload_process.*?)```", text, re.DOTALL)
    shown: dict[str, Any] = {"packed": packed, "in_": in_, "out": out}
    exec(compile(code, "docs/plugins.md", "exec"), shown)
    layer = merged("ct-fp8-static")
    values, scale = torch.randint(-9, 9, (1024, 256), dtype=torch.int8), torch.rand(1024)
    layer.declared = {
        "values": packed("values", out(), in_(), dtypes=("I8",)),
        "row_scale": channel_scale("row_scale", out()),
    }
    layer.set_tensor("values", values)
    layer.set_tensor("row_scale", scale)
    process, apply = shown["qload_process_weights_after_loading"], shown["qload_apply"]
    layer.hooks = replace(layer.hooks, apply=apply, process=process)
    for _ in range(2):
        process(layer)
    x = torch.randn(3, 256)
    assert layer.values is None
    assert torch.allclose(layer.compute(x), x @ (values * scale[:, None]).T, atol=1e-3)


def test_loading_again_starts_from_what_is_stored() -> None:
    layer = with_hooks(merged())
    hooks = layer.hooks
    load(layer)
    layer.hooks = replace(hooks, process=lambda _: None)
    assert torch.equal(qload.dequantize(load(layer)), qload.dequantize(load(merged())))
    assert "weight_twice" not in layer.specs
    assert set(dict(layer.named_parameters())) == set(dict(load(merged()).named_parameters()))


def test_what_is_allocated_anew_has_nothing_derived() -> None:
    layer = merged()
    layer.derive(TWICE, torch.zeros(1024, 256, dtype=torch.int8))
    layer.allocate("cpu")
    assert set(dict(layer.named_parameters())) == set(layer.specs) == set(merged().specs)


def test_what_is_cast_when_it_is_read_is_allocated_so() -> None:
    site = Site(unquantized(qload.Registry.discover()), "layer", dtype=torch.bfloat16)
    layer = ReplicatedLinear(4, 2, site, bias=True)
    assert {tensor.dtype for tensor in layer.parameters()} == {torch.bfloat16}


def test_what_a_hook_derived_is_cast_no_more_than_what_is_stored() -> None:
    layer: Any = merged()
    layer.derive(channel_scale("derived_scale", out()), torch.ones(1024))
    layer.half()
    assert layer.derived_scale.dtype == torch.float32
    assert layer.dtype == torch.float16


def test_a_dtype_to_compute_in_is_for_floats_of_two_bytes() -> None:
    """A scale of 8 bits means what its dtype says, and one of 32 is stored so as not to be rounded."""
    layer = merged()
    stored = {"wide": torch.float32, "usual": torch.bfloat16, "narrow": torch.float8_e4m3fn}
    for name, dtype in stored.items():
        layer.derive(channel_scale(name, out(), dtypes=("F32", "BF16", "F8_E4M3")), torch.ones(1024).to(dtype))
    (piece,) = layer.pieces(dtype=torch.float16)
    found = {name: getattr(piece, name).dtype for name in stored}
    assert found == {**stored, "usual": torch.float16}
    assert layer.dequantize(torch.float16).dtype == torch.float16


def test_a_bias_counts_and_every_tensor_is_told_of() -> None:
    plain = unquantized(qload.Registry.discover())
    layer = ReplicatedLinear(4, 2, Site(plain, "layer"), bias=True)
    stored = {"layer.weight": torch.ones(2, 4), "layer.bias": torch.ones(2)}
    report = qload.load_tensors(layer, stored, plain)
    assert report.bytes_read == report.bytes_in_memory == report.bytes_dense == 40
    steps: list[qload.Progress] = []
    model = nn.ModuleDict({"layer": merged()})
    found = qload.load_weights(model, DEMO, ignore=["QL210"], progress=steps.append)
    assert steps[-1] == qload.Progress(found.bytes_read, found.bytes_read, "layer")


@pytest.mark.parametrize("trains", [True, False])
def test_a_plain_parameter_trains_after_a_load_if_it_did_before(trains: bool) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(2), requires_grad=trains)
    model.count = nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)
    stored = {"weight": torch.ones(2), "count": torch.ones(2, dtype=torch.int32)}
    qload.load_tensors(model, stored, qload.read_quantization(DEMO), kernels=())
    assert [(each.requires_grad, each.tolist()) for each in model.parameters()] == [(trains, [1, 1]), (False, [1, 1])]


def test_no_hook_runs_on_a_layer_whose_scales_are_bad() -> None:
    name = "ct-fp8-static"
    layer, ran = merged(name), list[nn.Module]()
    layer.hooks = replace(layer.hooks, process=ran.append)
    stored = load_file(DATA / name / "model.safetensors")
    stored["model.layers.0.mlp.up_proj.weight_scale"] *= float("nan")
    held = {key: tensor for key, tensor in stored.items() if "layers.0.mlp.gate" in key or "layers.0.mlp.up" in key}
    with pytest.raises(CheckpointError, match="QL501"):
        qload.load_tensors(layer, held, qload.read_quantization(DATA / name), kernels=())
    assert ran == []


@pytest.mark.parametrize("first", [0, 64, -1])
def test_ranks_read_the_columns_groups_from_the_index(first: int) -> None:
    """One that says what the positions say, and is dropped for the whole, and two that do not."""
    path, name = DATA / "gptq-4bit-g32-sym-descact", "model.layers.0.mlp.down_proj"
    stored = {key: value for key, value in load_file(path / "model.safetensors").items() if key.startswith(name)}
    columns = torch.arange(512)
    stored[f"{name}.g_idx"] = (((columns + first) % 512) // 32).to(torch.int32)
    quantization = qload.read_quantization(path)
    layers = [
        RowParallelLinear(512, 256, Site(quantization, name, Group(rank, size)))
        for rank, size in ((0, 1), (0, 2), (1, 2))
    ]
    for layer in layers:
        qload.load_tensors(layer, stored, quantization, kernels=())
    whole, *shards = (qload.dequantize(layer) for layer in layers)
    assert torch.equal(torch.cat(shards, 1), whole)
    assert layers[0].g_idx is None if first == 0 else layers[0].g_idx is not None


@pytest.mark.parametrize("size", [1, 2])
def test_an_index_of_no_groups_means_no_order(size: int) -> None:
    """compressed-tensors writes -1 for every column where it did not order them."""
    path, name = DATA / "ct-w4a16-g128-sym-actorder-group", "model.layers.0.mlp.down_proj"
    stored = {key: value for key, value in load_file(path / "model.safetensors").items() if key.startswith(name)}
    quantization = qload.read_quantization(path)

    def weight(index: Tensor) -> Tensor:
        layers = [RowParallelLinear(512, 256, Site(quantization, name, Group(rank, size))) for rank in range(size)]
        for layer in layers:
            qload.load_tensors(layer, {**stored, f"{name}.weight_g_idx": index.to(torch.int32)}, quantization)
        return torch.cat([qload.dequantize(layer) for layer in layers], 1)

    in_order = weight(torch.arange(512) // 128)
    assert not torch.equal(in_order, weight(stored[f"{name}.weight_g_idx"]))
    assert torch.equal(in_order, weight(torch.full((512,), -1)))


def test_a_layer_shows_its_share() -> None:
    site = Site(qload.read_quantization(DEMO), FUSED, group=Group(0, 2))
    shown = repr(MergedColumnParallelLinear(256, [("gate_proj", 512), ("up_proj", 512)], site))
    scheme = "compressed-tensors int4 group 128 asymmetric"
    assert shown == f"MergedColumnParallelLinear(in_features=256, out_features=512, {scheme}, rank 0 of 2)"
    assert repr(merged()) == f"MergedColumnParallelLinear(in_features=256, out_features=1024, {scheme})"


def test_a_derived_tensor_is_cut_into_parts_and_experts() -> None:
    site = Site(qload.read_quantization(DATA / "ct-qwen3moe-w4a16"), "model.layers.0.mlp.experts")
    stack = make_experts(4, 256, 128, site, gate=lambda x: x).gate_up_proj
    stack.derive(TWICE, torch.zeros(4, 256, 256, dtype=torch.int8))
    assert stack.pieces(2)[0].weight_twice.shape == (256, 256)
    with pytest.raises(ModelError, match=r"weight_twice: .*expected \[4, 256, 256\], found \[256, 256\]"):
        stack.derive(TWICE, torch.zeros(256, 256, dtype=torch.int8))


def test_a_derived_tensor_has_a_name_of_its_own() -> None:
    with pytest.raises(ModelError, match="a name of its own"):
        merged().derive(packed("weight_packed", out(), in_(), dtypes=("I32",)), torch.zeros(1024, 256))


def test_a_fused_layer_is_one_piece_where_its_columns_are_in_order() -> None:
    """GPTQ's index of groups has a row for each part, and is dropped where it says nothing."""
    ordered, reordered = "gptq-4bit-g128-asym", "gptq-4bit-g32-sym-descact"
    assert len(load(merged(ordered), ordered).pieces()) == 1
    assert len(load(merged(reordered), reordered).pieces()) == 2


@pytest.mark.parametrize("name", ["ct-fp8-static", "gptq-4bit-g32-sym-descact", "ct-w4a16-g128-asym"])
def test_what_a_layer_computes_lies_together(name: str) -> None:
    layer = load(merged(name), name)
    layer.quantize_activations = False
    x = torch.randn(2, 5, 256)
    y = layer.compute(x)
    assert y.is_contiguous()
    assert torch.allclose(y, x @ qload.dequantize(layer).float().T, atol=1e-3)


@pytest.mark.parametrize(("name", "count"), [("ct-fp8-static", 2), ("ct-w4a16-g128-asym", 1)])
def test_a_bias_is_added_once_to_however_many_pieces(name: str, count: int) -> None:
    site = Site(qload.read_quantization(DATA / name), FUSED)
    layer = MergedColumnParallelLinear(256, [("gate_proj", 512), ("up_proj", 512)], site, bias=True)
    plain, bias = load(merged(name), name), torch.randn(1024)
    for leaf in plain.specs:
        layer.set_tensor(leaf, getattr(plain, leaf))
    assert layer.specs.keys() == {*plain.specs, "bias"}
    layer.set_tensor("bias", bias)
    layer.quantize_activations = plain.quantize_activations = False
    x = torch.randn(3, 256)
    assert len(layer.pieces()) == count
    assert torch.allclose(layer.compute(x), plain.compute(x) + bias, atol=1e-5)


def test_projections_of_attention_are_fused_with_their_biases() -> None:
    path = DATA / "ct-qwen2-tied-w8a8"
    theirs = qload.load(path, dtype=torch.float32, quantize_activations=False).model.layers[0].self_attn
    config = read_config(path)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    site = Site(qload.read_quantization(path), "model.layers.0.self_attn.qkv_proj")
    head_size = config["hidden_size"] // heads
    layer = QKVParallelLinear(config["hidden_size"], head_size, heads, kv_heads, site, bias=True)
    load(layer, path.name).quantize_activations = False
    x = torch.randn(3, config["hidden_size"])
    expected = torch.cat([each(x) for each in (theirs.q_proj, theirs.k_proj, theirs.v_proj)], -1)
    assert torch.allclose(layer(x), expected, atol=1e-4)


@pytest.mark.parametrize("multiple", [1, 64])
def test_each_row_of_a_table_is_looked_up_on_one_rank(multiple: int) -> None:
    quantization = unquantized(qload.Registry.discover())
    weight, ids, found = torch.randn(130, 8), torch.arange(130), torch.zeros(130, 8)
    for rank in range(2):
        table = VocabParallelEmbedding(130, 8, Site(quantization, "t", Group(rank, 2)), multiple=multiple)
        qload.load_tensors(table, {"t.weight": weight}, quantization)
        found += table.look_up(ids)
    assert torch.equal(found, weight)


def test_interleaved_parts_are_computed_as_they_lie() -> None:
    layer = load(merged("ct-fp8-static"), "ct-fp8-static")
    parts = (Part("gate_proj", 512), Part("up_proj", 512))
    x = torch.randn(3, 256)
    gate, up = layer.compute(x).chunk(2, -1)
    layer.geometry = type(layer.geometry)(256, parts, dtype="F32", interleaved=True)
    assert torch.equal(layer.compute(x), torch.stack((gate, up), -1).flatten(-2))


def test_an_embedding_gives_the_dtype_it_was_moved_to() -> None:
    model = qload.load(DATA / "ct-w4a16-lmhead-embed")
    table = model.get_input_embeddings()
    assert table(torch.tensor([1])).dtype == torch.bfloat16
    scales = table.weight_scale.dtype
    nn.Module.to(table, torch.float16)
    assert table(torch.tensor([1])).dtype == torch.float16
    assert table.weight_scale.dtype == scales


def test_code_that_reaches_for_the_weight_gets_it_dense() -> None:
    """In the dtype that the layer computes in; a plain layer gives its own, and what is not there is an error."""
    layer: Any = load(merged())
    assert torch.equal(layer.weight, qload.dequantize(layer).to(layer.dtype))
    assert layer.weight.dtype == layer.dtype != qload.dequantize(layer).dtype
    plain = qload.load(DEMO).get_output_embeddings()
    assert plain.weight is plain._parameters["weight"]
    with pytest.raises(AttributeError, match="no attribute 'scales'"):
        _ = layer.scales


def test_a_layer_that_is_moved_and_cast_at_once_moves_whole_and_keeps_what_is_stored() -> None:
    layer = load(merged())
    kept = {name: tensor.dtype for name, tensor in layer.named_parameters()}
    layer.to("meta", torch.float16)
    assert all(tensor.is_meta for tensor in layer.parameters())
    assert {name: tensor.dtype for name, tensor in layer.named_parameters()} == kept
    assert layer.dtype == torch.float16


def test_a_weight_is_computed_in_the_dtype_that_is_asked_for() -> None:
    model = qload.load(DEMO)
    for layer in (model.get_output_embeddings(), model.model.layers[0].mlp.down_proj):
        assert qload.dequantize(layer, dtype=torch.float16).dtype == torch.float16


def test_only_our_layers_can_be_dequantized() -> None:
    with pytest.raises(ModelError, match=r"found Linear\); take the layer out of a model"):
        qload.dequantize(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_piece_names_the_tensor_that_is_not_declared() -> None:
    site = Site(qload.read_quantization(DEMO), GATE)
    with pytest.raises(AttributeError, match="declares no tensor 'qweight'"):
        _ = ReplicatedLinear(256, 512, site).pieces()[0].qweight
