"""ModelOpt's formats, against its own classes and simulation; configs in all their shapes, caches, and refusals."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import copy_checkpoint, edit_config, edit_tensors
from safetensors import safe_open
from safetensors.torch import load_file
from samples import DATA, make_quantization
from torch import Tensor

import qload
from qload import Quantization, Registry
from qload.checkpoint import Checkpoint
from qload.errors import CheckpointError, ShardError
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.resolution import resolve
from qload.torch import (
    ColumnParallelLinear,
    Layer,
    ParallelLMHead,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
    make_experts,
)
from qload.torch.models.caching import RoundingCache
from qload.torch.parallel import Group

GOLDENS = Path(__file__).parents[1] / "goldens" / "modelopt.safetensors"
SIDE = "hf_quant_config.json"
FORMATS = (
    "fp8", "fp8-block", "fp8-channel", "int4-awq", "int8-sq", "int8-wo", "mxfp4", "mxfp8", "nvfp4", "nvfp4-awq",
    "w4a16-nvfp4", "w4a8-awq", "w4a8-mxfp4-fp8", "w4a8-nvfp4-fp8",
)  # fmt: skip
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
FP8_CACHE = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}


@cache
def goldens() -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(GOLDENS, "pt") as file:
        configs = {name: json.loads(text) for name, text in file.metadata().items()}
    return load_file(GOLDENS), configs


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of one format without its name in front, and its configs."""
    tensors, configs = goldens()
    mine = {key.removeprefix(f"{name}."): each for key, each in tensors.items() if key.startswith(f"{name}.")}
    return mine, configs[name]


def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.startswith("m.")}


def quantize(folder: Path, registry: Registry, section: object, side: object = None) -> Quantization:
    """The quantization of a checkpoint with that section in config.json, and that side file."""
    config = {} if section is None else {"quantization_config": section}
    if side is not None:
        (folder / SIDE).write_text(json.dumps(side))
    return resolve(Checkpoint(folder, config, {}, (SIDE,) if side is not None else ()), registry)


def build(name: str, folder: Path, registry: Registry) -> tuple[ReplicatedLinear, dict[str, Tensor]]:
    tensors, configs = golden(name)
    quantization = quantize(folder, registry, configs["config"], configs["side"])
    rows, columns = tensors["weight"].shape
    layer = ReplicatedLinear(columns, rows, Site(quantization, "m"))
    qload.load_tensors(layer, stored(tensors), quantization, kernels=())
    return layer, tensors


def whole(tensors: dict[str, Tensor]) -> Tensor:
    """What is to be multiplied with inputs as they come."""
    return tensors["weight"] * tensors.get("m.pre_quant_scale", torch.ones(()))


