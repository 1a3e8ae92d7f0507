"""Architectures of many kinds: tiny models made and saved by transformers, and quantized by compressed-tensors.

Whatever a model's layers are called, tied to, stacked or fused into, what is loaded computes what transformers does.
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, SIZES, compute, make_model, quantize, round_experts, split_experts
from edits import edit_config, edit_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

import qload
from qload.torch import Experts, ParallelLMHead

INT8_EXPERTS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {"targets": ["re:.*experts.*"], "weights": {"num_bits": 8, "strategy": "channel", "symmetric": True}}
    },
    "ignore": ["re:.*shared_experts.*"],
}


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_plain_models_are_transformers(name: str, tmp_path: Path) -> None:
    made = make_model(name)
    made.save_pretrained(tmp_path)
    theirs, ours = type(made).from_pretrained(tmp_path).eval(), qload.load(tmp_path)
    assert torch.allclose(compute(ours), compute(theirs), atol=1e-5)
    assert qload.validate(tmp_path).findings == ()
    assert all(type(module) is not nn.Linear for module in ours.modules())
    assert isinstance(ours.get_output_embeddings(), ParallelLMHead)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_a_model_keeps_in_float32_stays_so(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    made = make_model(name)
    made.save_pretrained(tmp_path)
    theirs = type(made).from_pretrained(tmp_path, dtype=dtype)
    found = {key: tensor.dtype for key, tensor in qload.load(tmp_path, dtype=dtype).named_parameters()}
    expected = {key: tensor.dtype for key, tensor in theirs.named_parameters()}
    assert {key: found[key] for key in found.keys() & expected.keys()} == {
        key: expected[key] for key in found.keys() & expected.keys()
    }


def test_quantized_models_are_the_packages(name: str, tmp_path: Path) -> None:
    expected = quantize(make_model(name), tmp_path)
    assert qload.validate(tmp_path).findings == ()
    model = qload.load(tmp_path)
    assert torch.allclose(compute(model), expected, atol=1e-5)
    labels = {label: count for label, count in qload.report(model).layers.items() if "int4 group 16" in label}
    assert labels or name in ("gpt2",), "the package quantizes no convolution"


@pytest.mark.parametrize("stored", [(), ("decoder.weight",), ("decoder.bias",)], ids=lambda names: names or "none")
def test_a_head_whose_bias_is_tied_too(stored: tuple[str, ...], tmp_path: Path) -> None:
    """BERT's: older checkpoints store the tied weight, and some tools every name."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES)).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in stored:
        tensors[f"cls.predictions.{name}"] = model.get_parameter(f"cls.predictions.{name}").detach().clone()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    ours = qload.load(tmp_path)
    assert torch.allclose(compute(ours), compute(model), atol=1e-5)
    assert isinstance(ours.get_output_embeddings(), ParallelLMHead)


def test_linear_layers_that_are_tied(tmp_path: Path) -> None:
    """One end is stored, and quantized: both are one module."""
    made = make_model("zamba")
    tied = tuple(name.removesuffix("weight") for name in made.all_tied_weights_keys if "shared_transf" in name)
    expected = quantize(made, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(tied)}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    ours = qload.load(tmp_path)
    assert torch.allclose(compute(ours), expected, atol=1e-5)
    blocks = [ours.get_submodule(f"model.layers.{number}.shared_transf.self_attn") for number in (1, 3)]
    assert blocks[0].q_proj is blocks[1].q_proj


def test_experts_are_stacked_where_they_are_stored_one_by_one(tmp_path: Path) -> None:
    stacks = {"mixtral": True, "qwen3_moe": True, "nemotron_h": True, "granitemoe": False, "gpt_oss": False}
    for name, stacked in stacks.items():
        make_model(name).save_pretrained(tmp_path / name)
        model = qload.load(tmp_path / name)
        assert any(isinstance(module, Experts) for module in model.modules()) == stacked


@pytest.mark.parametrize("name", ["mixtral", "nemotron_h"])
def test_experts_that_are_stored_quantized_one_by_one(name: str, tmp_path: Path) -> None:
    """As tools write them: eight bits, with a scale for each output feature."""
    make_model(name).save_pretrained(tmp_path / "dense")
    shutil.copytree(tmp_path / "dense", tmp_path / "packed")

    def pack(tensors: dict[str, Tensor], dense: bool) -> None:
        for module in [name.removesuffix(".weight") for name in tensors if ".experts." in name]:
            weight = tensors[f"{module}.weight"]
            scale = weight.abs().amax(-1, keepdim=True) / 127
            packed = (weight / scale).round()
            stored = {"weight": packed * scale} if dense else {"weight": packed.to(torch.int8), "weight_scale": scale}
            tensors.update({f"{module}.{leaf}": tensor for leaf, tensor in stored.items()})

    for kind in ("dense", "packed"):
        edit_tensors(tmp_path / kind, partial(pack, dense=kind == "dense"))
    edit_config(tmp_path / "packed", lambda config: config.update(quantization_config=INT8_EXPERTS))
    model = qload.load(tmp_path / "packed")
    assert torch.allclose(compute(model), compute(qload.load(tmp_path / "dense")), atol=1e-5)
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    assert experts
    assert all(stack.down_proj.scheme is not None for stack in experts)


STACKED = ("gpt_oss", "llama4_text", "granitemoe", "mixtral", "qwen3_moe", "nemotron_h")


