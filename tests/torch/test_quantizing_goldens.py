"""Quantizing while loading, against what the methods' own tools store of the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from samples import DATA, relative_error
from torch import Tensor

import qload
from qload import Quantization, Registry
from qload.checkpoint import Checkpoint
from qload.presets import list_presets
from qload.resolution import resolve
from qload.torch import Layer, ReplicatedLinear, Site
from qload.torch.loading.checkpoints import list_entries

GOLDENS = Path(__file__).parent.parent / "goldens" / "quantizing.safetensors"
STORED = load_file(GOLDENS)
with safe_open(GOLDENS, framework="pt") as opened:
    SECTIONS = {case: json.loads(text) for case, text in sorted(opened.metadata().items())}


def load(tensors: dict[str, Tensor], quantization: Quantization, weight: Tensor) -> ReplicatedLinear:
    rows, columns = weight.shape
    layer = ReplicatedLinear(columns, rows, Site(quantization, "m", dtype=weight.dtype))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    return layer


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def make(section: dict[str, Any], weight: Tensor, registry: Registry) -> ReplicatedLinear:
    return load({"m.weight": weight}, qload.choose_quantization(section, registry=registry), weight)


@pytest.mark.parametrize("case", SECTIONS)
def test_the_tensors_are_the_tools_own(case: str, registry: Registry) -> None:
    stored = {name.removeprefix(f"{case}/"): each for name, each in STORED.items() if name.startswith(f"{case}/m.")}
    weight = STORED[f"{case}/weight"]
    config = {"quantization_config": SECTIONS[case]}
    expected = load(stored, resolve(Checkpoint(Path("none"), config, list_entries(stored)), registry), weight)
    found = make(SECTIONS[case], weight, registry)
    own = dict(found.named_parameters())
    for name, tensor in expected.named_parameters():
        assert own[name].dtype == tensor.dtype, name
        assert torch.equal(as_bytes(own[name]), as_bytes(tensor)), name
    assert torch.equal(qload.dequantize(found), qload.dequantize(expected))


@pytest.mark.parametrize("case", SECTIONS)
def test_strips_are_the_whole(case: str, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = STORED[f"{case}/weight"]
    whole = make(SECTIONS[case], weight, registry)
    monkeypatch.setattr("qload.torch.strips.STRIP", 200)
    monkeypatch.setattr("qload_hqq.quantizing.STRIP", 200)
    for (name, one), (_, other) in zip(
        whole.named_parameters(), make(SECTIONS[case], weight, registry).named_parameters(), strict=True
    ):
        assert torch.equal(as_bytes(one), as_bytes(other)), name


PRESETS = sorted(name for name in list_presets(Registry.discover()))


def test_every_preset_is_of_one_method(registry: Registry) -> None:
    assert [name for name, methods in list_presets(registry).items() if len(methods) > 1] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_experts_are_quantized_and_routers_are_not(preset: str, registry: Registry) -> None:
    model = qload.load(DATA / "base-qwen3moe", quantization=preset, registry=registry, dtype=torch.float32)
    treated = {name for name, layer in model.named_modules() if isinstance(layer, Layer) and layer.scheme is not None}
    assert any("experts" in name for name in treated)
    assert not any(name.endswith(("gate", "router", "lm_head")) for name in treated)
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        dense = qload.load(DATA / "base-qwen3moe", dtype=torch.float32)(ids).logits
        assert relative_error(model(ids).logits, dense) < (1 if "2" in preset else 0.5)


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_blocks_of_ggml_are_within_half_a_step(name: str, registry: Registry) -> None:
    weight = torch.randn(7, 80)
    weight[3] = 0
    made = qload.dequantize(make({"quant_method": "gguf", "bits": name}, weight, registry))
    steps = 8 if name == "q4_0" else 127
    padded = torch.nn.functional.pad(weight, (0, 16)).unflatten(1, (-1, 32))
    greatest = padded.abs().amax(-1, keepdim=True).expand_as(padded).flatten(1)[:, :80]
    # The scale is rounded to float16; and on the side away from the greatest, Q4_0 ends a step early.
    slack = greatest / 1000 + (greatest / 8 / 2 if name == "q4_0" else 0)
    assert bool(((made - weight).abs() <= greatest / steps / 2 + slack).all())


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"quant_method": "gguf", "bits": "q4_k"}, "Q4_K are not one of Q4_0, Q8_0"),
        ({"quant_method": "quanto", "activations": "int8"}, "calibration data"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig",
          "_data": {"int4_packing_format": "plain"}}}}, "Int4Tensor is not supported"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "IntxWeightOnlyConfig",
          "_data": {"granularity": {"_type": "PerGroup", "_data": {"group_size": 48}}}}}}, "not whole blocks"),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 77}}},
         "not whole groups of 77"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "float64"},
         "whole words of F64"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(section: dict[str, Any], text: str, registry: Registry) -> None:
    with pytest.raises(qload.errors.MethodError, match=text):
        make(section, torch.randn(3, 64) if "F64" not in text else torch.randn(3, 6), registry)