def test_the_goldens_are_of_all_formats() -> None:
    assert sorted(goldens()[1]) == sorted(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_what_the_producers_classes_make_of_them(name: str, tmp_path: Path, registry: Registry) -> None:
    layer, tensors = build(name, tmp_path, registry)
    assert torch.equal(qload.dequantize(layer), whole(tensors))
    layer.quantize_activations = False
    expected = tensors["x"] @ whole(tensors).T
    assert torch.allclose(layer(tensors["x"]), expected, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("name", FORMATS)
def test_layers_compute_what_the_producers_simulation_does(name: str, tmp_path: Path, registry: Registry) -> None:
    """Inputs are quantized after their scale; int4 weights with two scales are rounded to fp8, too."""
    layer, tensors = build(name, tmp_path, registry)
    expected = tensors["y"]
    found = torch.linalg.vector_norm(layer(tensors["x"]) - expected) / torch.linalg.vector_norm(expected)
    assert found < 3e-7


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_are_looked_up_are_the_weights(name: str, tmp_path: Path, registry: Registry) -> None:
    tensors, configs = golden(name)
    quantization = quantize(tmp_path, registry, configs["config"], configs["side"])
    rows, columns = tensors["weight"].shape
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(rows, columns, Site(quantization, "m"), multiple=1, treatment=treatment)
    own = {key: each for key, each in stored(tensors).items() if not key.endswith(("input_scale", "pre_quant_scale"))}
    qload.load_tensors(table, own, quantization, kernels=())
    ids = torch.tensor([rows - 1, 0, 1, 5, 5])
    assert torch.equal(table(ids), tensors["weight"][ids])


def test_int4_value_by_value(registry: Registry) -> None:
    """Two rows to a byte, the even one low, in two's complement; a scale for every 4 columns."""
    torch.manual_seed(0)
    pairs, scale = torch.randint(0, 256, (3, 8), dtype=torch.uint8), torch.rand(6, 2) + 0.5
    smooth = torch.rand(8).bfloat16()
    quantization = make_quantization({**NVFP4, "quant_algo": "W4A16_AWQ", "group_size": 4}, registry)
    layer = ReplicatedLinear(8, 6, Site(quantization, "m"))
    tensors = {"m.weight": pairs, "m.weight_scale": scale, "m.pre_quant_scale": smooth}
    qload.load_tensors(layer, tensors, quantization, kernels=())
    weight = qload.dequantize(layer)
    for row in range(6):
        for column in range(8):
            code = int(pairs[row // 2, column]) >> (4 if row % 2 else 0) & 15
            value = (code - 16 if code > 7 else code) * scale[row, column // 4]
            assert weight[row, column] == value * smooth[column].float()
    del tensors["m.pre_quant_scale"]
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer) * smooth.float(), weight)


def test_blocks_with_and_without_dimensions_of_one(registry: Registry) -> None:
    torch.manual_seed(0)
    weight, scale = torch.randn(200, 256).to(torch.float8_e4m3fn), torch.rand(2, 2) + 0.5
    quantization = make_quantization({**NVFP4, "quant_algo": "FP8_PB_REAL"}, registry)
    layer = ReplicatedLinear(256, 200, Site(quantization, "m"))
    for shape in ((2, 2), (2, 1, 2, 1)):
        qload.load_tensors(layer, {"m.weight": weight, "m.weight_scale": scale.view(shape)}, quantization, kernels=())
        found = qload.dequantize(layer)
        assert all(
            found[row, column] == weight[row, column].float() * scale[row // 128, column // 128]
            for row in (0, 127, 128, 199)
            for column in (0, 127, 128, 255)
        )
    with pytest.raises(CheckpointError, match="QL303"):
        qload.load_tensors(
            layer, {"m.weight": weight, "m.weight_scale": torch.rand(1, 1, 2, 1)}, quantization, kernels=()
        )


def test_fused_layers_have_a_scale_of_inputs_for_each_part(registry: Registry) -> None:
    quantization = make_quantization({**NVFP4, "quant_algo": "W8A8_SQ_PER_CHANNEL"}, registry)
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, rows in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8)):
        tensors |= {
            f"a.{name}.weight": torch.randint(-128, 127, (rows, 32), dtype=torch.int8),
            f"a.{name}.weight_scale": torch.rand(rows) + 0.5,
            f"a.{name}.input_scale": torch.tensor(0.02),
            f"a.{name}.pre_quant_scale": torch.rand(32) + 0.5,
        }
    for rank in range(2):
        layer = QKVParallelLinear(32, 4, 4, 2, Site(quantization, "a.qkv_proj", Group(rank, 2)))
        qload.load_tensors(layer, tensors, quantization, kernels=())
        expected = [
            tensors[f"{name}.weight"] * tensors[f"{name}.weight_scale"][:, None] * tensors[f"{name}.pre_quant_scale"]
            for name in ("a.q_proj", "a.k_proj", "a.v_proj")
        ]
        mine = torch.cat([part.chunk(2)[rank] for part in expected])
        assert torch.equal(qload.dequantize(layer), mine)


def test_inputs_of_blocks_share_their_columns(registry: Registry) -> None:
    torch.manual_seed(0)
    quantization = make_quantization({**NVFP4, "quant_algo": "FP8_BLOCK_SCALES"}, registry)
    layer = ReplicatedLinear(256, 8, Site(quantization, "m"))
    weight = torch.randn(8, 256).to(torch.float8_e4m3fn)
    qload.load_tensors(layer, {"m.weight": weight, "m.weight_scale": torch.ones(1, 1, 2, 1)}, quantization, kernels=())
    x = torch.randn(3, 256) * torch.linspace(0.1, 9, 256)
    halves = [half / half.abs().amax(-1, keepdim=True) * 448 for half in x.split(128, -1)]
    rounded = [half.to(torch.float8_e4m3fn).float() for half in halves]
    seen = [
        each * half.abs().amax(-1, keepdim=True) / 448 for each, half in zip(rounded, x.split(128, -1), strict=True)
    ]
    assert torch.allclose(layer(x), torch.cat(seen, -1) @ weight.float().T, rtol=1e-5, atol=1e-3)


def test_a_head_that_is_tied_to_a_quantized_table(tmp_path: Path, registry: Registry) -> None:
    """It quantizes its inputs where the table has a scale for them, which it needs for nothing else."""
    tensors, configs = golden("nvfp4")
    quantization = quantize(tmp_path, registry, configs["config"])
    treatment = quantization.treat(ModuleInfo(("m",)))
    for name, expected in (("m.input_scale", tensors["x"] @ tensors["weight"].T), ("", tensors["y"])):
        own = {key: each for key, each in stored(tensors).items() if key != name}
        table = VocabParallelEmbedding(64, 32, Site(quantization, "m"), multiple=1, treatment=treatment)
        head = ParallelLMHead(64, 32, Site(quantization, "head"), multiple=1, treatment=treatment)
        qload.load_tensors(table, own, quantization, kernels=())
        head.tie(table)
        assert torch.allclose(head(tensors["x"]), expected, atol=1e-6 * float(expected.abs().max()))


def test_experts_stored_one_by_one(tmp_path: Path, registry: Registry) -> None:
    """Each with the scales of its own, of the scales of its parts too."""
    tensors, configs = golden("nvfp4")
    quantization = quantize(tmp_path, registry, configs["config"])
    mine = {f"e.{n}.{name}.{key[2:]}": each for n in range(2) for name in ("gate_proj", "up_proj", "down_proj")
            for key, each in stored(tensors).items()}  # fmt: skip
    down = {key: each[:32] for key, each in stored(tensors).items() if each.dim()}
    for n in range(2):
        mine[f"e.{n}.up_proj.weight_scale_2"] = tensors["m.weight_scale_2"] * (n + 2)
        mine |= {f"e.{n}.down_proj.{key[2:]}": each.repeat(1, 2) for key, each in down.items()}
    experts = make_experts(2, 32, 64, Site(quantization, "e"), gate=lambda both: both.chunk(2, -1)[1])
    qload.load_tensors(experts, mine, quantization, kernels=())
    made = qload.dequantize(experts.gate_up_proj)
    weight = tensors["weight"]
    assert torch.equal(made[0][:64], weight)
    assert torch.allclose(made[1][64:], weight * 3)
    assert qload.dequantize(experts.down_proj).shape == (2, 32, 64)


@pytest.mark.parametrize(
    ("algorithm", "kind", "sizes", "fits"),
    [
        ("W4A16_AWQ", RowParallelLinear, (512, 8), 4),
        ("W4A16_AWQ", ColumnParallelLinear, (128, 6), 3),
        ("NVFP4", RowParallelLinear, (64, 8), 4),
        ("FP8_PB_WO", ColumnParallelLinear, (128, 256), 2),
    ],
)
def test_ranks_take_whole_units(algorithm: str, kind: Any, sizes: Any, fits: int, registry: Registry) -> None:
    quantization = make_quantization({**NVFP4, "quant_algo": algorithm}, registry)
    assert kind(*sizes, Site(quantization, "m", Group(0, fits))).local.extents
    with pytest.raises(ShardError):
        kind(*sizes, Site(quantization, "m", Group(0, 2 * fits)))


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"])
@pytest.mark.parametrize("excluded", [False, True])
def test_scales_of_a_cache_lie_beside_projections(name: str, excluded: bool, registry: Registry) -> None:
    """Also beside those that are not quantized; fused layers are treated alike."""
    entries = ["*self_attn*"] if excluded else []
    quantization = make_quantization({**FP8_CACHE, "ignore": entries}, registry)
    scheme = quantization.treat(ModuleInfo((name,))).scheme
    assert str(scheme) == ("unquantized, kv cache" if excluded else "fp8 tensor, inputs static fp8, kv cache")
    other = quantization.treat(ModuleInfo(("model.layers.0.mlp.up_proj",)))
    assert "cache" not in str(other.scheme)


@pytest.mark.parametrize("excluded", [False, True])
def test_fused_layers_leave_the_scales_of_a_cache_to_the_attention(excluded: bool, registry: Registry) -> None:
    """k_proj has that of keys, v_proj that of values, and q_proj none."""
    quantization = make_quantization({**FP8_CACHE, "ignore": ["a*"] if excluded else []}, registry)
    dense = torch.randn(64, 32)
    tensors: dict[str, Tensor] = {}
    for name in ("q_proj", "k_proj", "v_proj"):
        more = {"weight_scale": torch.tensor(0.5), "input_scale": torch.tensor([0.1])}
        quantized = {"weight": dense.to(torch.float8_e4m3fn), **more}
        tensors |= {f"a.{name}.{key}": each for key, each in ({"weight": dense} if excluded else quantized).items()}
    tensors |= {"a.k_proj.k_scale": torch.tensor(0.25), "a.v_proj.v_scale": torch.tensor([0.75])}
    layer = QKVParallelLinear(32, 16, 4, 4, Site(quantization, "a.qkv_proj"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert not {"k_scale", "v_scale"} & dict(layer.named_parameters()).keys()
    expected = dense if excluded else dense.to(torch.float8_e4m3fn).float() * 0.5
    assert torch.equal(qload.dequantize(layer), expected.repeat(3, 1))
    with pytest.raises(CheckpointError, match=r"QL304 a\.k_proj\.k_scale|QL308 a\.k_proj\.k_scale"):
        qload.load_tensors(layer, {**tensors, "a.k_proj.k_scale": torch.tensor(1)}, quantization, kernels=())
    del tensors["a.k_proj.k_scale"], tensors["a.v_proj.v_scale"]
    qload.load_tensors(layer, tensors, quantization, kernels=())


@pytest.mark.parametrize("below", ["k_proj.", ""])
def test_keys_and_values_are_rounded_by_scales_beside_the_projections(below: str, tmp_path: Path) -> None:
    """Of a whole model: each scale is read once, by the attention, wherever it lies."""
    folder = copy_checkpoint(DATA / "base", tmp_path / "cache")
    section = {"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    edit_config(folder, lambda config: config.update(quantization_config=section))
    above = [f"model.layers.{layer}.self_attn" for layer in (0, 1)]
    names = [f"{name}.{below.replace('k', each)}{each}_scale" for name in above for each in "kv"]
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.tensor(2.0) for name in names}))
    assert qload.validate(folder).ok
    model = qload.load(folder)
    assert qload.report(model).layers["modelopt kv cache static fp8"] == 2
    scales = model.get_submodule("model.layers.1.self_attn.kv_scales")
    assert isinstance(scales, Layer)
    states = torch.randn(1, 2, 3, 4)
    rounded = (states / 2).to(torch.float8_e4m3fn).float() * 2
    assert all(torch.equal(found, rounded) for found in RoundingCache(None, scales).update(states, states))
    ids = torch.tensor([[3, 14, 15, 92]])
    with torch.inference_mode():
        assert not torch.equal(model(ids).logits, qload.load(DATA / "base")(ids).logits)
    edit_tensors(folder, lambda tensors: tensors.__delitem__(names[3]))
    assert [(each.code, each.where) for each in qload.validate(folder).errors] == [("QL201", names[3])]
    with pytest.raises(CheckpointError, match="QL201"):
        qload.load(folder)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("FP8", "kv cache static fp8"),
        ("INT8", "kv cache static int8"),
        ({"num_bits": 4, "type": "float"}, "kv cache static nvfp4"),
        ("NVFP4_AFFINE", "NVFP4_AFFINE is not one of FP8, INT8, NVFP4"),
        ({"num_bits": 2, "type": "int"}, "is not one of"),
    ],
)
def test_what_a_cache_is_rounded_to(written: Any, expected: str, registry: Registry) -> None:
    quantization = make_quantization({"quant_method": "modelopt", "kv_cache_scheme": written}, registry)
    attention = ModuleInfo(("a.self_attn",), Kind.KV_CACHE, (), frozenset({"k_proj.k_scale", "v_proj.v_scale"}))
    if expected.startswith("kv"):
        assert str(quantization.treat(attention).scheme) == expected
        return
    with pytest.raises(ValueError, match=expected):
        quantization.treat(attention)