def write_experts(model: Any, path: Path, experts: dict[str, Tensor], section: dict[str, Any] | None) -> None:
    """The model with its experts as they are given; `section` says how they are quantized."""
    model.config.save_pretrained(path)
    beside = {name for name, _ in model.named_parameters() if name.rpartition(".")[0].endswith(".experts")}
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in beside}
    assert experts
    save_file(kept | {name: tensor.contiguous() for name, tensor in experts.items()}, path / "model.safetensors")
    quantized = {} if section is None else {"quantization_config": section}
    edit_config(path, lambda config: config.update(dtype="float32", **quantized))


@pytest.mark.parametrize("is_quantized", [False, True], ids=["plain", "quantized"])
@pytest.mark.parametrize("name", STACKED)
def test_experts_one_by_one_whatever_the_model_stacks(name: str, is_quantized: bool, tmp_path: Path) -> None:
    """As llm-compressor, GPTQModel and AutoRound write them, where transformers has no conversion for that."""
    model = make_model(name)
    stacks = round_experts(model)
    experts = split_experts(stacks)
    if not is_quantized:
        dense = {key: tensor for key, tensor in experts.items() if not key.endswith("_scale")}
        scales = {key: experts.get(f"{key}_scale", torch.ones(1)) for key in dense}
        experts = {key: tensor * scales[key] for key, tensor in dense.items()}
    write_experts(model, tmp_path, experts, INT8_EXPERTS if is_quantized else None)
    found = qload.load(tmp_path)
    assert torch.allclose(compute(found), compute(model), atol=1e-5)
    stacked = [module for module in found.modules() if isinstance(module, Experts)]
    assert stacked
    assert all((each.gate_up_proj.scheme is not None) == is_quantized for each in stacked)
    assert qload.validate(tmp_path).findings == ()


@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        ("granitemoe", {"gate_up_proj": "input_linear", "down_proj": "output_linear"}),
        ("gpt_oss", {"gate_up_proj": "gate_up_projs", "down_proj": "down_projs"}),
    ],
)
def test_experts_that_are_lists_of_layers(name: str, renamed: dict[str, str], tmp_path: Path) -> None:
    """As GPTQModel writes Granite's, and Unsloth gpt-oss's: both projections are one, as the model has them."""
    model = make_model(name)
    experts = {}
    for key, stack in round_experts(model).items():
        module, part, leaf = key.rsplit(".", 2)
        rows = (
            torch.stack(stack.chunk(2, 1), 2).flatten(1, 2) if name == "gpt_oss" and part == "gate_up_proj" else stack
        )
        above = module if name == "gpt_oss" else module.rpartition(".")[0]
        for number, expert in enumerate(rows):
            below = f"{renamed[part]}.{number}" + (".linear" if name == "granitemoe" else "")
            experts[f"{above}.{below}.{leaf}"] = expert
    section = {**INT8_EXPERTS, "config_groups": {"g": {**INT8_EXPERTS["config_groups"]["group_0"]}}}
    section["config_groups"]["g"]["targets"] = ["re:.*experts.*", "re:.*put_linear.*"]
    write_experts(model, tmp_path, experts, section)
    found = qload.load(tmp_path)
    assert torch.allclose(compute(found), compute(model), atol=1e-5)
    assert any(isinstance(module, Experts) and module.down_proj.scheme for module in found.modules())


def test_a_stack_that_is_stored_as_a_module(tmp_path: Path) -> None:
    """As llm-compressor writes Granite's: three-dimensional tensors below the module of an older model."""
    model = make_model("granitemoe")
    names = {"gate_up_proj": "input_linear", "down_proj": "output_linear"}
    stacks = {}
    for key, stack in round_experts(model).items():
        module, part, leaf = key.rsplit(".", 2)
        stacks[f"{module.rpartition('.')[0]}.{names[part]}.{leaf}"] = stack
    section = {**INT8_EXPERTS, "config_groups": {"g": {**INT8_EXPERTS["config_groups"]["group_0"]}}}
    section["config_groups"]["g"]["targets"] = ["Linear"]
    section["ignore"] = ["re:.*self_attn.*", "lm_head"]
    write_experts(model, tmp_path, stacks, section)
    found = qload.load(tmp_path)
    assert torch.allclose(compute(found), compute(model), atol=1e-5)
    assert qload.validate(tmp_path).findings == ()


@pytest.mark.parametrize("turned", [False, True], ids=["straight", "turned"])
@pytest.mark.parametrize("name", ["llama4_text", "granitemoe", "qwen3_moe", "nemotron_h"])
def test_stacks_that_are_quantized_whole(name: str, turned: bool, tmp_path: Path) -> None:
    """Under the names of parameters, as [out, in] or, as tools keep some models' own way, [in, out]."""
    model = make_model(name)
    stacks = {
        key.removesuffix(".weight").replace(".weight_", "_"): tensor.mT if turned else tensor
        for key, tensor in round_experts(model).items()
    }
    write_experts(model, tmp_path, stacks, INT8_EXPERTS)
    found = qload.load(tmp_path)
    assert torch.allclose(compute(found), compute(model), atol=1e-5)
    assert all(each.down_proj.scheme is not None for each in found.modules() if isinstance(each, Experts))
    assert turned or qload.validate(tmp_path).findings == ()


def test_rows_of_a_tensor_that_is_fused_on_disk(tmp_path: Path) -> None:
    """What one stored module fills is read in two halves, and nothing of it is left over."""
    make_model("hrm_text").save_pretrained(tmp_path)
    stored = qload.validate(tmp_path)
    model = qload.load(tmp_path)
    report = qload.report(model)
    assert report.bytes_read == stored.nbytes
    sources = {source.prefix for module in model.modules() for source in getattr(module, "sources", ())}
    assert any("gate_up_proj" in prefix for prefix in sources)
