"""Quark's layouts, against what Quark itself packs and decodes (tests/goldens), and what its config means."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from qload_quark.numbers import NUMBERS
from qload_quark.runtime.activations import choose_power
from safetensors import safe_open
from samples import make_quantization
from torch import Tensor

import qload
from qload import Registry
from qload.errors import CheckpointError, ShardError
from qload.geometry import Kind, single
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.torch import ColumnParallelLinear, Layer, ReplicatedLinear, RowParallelLinear, Site, VocabParallelEmbedding
from qload.torch.parallel import Group

GOLDENS = Path(__file__).parents[1] / "goldens" / "quark.safetensors"


def read_goldens() -> dict[str, tuple[dict[str, Any], dict[str, Tensor]]]:
    """What Quark made: for each variant the settings, and the tensors."""
    with safe_open(GOLDENS, "pt") as file:
        settings = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {
        variant: (json.loads(text), {n.split(".")[1]: t for n, t in tensors.items() if n.split(".")[0] == variant})
        for variant, text in sorted(settings.items())
    }


GOLDEN = read_goldens()
WEIGHTS = [name for name in GOLDEN if not name.startswith("inputs-")]
INPUTS = [name for name in GOLDEN if name.startswith("inputs-")]
FP8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": True}
GROUP = {"dtype": "uint4", "qscheme": "per_group", "group_size": 16, "ch_axis": -1, "symmetric": False}


def section(config: dict[str, Any], pack_method: str = "reorder", **more: Any) -> dict[str, Any]:
    export = {"pack_method": pack_method, "weight_format": "real_quantized", **more.pop("export", {})}
    return {"quant_method": "quark", "global_quant_config": config, "export": export, **more}


@pytest.mark.parametrize("variant", WEIGHTS)
def test_weights_are_what_quark_decodes(variant: str, registry: Registry) -> None:
    settings, tensors = GOLDEN[variant]
    expected = tensors["dequant"]
    rows, columns = expected.shape
    quantization = make_quantization(section(settings["config"], settings["pack_method"]), registry)
    stored = {f"m.{name}": tensor for name, tensor in tensors.items() if name != "dequant"}
    layer = ReplicatedLinear(columns, rows, Site(quantization, "m"))
    qload.load_tensors(layer, stored, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer, dtype=torch.float32), expected)
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(rows, columns, Site(quantization, "m"), multiple=1, treatment=treatment)
    qload.load_tensors(table, stored, quantization, kernels=())
    ids = torch.tensor([rows - 1, 0, rows // 2, 3, 3])
    assert torch.equal(table(ids), expected[ids])


@pytest.mark.parametrize("variant", INPUTS)
def test_inputs_are_rounded_as_quark_rounds_them(variant: str, registry: Registry) -> None:
    settings, tensors = GOLDEN[variant]
    quantization = make_quantization(section(settings["config"]), registry)
    layer = ReplicatedLinear(64, 64, Site(quantization, "m"))
    stored = {f"m.{name}": tensor for name, tensor in tensors.items() if name not in ("x", "seen")}
    identity = {"m.weight": torch.eye(64).to(torch.float8_e4m3fn), "m.weight_scale": torch.tensor(1.0)}
    qload.load_tensors(layer, {**stored, **identity}, quantization, kernels=())
    # Quark multiplies by the scale of scales where it is divided by here: the last bit may differ.
    tolerance = 2e-7 if variant == "inputs-nvfp4" else 0
    assert torch.allclose(layer(tensors["x"]), tensors["seen"], rtol=tolerance, atol=0)
    layer.quantize_activations = False
    assert torch.equal(layer(tensors["x"]), tensors["x"])


@pytest.mark.parametrize(
    ("mode", "dtype", "expected"),
    [
        ("even", "fp4", [0.25, 0.25, 0.5, 0.5]),
        ("floor", "fp4", [0.25, 0.25, 0.25, 0.5]),
        ("ceil", "fp4", [0.25, 0.5, 0.5, 0.5]),
        ("even", "fp6_e2m3", [0.25, 0.25, 0.25, 0.5]),
        ("even", "fp6_e3m2", [0.0625, 0.0625, 0.0625, 0.125]),
    ],
)
def test_powers_of_two_are_chosen_by_mode(mode: str, dtype: str, expected: list[float]) -> None:
    """Even rounds to the mantissa's bits first: at 1.75 upwards for one bit, at 1.9375 for three."""
    greatest = torch.tensor([1.0, 1.7, 1.8, 2.0])
    assert choose_power(greatest, NUMBERS[dtype], mode).tolist() == expected