def test_a_cache_around_a_bias_is_refused(registry: Registry) -> None:
    stored = frozenset({"k_proj.k_scale", "k_proj.k_bias", "v_proj.v_scale"})
    with pytest.raises(ValueError, match="around a bias"):
        make_quantization(FP8_CACHE, registry).treat(ModuleInfo(("a.self_attn",), Kind.KV_CACHE, (), stored))


def test_scales_of_a_cache_below_the_attention(registry: Registry) -> None:
    """As Megatron's exporter stores them; a cache alone may be all that is quantized."""
    attention = ModuleInfo(("a.self_attn",), Kind.KV_CACHE, (), frozenset({"k_scale", "v_scale"}))
    quantization = make_quantization({"quant_method": "modelopt", "kv_cache_scheme": "NVFP4"}, registry)
    treatment = quantization.treat(attention)
    assert str(treatment.scheme) == "kv cache static nvfp4"
    assert quantization.treat(ModuleInfo(("a.self_attn",), Kind.KV_CACHE)).scheme is None
    assert make_quantization(NVFP4, registry).treat(attention).scheme is None
    assert quantization.treat(ModuleInfo(("a.mlp.up_proj",))).scheme is None


@pytest.mark.parametrize(
    ("entry", "name", "excluded"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", False),
        ("*lm_head", "model.lm_head", True),
        ("model.layers.1.*", "model.layers.1.mlp.up_proj", True),
        ("model.layers.1.*", "model.layers.10.mlp.up_proj", False),
        ("model.layers.1*", "model.layers.10.mlp.up_proj", True),
        ("model.vision_tower", "model.vision_tower.blocks.0.qkv", True),
        ("*self_attn*", "model.layers.0.self_attn.o_proj", True),
        ("model.layers.0.mlp.gate", "model.layers.0.mlp.gate_proj", False),
        ("model.layers.[01].mlp.gate", "model.layers.1.mlp.gate", True),
    ],
)
@pytest.mark.parametrize("key", ["ignore", "exclude_modules"])
def test_what_is_left_alone(key: str, entry: str, name: str, excluded: bool, registry: Registry) -> None:
    treatment = make_quantization({**NVFP4, key: [entry]}, registry).treat(ModuleInfo((name,)))
    assert (treatment.scheme is None) == excluded


