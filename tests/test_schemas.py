"""JSON Schemas: valid themselves, true of real configs, of one mind with the models, and no older than these."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from compressed_tensors.quantization import QuantizationArgs as TheirArgs
from compressed_tensors.quantization import QuantizationConfig as TheirConfig
from compressed_tensors.quantization import QuantizationScheme as TheirScheme
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from qload_compressed_tensors.config import CompressedTensorsConfig, QuantizationArgs, QuantizationGroup
from referencing import Registry as References
from referencing import Resource
from samples import read_config, samples

from qload import Registry
from qload.cli import cli
from qload.quantization import read_config as read_section
from qload.schemas import BASE, dump, make_schemas

ROOT = Path(__file__).parents[1]
SCHEMAS = make_schemas(Registry.discover())
PRODUCED = [path for path in samples() if (path / "config.json").exists()]


def validator(name: str) -> Draft202012Validator:
    resources = [(f"{BASE}{each}.json", Resource.from_contents(schema)) for each, schema in SCHEMAS.items()]
    references: Any = References().with_resources(resources)
    return Draft202012Validator(SCHEMAS[name], registry=references)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["$id"] == f"{BASE}{name}.json"


def test_the_files_are_what_the_models_say() -> None:
    """`make schemas` writes them."""
    kept = {path.stem: path.read_text() for path in (ROOT / "schemas").glob("*.json") if path.stem != "report"}
    assert kept == {name: dump(schema) for name, schema in SCHEMAS.items()}


@pytest.mark.parametrize("path", PRODUCED, ids=lambda path: path.name)
def test_what_producers_write_is_valid(path: Path) -> None:
    config = read_config(path)
    section = config.get("quantization_config", {})
    validator("config").validate(config)
    if section.get("quant_method") in SCHEMAS:
        validator(section["quant_method"]).validate(section)


ARGS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
GOOD: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "w_bit": 4, "q_group_size": -1, "version": "GEMM"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "fmt": "e4m3"},
    "hqq": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": ARGS}},
    },
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": None},
    "quanto": {"quant_method": "quanto", "weights": "int8", "activations": None},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    "bitnet": {"quant_method": "bitnet", "linear_class": "bitlinear"},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
    "qqq": {"quant_method": "qqq", "wbits": 4, "group_size": 128},
    "gguf": {"quant_method": "gguf", "bits": "q4_k_m"},
    "quark": {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int8", "qscheme": "per_tensor"}}},
}
BAD: list[tuple[str, dict[str, Any]]] = [
    ("gptq", {"bits": "four"}),
    ("gptq", {"group_size": 0}),
    ("gptq", {"group_size": -2}),
    ("gptq", {"dynamic": {"+:a": {"bits": "eight"}}}),
    ("awq", {"q_group_size": -128}),
    ("awq", {"modules_to_not_convert": "lm_head"}),
    ("bitsandbytes", {"bnb_4bit_quant_type": "int4"}),
    ("bitsandbytes", {"llm_int8_threshold": -1}),
    ("fp8", {"weight_block_size": [128]}),
    ("fp8", {"weight_block_size": [128, 0]}),
    ("fp8", {"activation_scheme": "sometimes"}),
    ("hqq", {"quant_config": {"weight_quant_params": {"nbits": 4, "axis": 2}}}),
    ("hqq", {"quant_config": 3}),
    ("compressed-tensors", {"config_groups": {"g": {"targets": ["Linear"], "weights": {**ARGS, "strategy": "row"}}}}),
    ("compressed-tensors", {"config_groups": {"g": {"targets": ["Linear"], "weights": {**ARGS, "bits": 4}}}}),
    ("compressed-tensors", {"config_groups": {"g": {"weights": ARGS}}}),
    ("compressed-tensors", {"ignore": [3]}),
    ("modelopt", {"group_size": -1}),
    ("modelopt", {"exclude_modules": "lm_head"}),
    ("quanto", {"weights": "int3"}),
    ("mxfp4", {"modules_to_not_convert": 1}),
    ("bitnet", {"quantization_mode": "later"}),
    ("torchao", {"quant_type": 4}),
    ("qqq", {"group_size": 0}),
    ("gguf", {"lm_head": "perhaps"}),
    ("quark", {"global_quant_config": {"weight": {"dtype": "int8", "qscheme": "per_row"}}}),
    ("quark", {"export": {"pack_method": "random"}}),
]
MISSING = [("gptq", "bits"), ("hqq", "quant_config"), ("quark", "global_quant_config")]


def takes(method: str, section: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the schema, and the model, take a config."""
    try:
        read_section(Registry.discover().method(method), section)
    except ValidationError:
        return validator(method).is_valid(section), False
    return validator(method).is_valid(section), True