NAME = "model.layers.1.mlp.up_proj"
INT8 = {"dtype": "int8", "qscheme": "per_channel", "ch_axis": 0, "is_dynamic": False, "symmetric": True}


def describe(config: dict[str, Any], name: str, registry: Registry, **more: Any) -> str:
    treatment = make_quantization(config, registry).treat(ModuleInfo((name,), **more))
    return str(treatment.scheme)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, "fp8_e4m3 tensor"),
        ({"exclude": ["lm_head"]}, "fp8_e4m3 tensor"),
        ({"exclude": [NAME]}, "None"),
        ({"exclude": ["*up_proj"]}, "None"),
        ({"exclude": ["up_proj"]}, "fp8_e4m3 tensor"),
        ({"exclude": ["model.layers.1"]}, "fp8_e4m3 tensor"),
        ({"exclude": ["re:.*layers\\.1\\."]}, "None"),
        ({"exclude": ["re:layers"]}, "fp8_e4m3 tensor"),
        ({"exclude": None, "layer_quant_config": None, "layer_type_quant_config": None}, "fp8_e4m3 tensor"),
        ({"layer_quant_config": {"*mlp*": {"weight": INT8}}}, "int8 channel"),
        ({"layer_quant_config": {"*.layers.2.*": {"weight": INT8}}}, "fp8_e4m3 tensor"),
        ({"layer_quant_config": {"*mlp*": {"weight": None}, "*up_proj": {"weight": INT8}}}, "None"),
        ({"layer_quant_config": {"*mlp*": {"weight": None}, NAME: {"weight": INT8}}}, "int8 channel"),
        ({"layer_type_quant_config": {"Linear": {"weight": INT8}}}, "int8 channel"),
        ({"layer_type_quant_config": {"Conv2d": {"weight": INT8}}}, "fp8_e4m3 tensor"),
        ({"layer_quant_config": {"*mlp*": {"weight": INT8}}, "exclude": ["*mlp*"]}, "None"),
    ],
)
def test_names_come_before_classes_and_those_before_all(
    more: dict[str, Any], expected: str, registry: Registry
) -> None:
    assert describe(section({"weight": FP8}, **more), NAME, registry) == expected


def test_embeddings_and_what_is_no_linear_are_quantized_only_by_name_or_class(registry: Registry) -> None:
    table = {"kind": Kind.EMBEDDING, "classes": ("Embedding",)}
    named = section({"weight": FP8}, layer_quant_config={"*embed*": {"weight": INT8}})
    assert describe(section({"weight": FP8}), "embed_tokens", registry, **table) == "None"
    assert describe(named, "embed_tokens", registry, **table) == "int8 channel"
    assert describe(named, "embed_tokens", registry, **table, stored=frozenset({"weight"})) == "None"
    assert describe(section({"weight": FP8}), "embed_tokens", registry, kind=Kind.EMBEDDING) == "None"
    assert describe(section({"weight": FP8}), "mlp.gate", registry, classes=("Router",)) == "None"


def test_configs_of_older_versions(registry: Registry) -> None:
    """Without `export`, with `dynamic` and `axis`, and one algorithm without a list."""
    old = {"dtype": "int8", "qscheme": "per_channel", "axis": 1, "dynamic": False, "symmetric": True}
    config = {"quant_method": "quark", "global_quant_config": {"weight": old}, "algo_config": {"name": "awq"}}
    assert describe(config, "m", registry) == "int8 channel of inputs"


def cache_section(**more: Any) -> dict[str, Any]:
    cached = {"weight": FP8, "output_tensors": FP8}
    names = {"*k_proj": cached, "*v_proj": cached}
    return section({"weight": FP8}, layer_quant_config=names, export={"kv_cache_group": list(names)}, **more)


def test_keys_without_positions_are_rounded_as_outputs(registry: Registry) -> None:
    quantization = make_quantization(cache_section(), registry)
    layer = ReplicatedLinear(32, 8, Site(quantization, "k_proj"))
    weight = torch.randn(8, 32).to(torch.float8_e4m3fn)
    stored = {"weight": weight, "weight_scale": torch.tensor(2.0), "output_scale": torch.tensor(0.25)}
    qload.load_tensors(layer, {f"k_proj.{name}": tensor for name, tensor in stored.items()}, quantization, kernels=())
    assert dict(layer.named_parameters())["output_scale"].tolist() == [0.25]
    x = torch.randn(3, 32)
    plain = x @ (weight.float() * 2).T
    steps = (layer(x) / 0.25).to(torch.float8_e4m3fn).float()
    assert torch.equal(layer(x), steps * 0.25)
    assert torch.allclose(layer(x), plain, rtol=0.07, atol=0.01)
    layer.quantize_activations = False
    assert torch.allclose(layer(x), plain, atol=1e-4)
    assert not torch.allclose(layer(x), steps * 0.25, atol=1e-4)
    with pytest.raises(ShardError):
        RowParallelLinear(32, 8, Site(quantization, "k_proj", Group(0, 2)))
    del stored["output_scale"]
    with pytest.raises(CheckpointError, match=r"k_proj\.output_scale"):
        qload.load_tensors(
            layer, {f"k_proj.{name}": tensor for name, tensor in stored.items()}, quantization, kernels=()
        )