def test_what_is_stored_plain_and_not_left_alone(registry: Registry) -> None:
    """Older exports do not name the modules that they never looked at."""
    quantization = make_quantization(NVFP4, registry)
    router = ModuleInfo(("mlp.router",), stored=frozenset({"weight", "bias"}))
    assert quantization.treat(router).scheme is None
    for leaf in ("weight_scale", "weight_scale_2", "input_scale"):
        assert quantization.treat(ModuleInfo(("m",), stored=frozenset({"weight", leaf}))).scheme is not None
    table = ModuleInfo(("model.embed_tokens",), Kind.EMBEDDING, stored=frozenset({"weight", "weight_scale"}))
    assert quantization.treat(table).scheme is not None


def test_mixed_precision_is_said_of_each_module(registry: Registry) -> None:
    layers = {
        "a.q_proj": {"quant_algo": "FP8"},
        "a.o_proj": {"quant_algo": "nvfp4", "group_size": 32},
        "a.experts": {"quant_algo": "W4A16_AWQ", "group_size": 64},
    }
    section = {**NVFP4, "quant_algo": "MIXED_PRECISION", "quantized_layers": layers, "ignore": ["a.experts.1*"]}
    quantization = make_quantization(section, registry)
    wanted = {
        "a.q_proj": "fp8 tensor, inputs static fp8",
        "a.o_proj": "nvfp4 group 32, inputs dynamic nvfp4",
        "a.k_proj": None,
        "a.experts.0.up_proj": "int4 group 64",
        "a.experts.1.up_proj": None,
    }
    for name, label in wanted.items():
        for leaves in (frozenset[str](), frozenset({"weight"})):
            scheme = quantization.treat(ModuleInfo((name,), stored=leaves)).scheme
            assert (None if scheme is None else str(scheme)) == label


