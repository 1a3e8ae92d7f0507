"""torchao's tensor classes, bit for bit against torchao, and what metadata and configs say."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import copy_checkpoint, edit_config
from safetensors.torch import load_file, save_file
from samples import DATA, make_quantization
from torch import Tensor
from torch.nn import functional as F

import qload
from qload import Quantization, Registry
from qload.checkpoint import Checkpoint, Folder, Header, TensorEntry, read_header
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
from qload.torch.dtypes import dtype_code
from qload.torch.parallel import Group

GOLDENS = Path(__file__).parents[1] / "goldens" / "torchao.safetensors"
REAL = "torchao-int8dyn-int8w"
BARE = {"quant_method": "torchao"}


@cache
def goldens() -> tuple[Header, dict[str, Tensor]]:
    return read_header(Folder(GOLDENS.parent), GOLDENS.name), load_file(GOLDENS)


def cases(ending: str) -> list[str]:
    header, _ = goldens()
    return sorted(name.removesuffix(ending) for name in {*header.metadata, *header.tensors} if name.endswith(ending))


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The stored tensors of a case, and what torchao makes of them."""
    own = {key: value for key, value in goldens()[1].items() if key.startswith(f"{name}.")}
    stored = {key: value for key, value in own.items() if "._weight_" in key}
    return stored, {key.removeprefix(f"{name}."): value for key, value in own.items() if key not in stored}


def describe(tensors: dict[str, Tensor], metadata: dict[str, Any], section: dict[str, Any] = BARE) -> Quantization:
    """The quantization of a checkpoint of those tensors, with that metadata in its file."""
    entries = {n: TensorEntry(n, dtype_code(t.dtype), tuple(t.shape), "f", 0, 0) for n, t in tensors.items()}
    checkpoint = Checkpoint(Path("none"), {"quantization_config": section}, entries, metadata={"f": metadata})
    return resolve(checkpoint, Registry.discover())


def described(name: str) -> Quantization:
    header, _ = goldens()
    return describe(golden(name)[0], {f"{name}.weight": header.metadata[f"{name}.weight"]})


def configured(name: str) -> Quantization:
    header, _ = goldens()
    config = json.loads(header.metadata[f"{name}.config"])
    return describe(golden(name)[0], {}, {**BARE, "quant_type": {"default": config}})


def load(quantization: Quantization, name: str, dtype: torch.dtype) -> ReplicatedLinear:
    stored, facts = golden(name)
    rows, columns = facts["expected"].shape
    layer = ReplicatedLinear(columns, rows, Site(quantization, name, dtype=dtype))
    qload.load_tensors(layer, stored, quantization, kernels=())
    return layer


@pytest.mark.parametrize("name", cases(".weight"))
def test_weights_are_torchaos(name: str) -> None:
    stored, facts = golden(name)
    expected, quantization = facts["expected"], described(name)
    layer = load(quantization, name, expected.dtype)
    assert torch.equal(qload.dequantize(layer).to(expected.dtype), expected)
    treatment = quantization.treat(ModuleInfo((name,)))
    site = Site(quantization, name, dtype=expected.dtype)
    rows, columns = expected.shape
    table = VocabParallelEmbedding(rows, columns, site, multiple=1, treatment=treatment)
    qload.load_tensors(table, stored, quantization, kernels=())
    ids = torch.tensor([len(expected) - 1, 0, 3, 3])
    assert torch.equal(table(ids), expected[ids])


@pytest.mark.parametrize("name", cases(".config"))
def test_a_config_says_the_same_as_the_metadata(name: str) -> None:
    module = ModuleInfo((name,))
    assert str(configured(name).treat(module).scheme) == str(described(name).treat(module).scheme)
    expected = golden(name)[1]["expected"]
    layer = load(configured(name), name, expected.dtype)
    assert torch.equal(qload.dequantize(layer).to(expected.dtype), expected)