def test_a_cache_is_quantized_also_where_the_weights_are_left_alone(registry: Registry) -> None:
    cached = {"*k_proj": {"weight": FP8, "input_tensors": FP8, "output_tensors": FP8}}
    config = section({"weight": FP8}, kv_cache_quant_config=cached, exclude=["*k_proj", "*q_proj"])
    assert describe(config, "a.q_proj", registry) == "None"
    assert describe(config, "a.k_proj", registry) == "16 bits, outputs static fp8_e4m3 tensor"
    quantization = make_quantization(config, registry)
    layer = ReplicatedLinear(32, 8, Site(quantization, "k_proj"))
    weight = torch.randn(8, 32)
    stored = {"k_proj.weight": weight, "k_proj.output_scale": torch.tensor(0.25)}
    qload.load_tensors(layer, stored, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), weight)


def test_keys_and_values_with_positions_are_rounded_in_the_cache(registry: Registry) -> None:
    """Their scales lie beside the projections, which do not round their outputs then."""
    values = {**FP8, "dtype": "int8"}
    cached = {f"*{name}_proj": {"weight": FP8, "output_tensors": each} for name, each in (("k", FP8), ("v", values))}
    config = section({"weight": FP8}, kv_cache_quant_config=cached, kv_cache_post_rope=True)
    quantization = make_quantization(config, registry)
    treatment = quantization.treat(ModuleInfo(("a.self_attn",), Kind.KV_CACHE))
    assert str(treatment.scheme) == "kv cache static fp8_e4m3 tensor, kv cache static int8 tensor"
    layer = Layer(single(2, 1, kind=Kind.KV_CACHE), (Source("a.self_attn"),), Site(quantization, "a"), treatment)
    keys = "a.self_attn.k_proj.output_scale"
    scales = {keys: torch.tensor(0.5), keys.replace("k_", "v_"): torch.tensor([0.1])}
    qload.load_tensors(layer, scales, quantization, kernels=())
    states = torch.randn(1, 2, 3, 4)
    assert layer.hooks.cache is not None
    found = layer.hooks.cache(layer.pieces()[0], states, states)
    assert torch.equal(found[0], (states / 0.5).to(torch.float8_e4m3fn).float() * 0.5)
    assert torch.equal(found[1], (states / 0.1).round() * torch.tensor(0.1))
    projection = ReplicatedLinear(4, 4, Site(quantization, "a.self_attn.k_proj"))
    weight = {"a.self_attn.k_proj.weight": torch.eye(4).to(torch.float8_e4m3fn)}
    tensors = {**weight, "a.self_attn.k_proj.weight_scale": torch.tensor(1.0), keys: torch.tensor(0.5)}
    qload.load_tensors(projection, tensors, quantization, kernels=())
    assert torch.equal(projection(states), states)
    unasked = make_quantization({**config, "kv_cache_post_rope": False}, registry)
    assert unasked.treat(ModuleInfo(("a.self_attn",), Kind.KV_CACHE)).scheme is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"weight": {**FP8, "dtype": "mx9"}}, "'mx9' is not one of"),
        ({"weight": {**FP8, "dtype": "mx", "mx_element_dtype": "int8"}}, "mx_element_dtype 'int8'"),
        ({"weight": {**FP8, "is_dynamic": True}}, "while computing"),
        ({"weight": {**FP8, "qscheme": None}}, "without a qscheme"),
        ({"weight": {**FP8, "dtype": "fp4"}}, "weights of fp4 tensor"),
        ({"weight": {**FP8, "dtype": "int3"}}, "cannot be packed"),
        ({"weight": {**FP8, "dtype": "int8", "qscheme": "per_block", "block_size": [8, 8]}}, "int8 block 8x8"),
        ({"weight": {**FP8, "qscheme": "per_block"}}, "per_block needs a block_size"),
        ({"weight": {**GROUP, "group_size": None}}, "positive group_size, not None"),
        ({"weight": {**GROUP, "group_size": -1}}, "positive group_size, not -1"),
        ({"weight": {**GROUP, "ch_axis": 0}}, "groups along axis 0"),
        ({"weight": {**GROUP, "scale_format": "e8m0"}}, "uint4 group 16 e8m0"),
        ({"weight": {**GROUP, "scale_format": "e9m0"}}, "scale_format 'e9m0'"),
        ({"weight": [FP8, FP8]}, "in the stages fp8_e4m3 tensor, then fp8_e4m3 tensor"),
        ({"weight": [INT8, {**FP8, "is_scale_quant": True}]}, "scaled scales of int8 channel"),
        ({"weight": FP8, "bias": FP8}, "the bias is quantized"),
        ({"weight": FP8, "output_tensors": {**FP8, "qscheme": "per_channel"}}, "outputs of fp8_e4m3 channel"),
        ({"weight": FP8, "output_tensors": [FP8, FP8]}, "outputs of fp8_e4m3 tensor"),
        ({"weight": FP8, "input_tensors": INT8}, "static inputs of int8 channel"),
        ({"weight": FP8, "input_tensors": {**INT8, "is_dynamic": True, "ch_axis": -1}}, "by features"),
        ({"weight": FP8, "input_tensors": {**INT8, "is_dynamic": True, "dtype": "uint8"}}, "dynamic inputs of uint8"),
        ({"weight": FP8, "input_tensors": [FP8, FP8]}, "inputs in the stages"),
    ],
)
def test_what_is_refused(config: dict[str, Any], reason: str, registry: Registry) -> None:
    with pytest.raises(ValueError, match=reason):
        make_quantization(section(config), registry).treat(ModuleInfo(("m",)))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"export": {"weight_format": "fake_quantized"}}, "'fake_quantized' is not real_quantized"),
        ({"softmax_quant_spec": FP8}, "softmax_quant_spec"),
        ({"algo_config": [{"name": "rotation", "r1": True, "r4": True}]}, r"rotated while computing \(r4\)"),
    ],
)
def test_what_is_refused_of_all_modules(more: dict[str, Any], reason: str, registry: Registry) -> None:
    quantization = make_quantization(section({"weight": FP8}, exclude=["other"], **more), registry)
    assert quantization.treat(ModuleInfo(("other",))).scheme is None
    with pytest.raises(ValueError, match=reason):
        quantization.treat(ModuleInfo(("m",)))


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "quark"},
        section({"weight": {"qscheme": "per_tensor"}}),
        section({"weight": {**FP8, "qscheme": "per_planet"}}),
        section({"weight": FP8}, pack_method="shuffle"),
        section({"weight": FP8}, exclude=["re:("]),
        section({"weight": {**FP8, "qscheme": "per_block", "block_size": [0, 8]}}),
    ],
    ids=str,
)
def test_configs_that_make_no_sense(config: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization(config, registry)


def test_ranks_take_whole_words_and_groups(registry: Registry) -> None:
    quantization = make_quantization(section({"weight": GROUP}), registry)
    for kind, size in ((ColumnParallelLinear, 3), (RowParallelLinear, 4)):
        with pytest.raises(ShardError):
            kind(32, 32, Site(quantization, "m", Group(0, size)))
        assert kind(32, 32, Site(quantization, "m", Group(0, 2))).local.extents


def test_a_scale_or_zero_point_that_is_missing_is_found(registry: Registry) -> None:
    settings, tensors = GOLDEN["uint4-group-reorder"]
    quantization = make_quantization(section(settings["config"]), registry)
    for missing in ("weight_scale", "weight_zero_point"):
        stored = {f"m.{name}": tensor for name, tensor in tensors.items() if name not in (missing, "dequant")}
        layer = ReplicatedLinear(32, 16, Site(quantization, "m"))
        with pytest.raises(CheckpointError, match=f"m.{missing}"):
            qload.load_tensors(layer, stored, quantization, kernels=())


def test_zero_points_of_symmetric_weights_may_be_left_out(registry: Registry) -> None:
    settings, tensors = GOLDEN["int4-group-symmetric"]
    quantization = make_quantization(section(settings["config"]), registry)
    layer = ReplicatedLinear(32, 16, Site(quantization, "m"))
    stored = {f"m.{name}": tensors[name] for name in ("weight", "weight_scale")}
    qload.load_tensors(layer, stored, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), tensors["dequant"])
