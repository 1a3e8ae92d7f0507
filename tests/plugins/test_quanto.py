"""Quanto's layouts and activations, against what optimum-quanto itself stores and computes, and its configs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qload_quanto import choose_group
from safetensors.torch import save_file
from samples import make_quantization
from torch import Tensor
from variants import Variant, read_variants

import qload
from qload import Quantization, Registry
from qload.checkpoint import Checkpoint
from qload.errors import CheckpointError, ShardError
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.resolution import resolve
from qload.torch import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
)
from qload.torch.parallel import Group

VARIANTS = read_variants("quanto")
ROUNDING = [each for each in VARIANTS if "output" in each.made]


def section(weights: str, activations: str = "none", *names: str) -> dict[str, Any]:
    modules = {name: {"weights": weights, "activations": activations} for name in names or ("m",)}
    return {"quant_method": "quanto", "modules": modules}


def load(variant: Variant, registry: Registry) -> tuple[ReplicatedLinear, Quantization]:
    settings = variant.settings
    quantization = make_quantization(section(settings["weights"], settings["activations"]), registry)
    quantization.modules = {"m": {key.removeprefix("m."): key for key in variant.stored}}
    rows, columns = settings["shape"]
    site = Site(quantization, "m", dtype=getattr(torch, settings["dtype"]))
    layer = ReplicatedLinear(columns, rows, site, bias="m.bias" in variant.stored)
    qload.load_tensors(layer, variant.stored, quantization, kernels=())
    return layer, quantization


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_weights_are_what_quanto_makes_of_them(variant: Variant, registry: Registry) -> None:
    layer, _ = load(variant, registry)
    expected = variant.made["dequantized"]
    assert torch.equal(qload.dequantize(layer), expected)
    assert qload.dequantize(layer).dtype == expected.dtype


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("variant", [each for each in VARIANTS if "m.bias" not in each.stored], ids=str)
def test_rows_are_looked_up_in_tables_with_and_without_padding(
    variant: Variant, multiple: int, registry: Registry
) -> None:
    layer, quantization = load(variant, registry)
    rows, columns = variant.settings["shape"]
    table = VocabParallelEmbedding(
        rows, columns, Site(quantization, "m", dtype=layer.dtype), multiple=multiple, treatment=layer.treatment
    )
    qload.load_tensors(table, variant.stored, quantization, kernels=())
    expected = variant.made["dequantized"]
    ids = torch.tensor([rows - 1, 0, rows // 2])
    assert torch.equal(table(ids), expected[ids])
    assert torch.equal(table.dequantize()[:rows], expected)
    assert not table.dequantize()[rows:].any()


@pytest.mark.parametrize("variant", ROUNDING, ids=str)
def test_inputs_and_outputs_are_rounded_as_quanto_rounds_them(variant: Variant, registry: Registry) -> None:
    layer, _ = load(variant, registry)
    x, expected = variant.made["input"], variant.made["output"]
    assert torch.allclose(layer(x), expected, atol=1e-6)
    layer.quantize_activations = False
    plain = x @ variant.made["dequantized"].T + variant.stored["m.bias"]
    assert torch.allclose(layer(x), plain, atol=1e-5)
    assert not torch.allclose(layer(x), expected, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_what_quanto_stores_has_no_findings(variant: Variant, tmp_path: Path) -> None:
    save_file(variant.stored, tmp_path / "model.safetensors")
    modules = section(variant.settings["weights"], variant.settings["activations"])["modules"]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "quanto_qmap.json").write_text(json.dumps(modules))
    report = qload.validate(tmp_path)
    assert (report.method, report.findings) == ("quanto", ())


def test_outputs_of_fused_parts_are_rounded_with_their_own_bias_and_scale(registry: Registry) -> None:
    variant = ROUNDING[0]
    rows, columns = variant.settings["shape"]
    quantization = make_quantization(section("qint8", "qint8", "a", "b"), registry)
    stored = {key.replace("m.", f"{name}."): tensor for name in "ab" for key, tensor in variant.stored.items()}
    stored["b.output_scale"] = stored["b.output_scale"] * 3
    layer = MergedColumnParallelLinear(columns, [("a", rows), ("b", rows)], Site(quantization, "ab"), bias=True)
    qload.load_tensors(layer, stored, quantization, kernels=())
    first, second = layer(variant.made["input"]).chunk(2, -1)
    assert torch.allclose(first, variant.made["output"], atol=1e-6)
    steps = second / stored["b.output_scale"]
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("columns", "group"),
    [(32, None), (128, None), (129, None), (256, 128), (192, 96), (160, 32), (320, 64), (384, 128), (145, None)],
)
def test_the_group_size_follows_from_the_inputs(columns: int, group: int | None) -> None:
    assert choose_group(columns) == group


def stripes(codes: Tensor, bits: int) -> Tensor:
    """Rows of codes in as many stripes as a byte has values, the first in the lowest bits, byte by byte."""
    count = 8 // bits
    rows = -(-len(codes) // count)
    packed = torch.zeros(rows, codes.shape[1], dtype=torch.uint8)
    for row in range(len(codes)):
        packed[row % rows] |= codes[row].to(torch.uint8) << (bits * (row // rows))
    return packed


def packed_module(rows: int, columns: int, bits: int) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(rows)
    group = choose_group(columns) or columns
    count = rows * columns // group
    codes = torch.randint(0, 1 << bits, (count, group))
    scale, shift = torch.rand(count, 1) + 0.5, torch.rand(count, 1)
    stored = {"_data._data": stripes(codes, bits), "_scale": scale, "_shift": shift}
    weight = (codes * scale - shift).view(rows, columns)
    inert = {f"m.{name}": torch.ones(()) for name in ("input_scale", "output_scale")}
    return {**{f"m.weight.{leaf}": tensor for leaf, tensor in stored.items()}, **inert}, weight


@pytest.mark.parametrize(("bits", "columns"), [(4, 256), (2, 256), (4, 192), (4, 64), (2, 130)])
def test_ranks_take_whole_groups_of_inputs(bits: int, columns: int, registry: Registry) -> None:
    quantization = make_quantization(section(f"qint{bits}"), registry)
    stored, expected = packed_module(8, columns, bits)
    for rank in range(2):
        layer = RowParallelLinear(columns, 8, Site(quantization, "m", Group(rank, 2)))
        qload.load_tensors(layer, stored, quantization, kernels=())
        assert torch.equal(qload.dequantize(layer), expected.chunk(2, 1)[rank])
    with pytest.raises(ShardError, match="the axis out"):
        ColumnParallelLinear(columns, 8, Site(quantization, "m", Group(0, 2)))


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8"])
def test_outputs_can_only_be_rounded_where_all_inputs_are(weights: str, registry: Registry) -> None:
    quantization = make_quantization(section(weights, "qint8"), registry)
    with pytest.raises(ShardError, match="the axis in"):
        RowParallelLinear(256, 64, Site(quantization, "m", Group(0, 2)))
    plain = make_quantization(section(weights), registry)
    assert RowParallelLinear(256, 64, Site(plain, "m", Group(0, 2))).in_features == 128


@pytest.mark.parametrize("weights", ["qint8", "qint4", "qfloat8"])
def test_a_weight_that_is_not_frozen_may_have_rows_of_zeros(weights: str, registry: Registry) -> None:
    quantization = make_quantization(section(weights), registry)
    quantization.modules = {"m": {leaf: f"m.{leaf}" for leaf in ("weight", "input_scale", "output_scale")}}
    layer = ReplicatedLinear(32, 2, Site(quantization, "m"))
    weight = torch.cat([torch.zeros(1, 32), torch.full((1, 32), 0.5)])
    qload.load_tensors(layer, {"m.weight": weight}, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), weight)
    assert "not frozen" in layer.treatment.label
    with pytest.raises(ShardError, match="the axis in"):
        RowParallelLinear(32, 2, Site(quantization, "m", Group(0, 2)))


def test_a_map_beside_the_weights_is_a_claim(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "quanto_qmap.json").write_text(json.dumps(section("qint8")["modules"]))
    found = resolve(Checkpoint(tmp_path, {}, {}, files=("quanto_qmap.json",)), registry)
    assert found.method.name == "quanto"
    assert str(found.treat(ModuleInfo(("m",))).scheme) == "qint8"
    assert found.treat(ModuleInfo(("lm_head",))).scheme is None
    (tmp_path / "quanto_qmap.json").write_text(json.dumps({"m": {"weights": "qint5"}}))
    with pytest.raises(CheckpointError, match=r"QL105 m.weights in quanto_qmap.json.*qint5"):
        resolve(Checkpoint(tmp_path, {}, {}, files=("quanto_qmap.json",)), registry)


@pytest.mark.parametrize(
    ("more", "name", "scheme"),
    [
        ({}, "lm_head.x", "qint8"),
        ({"weights": "float8"}, "m", "qfloat8_e4m3fn"),
        ({"weights_dtype": "int4"}, "m", "qint4"),
        ({"activations": "int8"}, "m", "qint8, activations qint8"),
        ({"activations": "float8"}, "m", "qint8, activations qfloat8_e4m3fn"),
        ({"modules_to_not_convert": ["fc1"]}, "decoder.layers.23.fc1", None),
        ({"modules_to_not_convert": ["layer.1"]}, "layer.1.attn", None),
        ({"modules_to_not_convert": ["layer.1"]}, "layer.11.attn", "qint8"),
        ({"modules_to_not_convert": ["layer.*"]}, "layer.11.attn", None),
        ({"modules_to_not_convert": ["mlp.gate"]}, "mlp.gate_proj", "qint8"),
    ],
)
def test_one_type_for_all_modules(more: dict[str, Any], name: str, scheme: str | None, registry: Registry) -> None:
    found = make_quantization({"quant_method": "quanto", **more}, registry).treat(ModuleInfo((name,))).scheme
    assert (None if found is None else str(found)) == scheme


def test_without_a_map_the_checkpoint_says_what_is_quantized(registry: Registry) -> None:
    quantization = make_quantization({"quant_method": "quanto"}, registry)
    for stored, quantized in (("weight", False), ("weight._data", True), ("weight._data._data", True)):
        module = ModuleInfo(("m",), stored=frozenset([stored]))
        assert (quantization.treat(module).scheme is not None) == quantized
    assert quantization.treat(ModuleInfo(("e",), Kind.EMBEDDING, ("Embedding",))).scheme is None


@pytest.mark.parametrize(
    "more",
    [
        {"weights": "int3"},
        {"activations": "int4"},
        {"modules_to_not_convert": ["("]},
        {"modules": {"m": {"weights": "int8"}}},
        {"modules": {"m": {"weight": "qint8"}}},
    ],
)
def test_configs_that_make_no_sense(more: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization({"quant_method": "quanto", **more}, registry)


@pytest.mark.parametrize(
    ("kinds", "classes", "reason"),
    [(("qint8", "qint4"), ("Linear",), "8 bits"), (("none", "qint8"), ("LayerNorm",), "other than linear")],
)
def test_what_is_not_supported_is_refused(
    kinds: tuple[str, str], classes: tuple[str, ...], reason: str, registry: Registry
) -> None:
    quantization = make_quantization(section(*kinds), registry)
    with pytest.raises(ValueError, match=reason):
        quantization.treat(ModuleInfo(("m",), classes=classes))


@pytest.mark.parametrize(
    ("leaf", "tensor", "code"),
    [
        ("weight._scale", None, "QL201"),
        ("weight._shift", None, "QL201"),
        ("weight._data._data", torch.zeros(3, 128, dtype=torch.uint8), "QL302"),
        ("weight._data._data", torch.zeros(8, 128), "QL308"),
        ("weight._scale", torch.full((16, 1), torch.nan), "QL501"),
        ("weight._shift", torch.zeros(16, 2), "QL305"),
        ("surplus", torch.zeros(1), "QL210"),
    ],
)
def test_tensors_that_are_not_as_declared(leaf: str, tensor: Tensor | None, code: str, registry: Registry) -> None:
    stored, _ = packed_module(8, 256, 4)
    quantization = make_quantization(section("qint4"), registry)
    changed = {**stored, f"m.{leaf}": tensor}
    present = {key: value for key, value in changed.items() if value is not None}
    with pytest.raises(CheckpointError, match=code):
        qload.load_tensors(ReplicatedLinear(256, 8, Site(quantization, "m")), present, quantization, kernels=())