NESTED: dict[str, Any] = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 32,
                                                             "exclude_modules": ["lm_head"]}}  # fmt: skip


@pytest.mark.parametrize(
    ("section", "side", "source"),
    [
        (None, NESTED, "the side file alone"),
        (NESTED, None, "the older shape in config.json"),
        ({**NESTED, "quant_method": "modelopt"}, None, "the older shape, with a name"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, NESTED, "what only the side file says"),
        ({"quant_method": "modelopt_fp4", **NESTED}, None, "an engine's name"),
        (
            {**NVFP4, "ignore": ["lm_head"], "config_groups": {"group_0": {"weights": {"group_size": 32}}}},
            None,
            "a group",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configs_in_all_their_places(
    section: object, side: object, source: str, tmp_path: Path, registry: Registry
) -> None:
    quantization = quantize(tmp_path, registry, section, side)
    assert quantization.method.name == "modelopt", source
    assert str(quantization.treat(ModuleInfo(("m",))).scheme) == "nvfp4 group 32, inputs dynamic nvfp4"
    assert quantization.treat(ModuleInfo(("lm_head",), Kind.LM_HEAD)).scheme is None


def test_a_side_file_of_another_kind_is_not_claimed(tmp_path: Path, registry: Registry) -> None:
    assert quantize(tmp_path, registry, None, {"quant_algo": "NVFP4"}).method.name == "unquantized"
    other = {"quant_method": "fp8"}
    assert quantize(tmp_path, registry, other, NESTED).method.name == "fp8"


@pytest.mark.parametrize("key", ["quant_algo", "group_size"])
def test_configs_that_disagree_are_refused(key: str, tmp_path: Path, registry: Registry) -> None:
    other = {"quant_algo": "FP8", "group_size": 16}[key]
    section = {"quant_method": "modelopt", **NESTED["quantization"], key: other}
    (finding,) = quantize(tmp_path, registry, section, NESTED).findings
    assert (finding.code, finding.where, finding.file) == ("QL103", key, SIDE)
    assert str(other) in finding.expected
    assert finding.pointer == ("quantization", key)


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "modelopt"},
        {"quant_method": "modelopt", "quant_alg": "FP8"},
        {**NVFP4, "group_size": -1},
        {**NVFP4, "ignore": "lm_head"},
        {**NVFP4, "quant_algo": "MIXED_PRECISION"},
        {**NVFP4, "quantized_layers": {"m": {"quant_algo": "FP8"}}},
        {**NVFP4, "quant_algo": "MIXED_PRECISION", "quantized_layers": {"m": {"group_size": 16}}},
    ],
    ids=str,
)
def test_configs_that_make_no_sense(section: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization(section, registry)


@pytest.mark.parametrize(
    "more", [{"quant_algo": "NVFP4_SVD"}, {"quant_algo": "IQ2_XS"}, {"has_zero_point": True, "quant_algo": "W4A16_AWQ"}]
)
def test_what_is_not_supported_is_refused(more: dict[str, Any], registry: Registry) -> None:
    quantization = make_quantization({**NVFP4, **more}, registry)
    with pytest.raises(ValueError, match=r"NVFP4_SVD|IQ2_XS|zero-points"):
        quantization.treat(ModuleInfo(("m",)))


@pytest.mark.parametrize("leaf", ["weight_scale", "weight_scale_2", "input_scale"])
def test_a_missing_scale_is_named(leaf: str, tmp_path: Path, registry: Registry) -> None:
    tensors, configs = golden("nvfp4")
    quantization = quantize(tmp_path, registry, configs["config"])
    layer = ReplicatedLinear(32, 64, Site(quantization, "m"))
    del tensors[f"m.{leaf}"]
    with pytest.raises(CheckpointError, match=rf"QL201 m\.{leaf}"):
        qload.load_tensors(layer, stored(tensors), quantization, kernels=())


def test_an_input_scale_may_be_left_out_where_nothing_was_calibrated(tmp_path: Path, registry: Registry) -> None:
    """Then it is the tensor's own; where one is stored it is taken."""
    name = "w4a8-mxfp4-fp8"
    layer, tensors = build(name, tmp_path, registry)
    assert layer.input_scale is None
    static = {**stored(tensors), "m.input_scale": torch.tensor(0.25)}
    qload.load_tensors(layer, static, quantize(tmp_path, registry, golden(name)[1]["config"]), kernels=())
    x = torch.tensor([[0.26] * 32])
    assert torch.allclose(layer(x), torch.full((1, 32), 0.25) @ tensors["weight"].T)


def test_validating_finds_a_scale_without_which_a_module_seems_plain(tmp_path: Path) -> None:
    """Nothing but a weight is left of it, in a dtype that no plain weight has."""

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight_scale"]

    folder = copy_checkpoint(DATA / "modelopt-int4-awq", tmp_path / "copy")
    edit_tensors(folder, change)
    (finding,) = qload.validate(folder).findings
    assert (finding.code, finding.where) == ("QL308", "model.layers.1.mlp.up_proj.weight")