@pytest.mark.parametrize("name", cases(".seen"))
def test_inputs_are_what_torchao_sees(name: str) -> None:
    _, facts = golden(name)
    x, seen = facts["input"], facts["seen"]
    layer = load(described(name), name, x.dtype)
    dense = qload.dequantize(layer).to(x.dtype)
    assert not torch.equal(x, seen)
    assert torch.equal(layer(x), F.linear(seen, dense))
    layer.quantize_activations = False
    assert torch.equal(layer(x), F.linear(x, dense))


@pytest.mark.parametrize("name", [name for name in cases(".seen") if name != "int8-static"])
def test_inputs_of_zeros_stay_zeros(name: str) -> None:
    x = torch.zeros_like(golden(name)[1]["input"])
    assert not load(described(name), name, x.dtype)(x).any()


def int4(rows: int = 6, columns: int = 40, group: int = 16) -> tuple[dict[str, Tensor], Tensor]:
    """A weight packed element by element, with a short last group, and what it means."""
    torch.manual_seed(0)
    values = torch.randint(-8, 8, (rows, columns))
    groups = -(-columns // group)
    scale, zero = torch.rand(groups, rows).bfloat16(), torch.randn(groups, rows).bfloat16()
    packed = torch.zeros(rows, columns // 2, dtype=torch.int8)
    expected = torch.zeros(rows, columns, dtype=torch.bfloat16)
    for row in range(rows):
        for column in range(columns):
            value, place = int(values[row, column]), (column // group, row)
            byte = (int(packed[row, column // 2]) & 255) | (value & 15) << 4 * (column % 2)
            packed[row, column // 2] = byte - 256 if byte > 127 else byte
            expected[row, column] = (value * scale[place].double() + zero[place].double()).bfloat16()
    return {"m._weight_qdata": packed, "m._weight_scale": scale, "m._weight_zero_point": zero}, expected


def text(kind: str, names: list[str], **data: Any) -> str:
    return json.dumps({"_type": kind, "_data": data, "_tensor_data_names": names})


PLAIN_INT4 = text("Int4Tensor", ["qdata", "scale", "zero_point"], block_size=[1, 16], shape=[6, 40])


def test_packed_integers() -> None:
    tensors, expected = int4()
    quantization = describe(tensors, {"m.weight": PLAIN_INT4})
    layer = ReplicatedLinear(40, 6, Site(quantization, "m", dtype=torch.bfloat16))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(
        6, 40, Site(quantization, "m", dtype=torch.bfloat16), multiple=1, treatment=treatment
    )
    qload.load_tensors(table, tensors, quantization, kernels=())
    assert torch.equal(table(torch.tensor([5, 0, 5])), expected[[5, 0, 5]])
    with pytest.raises(ShardError):
        RowParallelLinear(40, 6, Site(quantization, "m", Group(1, 2)))


def test_inputs_are_smoothed_before_all_else() -> None:
    """By a scale for each feature, with which the weight is to be multiplied where it is made dense."""
    tensors, expected = int4()
    smoothing = torch.rand(40).add(0.5)
    names = ["qdata", "scale", "zero_point", "act_pre_scale"]
    quantization = describe(tensors, {"m.weight": text("Int4Tensor", names, block_size=[1, 16])})
    layer = ReplicatedLinear(40, 6, Site(quantization, "m"))
    qload.load_tensors(layer, {**tensors, "m._weight_act_pre_scale": smoothing}, quantization, kernels=())
    x = torch.randn(3, 40)
    assert torch.allclose(layer(x), (x * smoothing) @ expected.float().T, rtol=1e-4, atol=1e-4)
    assert torch.equal(qload.dequantize(layer), expected * smoothing)


def test_parts_of_a_layer_may_have_tensors_of_other_sizes() -> None:
    """A scale for the whole tensor is described by the tensor's own shape."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    dense: list[Tensor] = []
    for name, rows in (("q", 12), ("k", 4)):
        values, scale = torch.randint(-128, 128, (rows, 8), dtype=torch.int8), torch.rand(1, 1)
        tensors |= {f"{name}._weight_qdata": values, f"{name}._weight_scale": scale}
        metadata[f"{name}.weight"] = text("Int8Tensor", ["qdata", "scale"], block_size=[rows, 8])
        dense.append(values * scale)
    quantization = describe(tensors, metadata)
    layer = MergedColumnParallelLinear(8, [("q", 12), ("k", 4)], Site(quantization, "qk"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), torch.cat(dense))
    assert layer.treatment.label == "torchao int8 tensor"


def test_ranks_take_whole_tiles_of_swizzled_scales() -> None:
    section = {**BARE, "quant_type": {"default": {"_type": "NVFP4WeightOnlyConfig", "_data": {}}}}
    quantization = make_quantization(section)
    for kind, unit in ((ColumnParallelLinear, 128), (RowParallelLinear, 64)):
        with pytest.raises(ShardError):
            kind(unit, unit, Site(quantization, "m", Group(0, 2)))
        assert kind(2 * unit, 2 * unit, Site(quantization, "m", Group(1, 2))).local.extents


BLOCK = {"block_size": [1, 8]}
NAMES = ["qdata", "scale"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("{}", "is not a class with its fields"),
        (json.dumps({"_type": "Int8Tensor", "_tensor_data_names": [1]}), "does not name its tensors"),
        (text("Int8Tensor", [*NAMES, "secret"], **BLOCK), "'secret' of a Int8Tensor is not known"),
        (text("Int8Tensor", NAMES), "is not one of rows and columns"),
        (text("Int8Tensor", NAMES, block_size=[1, 0]), "not a number of rows or columns"),
        (text("Int8Tensor", NAMES, block_size=[1, True]), "not a number of rows or columns"),
        (text("Int8Tensor", NAMES, block_size=[1, 2**80]), "not a number of rows or columns"),
        (text("Int8Tensor", NAMES, block_size=[1, 8, 8]), "is not one of rows and columns"),
        (text("Int8Tensor", NAMES, **BLOCK, dtype="int8"), "own dtype 'int8'"),
        (text("Int8Tensor", [*NAMES, "act_quant_scale"], **BLOCK), "not quantized by tensor"),
        (text("Int8Tensor", NAMES, **BLOCK, act_quant_kwargs={"_type": "Other", "_data": {}}), "inputs by 'Other'"),
        (
            text("Int8Tensor", NAMES, **BLOCK, act_quant_kwargs={"_type": "QuantizeTensorToFloat8Kwargs"}),
            "inputs by 'QuantizeTensorToFloat8Kwargs'",
        ),
        (text("Int4Tensor", NAMES, **BLOCK), "has no zero-points"),
        (text("IntxUnpackedToInt8Tensor", NAMES, **BLOCK, target_dtype="int9"), "values of 'int9'"),
        (
            text("IntxUnpackedToInt8Tensor", NAMES, **BLOCK, target_dtype="int4", activation_quantization="x"),
            "is not int8",
        ),
        (text("MXTensor", NAMES, block_size=32, elem_dtype="fp5"), "values of 'fp5'"),
        (text("MXTensor", NAMES, block_size=32, elem_dtype="fp6_e2m3", is_swizzled_scales="yes"), "true or false"),
        (text("Int4TilePackedTo4dTensor", ["qdata", "scale_and_zero"], **BLOCK), "one device's kernel"),
        (text("Int4PlainInt32Tensor", NAMES, **BLOCK), "one device's kernel"),
        (text("AffineQuantizedTensor", NAMES, **BLOCK), "'AffineQuantizedTensor' is not one of Int8Tensor"),
    ],
)
def test_metadata_that_is_refused(said: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        describe({}, {"m.weight": said}).treat(ModuleInfo(("m",)))


def test_tensors_need_not_be_named() -> None:
    """torchao 0.15 does not."""
    tensors, expected = int4()
    said = json.loads(PLAIN_INT4)
    del said["_tensor_data_names"]
    quantization = describe(tensors, {"m.weight": json.dumps(said)})
    layer = ReplicatedLinear(40, 6, Site(quantization, "m", dtype=torch.bfloat16))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)


def test_names_of_the_first_version_are_refused(tmp_path: Path) -> None:
    folder = copy_checkpoint(DATA / REAL, tmp_path / "old")
    header = read_header(Folder(folder), "model.safetensors")
    tensors = {_old_name(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", dict(header.metadata))
    with pytest.raises(CheckpointError) as caught:
        qload.load(folder)
    for findings in (qload.validate(folder).findings, caught.value.findings):
        assert any("torchao 0.14" in str(finding) for finding in findings)


def _old_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.weight:{leaf.removeprefix('_weight_') if leaf != 'weight' else '_data'}"


def test_files_that_contradict_each_other() -> None:
    entries = {"m._weight_qdata": TensorEntry("m._weight_qdata", "I8", (8, 8), "f", 0, 64)}
    said = {
        "f": {"m.weight": text("Int8Tensor", NAMES, **BLOCK)},
        "g": {"m.weight": '{"_type": "Tensor", "_data": {}}'},
    }
    checkpoint = Checkpoint(Path("none"), {"quantization_config": BARE}, entries, metadata=said)
    with pytest.raises(ValueError, match="contradicts itself"):
        resolve(checkpoint, Registry.discover()).treat(ModuleInfo(("m",)))


def test_other_parameters_than_weights_are_refused() -> None:
    stored = {"experts._gate_up_proj_qdata": torch.zeros(2, 8, 8, dtype=torch.int8)}
    quantization = describe(stored, {"experts.gate_up_proj": text("Int8Tensor", NAMES, block_size=[1, 1, 8])})
    with pytest.raises(ValueError, match="the parameter gate_up_proj is quantized"):
        quantization.treat(ModuleInfo(("experts",)))


def config(name: str, **fields: Any) -> dict[str, Any]:
    return {"_type": name, "_data": fields}


def section(settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**BARE, "quant_type": {"default": settings}, **more}


ROWS = config("Int8WeightOnlyConfig")
BY_NAME = config(
    "FqnToConfig",
    fqn_to_config={
        r"re:model\.layers\..*\.q_proj": config("Float8WeightOnlyConfig"),
        "model.layers.1.q_proj": None,
        "model.layers.2.q_proj.weight": config("Int8WeightOnlyConfig", granularity=config("PerTensor")),
        r"re:.*\.weight": config("NVFP4WeightOnlyConfig"),
    },
)


@pytest.mark.parametrize(
    ("said", "name", "kind", "scheme"),
    [
        (section(ROWS), "model.layers.0.mlp.up_proj", Kind.LINEAR, "int8 channel"),
        (section(ROWS), "lm_head", Kind.LM_HEAD, None),
        (section(ROWS), "model.embed_tokens", Kind.EMBEDDING, None),
        (section(ROWS, include_input_output_embeddings=True), "lm_head", Kind.LM_HEAD, "int8 channel"),
        (section(ROWS, modules_to_not_convert=["model.layers.1"]), "model.layers.1.up", Kind.LINEAR, None),
        (section(ROWS, modules_to_not_convert=["model.layers.1"]), "model.layers.10.up", Kind.LINEAR, "int8 channel"),
        (section(ROWS, modules_to_not_convert=["layers.*.up"]), "layers.3.up", Kind.LINEAR, None),
        (section(ROWS, modules_to_not_convert=["up"]), "model.layers.3.up", Kind.LINEAR, None),
        (section(BY_NAME), "model.layers.0.q_proj", Kind.LINEAR, "fp8 channel"),
        (section(BY_NAME), "model.layers.0.q_proj_b", Kind.LINEAR, "nvfp4 group 16"),
        (section(BY_NAME), "model.layers.1.q_proj", Kind.LINEAR, None),
        (section(BY_NAME), "model.layers.2.q_proj", Kind.LINEAR, "int8 tensor"),
        (section(BY_NAME), "model.layers.2.k_proj", Kind.LINEAR, "nvfp4 group 16"),
        (
            section(config("ModuleFqnToConfig", module_fqn_to_config={"_default": ROWS})),
            "a",
            Kind.LINEAR,
            "int8 channel",
        ),
        (section(config("FqnToConfig", fqn_to_config={"b": ROWS})), "a", Kind.LINEAR, None),
    ],
)
def test_what_a_config_does_to_a_module(said: dict[str, Any], name: str, kind: Kind, scheme: str | None) -> None:
    found = make_quantization(said).treat(ModuleInfo((name,), kind)).scheme
    assert (None if found is None else str(found)) == scheme


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("Int8DynamicActivationInt8WeightConfig", "int8 channel, inputs dynamic int8 token"),
        ("IntxWeightOnlyConfig", "int8 channel"),
        ("Int8DynamicActivationIntxWeightConfig", "int8 group 32, inputs dynamic int8 token asymmetric"),
        ("Int4WeightOnlyConfig", "int4 group 128"),
        ("Float8WeightOnlyConfig", "fp8 channel"),
        ("Float8DynamicActivationFloat8WeightConfig", "fp8 tensor, inputs dynamic fp8 tensor"),
        ("MXDynamicActivationMXWeightConfig", "mxfp8 group 32, inputs dynamic fp8 group 32"),
        ("NVFP4DynamicActivationNVFP4WeightConfig", "nvfp4 group 16, inputs dynamic fp4 group 16"),
    ],
)
def test_what_configs_leave_out(name: str, scheme: str) -> None:
    assert str(make_quantization(section(config(name))).treat(ModuleInfo(("m",))).scheme) == scheme


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({**BARE, "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 32}}, "says too little"),
        (BARE, "says too little"),
        (section(config("GemliteUIntXWeightOnlyConfig")), "'GemliteUIntXWeightOnlyConfig' is not one of"),
        (section(config("Int4WeightOnlyConfig", int4_packing_format="TILE_PACKED_TO_4D")), "one device's kernel"),
        (section(config("Float8DynamicActivationInt4WeightConfig")), "one device's kernel"),
        (section(config("Int8WeightOnlyConfig", granularity=config("PerMoon"))), "'PerMoon' is not known"),
        (section(config("Int8WeightOnlyConfig", group_size=-1)), "not a number of rows or columns"),
        (section(config("MXDynamicActivationMXWeightConfig", scaling_mode="UP")), "rounded by UP"),
    ],
)
def test_configs_that_are_refused(said: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_quantization(said).treat(ModuleInfo(("m",)))


@pytest.mark.parametrize(
    "said",
    [
        {"quant_type": {"default": 3}},
        {"quant_type": {"other": ROWS}},
        {"quant_type": {"default": config("FqnToConfig", fqn_to_config={"re:(": ROWS})}},
        {"quant_type": {"default": config("FqnToConfig", fqn_to_config=[1])}},
        {"modules_to_not_convert": ["("]},
        {"include_input_output_embeddings": "perhaps"},
    ],
)
def test_configs_that_make_no_sense(said: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization({**BARE, **said})


def test_a_checkpoint_without_metadata_is_what_its_config_says(tmp_path: Path) -> None:
    folder = copy_checkpoint(DATA / REAL, tmp_path / "bare")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors, weights)
    bare, whole = qload.load(folder), qload.load(DATA / REAL)
    assert qload.report(bare).layers == qload.report(whole).layers
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        assert torch.equal(bare(ids).logits, whole(ids).logits)
    edit_config(folder, lambda written: written["quantization_config"].update(quant_type="int8_weight_only"))
    assert {finding.code for finding in qload.validate(folder).findings} == {"QL104"}


def test_pickled_checkpoints_of_old_are_refused(tmp_path: Path) -> None:
    shutil.copy(DATA / REAL / "config.json", tmp_path)
    edit_config(tmp_path, lambda written: written["quantization_config"].update(quant_type="int8_weight_only"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert [finding.code for finding in qload.validate(tmp_path).findings] == ["QL001"]
    with pytest.raises(CheckpointError, match="the weights are pickled"):
        qload.load(tmp_path)
