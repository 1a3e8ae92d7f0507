"""AutoRound's checkpoints: packed as GPTQ or AWQ, under a method name and a config of their own."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import edit_config
from samples import DATA

import qload
from qload import Registry
from qload.checkpoint import Checkpoint
from qload.errors import CheckpointError
from qload.hookspecs import ModuleInfo
from qload.quantization import Quantization
from qload.resolution import resolve

GPTQ, AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"
SECTION: dict[str, Any] = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}


def quantization_of(registry: Registry, **section: Any) -> Quantization:
    return resolve(Checkpoint(Path("none"), {"quantization_config": {**SECTION, **section}}, {}), registry)


@pytest.mark.parametrize(("packing", "method"), [(GPTQ, "gptq"), (AWQ, "awq")])
def test_the_packing_decides(packing: str, method: str, registry: Registry) -> None:
    quantization = quantization_of(registry, packing_format=packing, group_size=32)
    assert quantization.treat(ModuleInfo(("model.layers.0.mlp.up_proj",))).label == f"{method} int4 group 32"


@pytest.mark.parametrize("packing", ["auto_round:auto_marlin", "auto_round", None, 3])
def test_a_packing_that_nobody_knows(packing: object, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL104"):
        quantization_of(registry, packing_format=packing)


def test_modules_with_settings_of_their_own(registry: Registry) -> None:
    extra = {"a.q_proj": {"bits": 8, "group_size": 32, "sym": True}, "a.k_proj": {"bits": 16, "data_type": "fp"}}
    quantization = quantization_of(registry, packing_format=GPTQ, extra_config=extra)
    names = ("a.q_proj", "a.k_proj", "a.v_proj", "aXq_proj", "a.q_proj_too")
    found = [quantization.treat(ModuleInfo((name,))).label for name in names]
    assert found == ["gptq int8 group 32", "unquantized", *["gptq int4 group 128"] * 3]


def test_settings_by_regexes(registry: Registry) -> None:
    extra = {r".*mlp.*": {"bits": 8}, "a.mlp.up_proj": {"bits": 4, "group_size": 64}, r"q_pr\w+": {"bits": 16}}
    quantization = quantization_of(registry, packing_format=GPTQ, extra_config=extra)
    names = ("a.mlp.up_proj", "a.mlp.down_proj", "a.q_proj", "a.v_proj")
    found = [quantization.treat(ModuleInfo((name,))).label for name in names]
    assert found == ["gptq int4 group 64", "gptq int8 group 128", "unquantized", "gptq int4 group 128"]


FP8: dict[str, Any] = {"bits": 8, "data_type": "fp", "group_size": -1, "act_data_type": "fp", "act_bits": 8}
MXFP4: dict[str, Any] = {"bits": 4, "data_type": "mx_fp", "group_size": 32, "act_bits": 16}
NVFP4: dict[str, Any] = {"bits": 4, "data_type": "nv_fp", "group_size": 16, "act_bits": 16}


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        (MXFP4, "fp4 group 32"),
        ({**MXFP4, "bits": 8}, "fp8 group 32"),
        ({**MXFP4, "act_bits": 4, "act_data_type": "mx_fp"}, "fp4 group 32, inputs dynamic fp4 group 32"),
        (NVFP4, "fp4 tensor_group 16"),
        ({**NVFP4, "data_type": "nv_fp4_with_static_gs"}, "fp4 tensor_group 16"),
        ({**FP8, "act_dynamic": False, "act_group_size": 0}, "fp8 channel, inputs static fp8 tensor"),
        ({**FP8, "act_dynamic": True, "act_group_size": -1}, "fp8 channel, inputs dynamic fp8 token"),
        ({**FP8, "act_dynamic": True, "act_group_size": 64}, "fp8 channel, inputs dynamic fp8 group 64"),
        ({**FP8, "act_bits": None}, "fp8 channel"),
        ({**FP8, "data_type": "fp8", "group_size": 0, "act_bits": 16}, "fp8 tensor"),
    ],
)
def test_small_floats_are_stored_as_compressed_tensors(settings: Any, label: str, registry: Registry) -> None:
    quantization = quantization_of(
        registry,
        **settings,
        packing_format="auto_round:llm_compressor",
        block_name_to_quantize="model.layers, model.more",
        extra_config={"lm_head": {}, ".*gate$": {"bits": 16}, "model.layers.0.k_proj": {"bits": 16}},
    )
    inside = ("model.layers.0.q_proj", "model.more.1.q_proj", "lm_head")
    outside = ("model.layers.0.k_proj", "model.layers.0.mlp.gate", "model.tower.q_proj", "model.layersX.q_proj")
    labels = [quantization.treat(ModuleInfo((name,))).label for name in (*inside, *outside)]
    assert labels == [f"compressed-tensors {label}"] * 3 + ["unquantized"] * 4


@pytest.mark.parametrize(
    "settings",
    [
        {**FP8, "fmt": "e5m2"},
        {**NVFP4, "data_type": "nvfp4_v2"},
        {**MXFP4, "bits": "4"},
        {**MXFP4, "data_type": None},
        {"data_type": "mx_int"},
    ],
)
def test_what_is_stored_in_no_format_of_ours(settings: Any, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL104"):
        quantization_of(registry, **{**settings, "packing_format": "auto_round:llm_compressor"})


def test_powers_of_two_of_inputs_are_found_as_the_specification_says(registry: Registry) -> None:
    settings = {**MXFP4, "act_bits": 4, "packing_format": "auto_round:llm_compressor"}
    scheme: Any = quantization_of(registry, **settings).treat(ModuleInfo(("a",))).scheme
    assert scheme.inputs.scale_dtype == "float8_e8m0fnu"
    ceiling = quantization_of(registry, **settings, act_data_type="mx_fp_rceil")
    with pytest.raises(ValueError, match="with scales in mx_fp_rceil are not supported"):
        ceiling.treat(ModuleInfo(("a",)))


@pytest.mark.parametrize(
    "more", [{"act_data_type": "MX_FP"}, {"act_data_type": "fp8_e5m2"}, {"act_data_type": ["fp"]}, {"act_bits": "few"}]
)
def test_inputs_that_nobody_knows(more: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(CheckpointError, match=r"QL105 .*input_activations"):
        quantization_of(registry, **{**FP8, **more}, packing_format="auto_round:llm_compressor")


def test_fp8_by_blocks_knows_inputs_of_eight_bits_alone(registry: Registry) -> None:
    with pytest.raises(CheckpointError, match=r"QL105 .*activation_scheme"):
        quantization_of(registry, **{**FP8, "group_size": [64, 128], "act_bits": 4})


def test_fp8_by_blocks(registry: Registry) -> None:
    extra = {"a.k_proj": {"bits": 16}, "a.v_proj": {}}
    quantization = quantization_of(registry, **{**FP8, "group_size": [64, 128]}, extra_config=extra)
    labels = [quantization.treat(ModuleInfo((name,))).label for name in ("a.q_proj", "a.k_proj", "a.v_proj")]
    assert labels == ["fp8 block 64x128, inputs dynamic", "unquantized", "fp8 block 64x128, inputs dynamic"]


def test_awqs_packing_has_but_one_setting(registry: Registry) -> None:
    plain = quantization_of(registry, packing_format=AWQ, extra_config={"lm_head": {"bits": 16}})
    assert plain.treat(ModuleInfo(("lm_head",))).scheme is None
    with pytest.raises(CheckpointError, match=r"QL105 .*extra_config.* settings of its own for a"):
        quantization_of(registry, packing_format=AWQ, extra_config={"a": {"bits": 8}})


def test_what_auto_gptq_packs_reads_the_same_under_autorounds_name(broken: Callable[[str], Path]) -> None:
    """The demo of one tool, renamed: the tensors are those of the first version of GPTQ, without an order."""
    name = "gptq-4bit-g128-asym"
    folder = broken(name)
    section = {**SECTION, "sym": False, "packing_format": GPTQ}
    edit_config(folder, lambda config: config.update(quantization_config=section))
    (folder / "quantize_config.json").unlink(missing_ok=True)
    model, expected = qload.load(folder), qload.load(DATA / name)
    for layer in ("self_attn.q_proj", "mlp.down_proj"):
        found, other = (each.model.layers[1].get_submodule(layer) for each in (model, expected))
        assert torch.equal(qload.dequantize(found), qload.dequantize(other))


def test_every_plugin_that_translates_its_config_knows_the_same_fields() -> None:
    """Plugins import no other plugin: what they have to say of another tool's config, each says by itself."""
    plugins = ("awq", "compressed_tensors", "fp8", "gptq")
    modules = [importlib.import_module(f"qload_{plugin}.auto_round") for plugin in plugins]
    assert {each.AUTO_ROUND for each in modules} == {"auto-round"}
    assert len({each.AUTO_ROUND_FIELDS for each in modules}) == 1