def test_every_method_has_a_config_to_try() -> None:
    assert GOOD.keys() == SCHEMAS.keys() - {"config"}


@pytest.mark.parametrize("method", GOOD)
def test_schema_and_model_take_the_same(method: str) -> None:
    assert takes(method, GOOD[method]) == (True, True)
    assert validator("config").is_valid({"quantization_config": GOOD[method]})


@pytest.mark.parametrize(("method", "change"), BAD, ids=str)
def test_schema_and_model_refuse_the_same(method: str, change: dict[str, Any]) -> None:
    assert takes(method, {**GOOD[method], **change}) == (False, False)
    assert not validator("config").is_valid({"quantization_config": {**GOOD[method], **change}})


@pytest.mark.parametrize(("method", "key"), MISSING)
def test_schema_and_model_miss_the_same(method: str, key: str) -> None:
    assert takes(method, {name: value for name, value in GOOD[method].items() if name != key}) == (False, False)


NOTED = {"version", "sparsity_config", "transform_config", "provider", "autoround_version", "run_compressed",
         "dequantize", "use_optimized_inference"}  # fmt: skip
"""What other tools, and the package's own class for transformers, write beside the fields of its model."""
DEFAULTS = {"config_groups", "format", "ignore", "quantization_status", "observer_kwargs"}
"""Defaults that are otherwise on purpose: what is not written is told from what is, and the strategies of formats."""


@pytest.mark.parametrize(
    ("ours", "theirs", "more"),
    [
        (CompressedTensorsConfig, TheirConfig, NOTED),
        (QuantizationGroup, TheirScheme, set()),
        (QuantizationArgs, TheirArgs, set()),
    ],
)
def test_compressed_tensors_own_models_have_the_same_fields(ours: Any, theirs: Any, more: set[str]) -> None:
    assert ours.model_fields.keys() - more == theirs.model_fields.keys()
    differing = {
        name
        for name, field in theirs.model_fields.items()
        if field.get_default(call_default_factory=True)
        != ours.model_fields[name].get_default(call_default_factory=True)
    }
    assert differing <= DEFAULTS


def enum(schema: dict[str, Any], name: str) -> set[str]:
    return set(schema["$defs"][name]["enum"])


def test_compressed_tensors_strategies_and_types_are_those_of_its_package() -> None:
    theirs: dict[str, Any] = {}
    for name in ("QuantizationStrategy", "QuantizationType"):
        field = {"QuantizationStrategy": "strategy", "QuantizationType": "type"}[name]
        theirs[name] = {member.value for member in find_enum(TheirArgs.model_fields[field].annotation)}
    ours = SCHEMAS["compressed-tensors"]
    assert enum(ours, "Strategy") == theirs["QuantizationStrategy"]
    assert set(ours["$defs"]["QuantizationArgs"]["properties"]["type"]["enum"]) == theirs["QuantizationType"]


def find_enum(annotation: Any) -> Any:
    return next((each for each in getattr(annotation, "__args__", ()) if hasattr(each, "__members__")), annotation)


def test_the_command_prints_lists_and_writes(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(cli, ["schema"]).output.split() == [*SCHEMAS, "report"]
    assert json.loads(run(cli, ["schema", "gptq"]).output) == SCHEMAS["gptq"]
    assert run(cli, ["schema", "--all", str(tmp_path)]).exit_code == 0
    written, kept = (
        {path.name: path.read_text() for path in folder.iterdir()} for folder in (tmp_path, ROOT / "schemas")
    )
    assert written == kept


@pytest.mark.parametrize(("name", "said"), [("gptk", "no such method"), ("unquantized", "has no config")])
def test_the_command_says_what_there_is_no_schema_of(name: str, said: str) -> None:
    result = CliRunner().invoke(cli, ["schema", name])
    assert result.exit_code == 2
    assert said in result.output
