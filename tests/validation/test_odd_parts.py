"""Parts that engines fuse: quantized alike, or by a method whose parts may differ; fused on disk, with finer scales."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from breaking import Case, config
from headers import Shapes, attention, fp8_tensor, mlp, model_config, norms, outer, plain, write_headers
from holding import hold, plain_module, replace_module, together
from samples import DEMO

import qload

LAYER = "model.layers.0"

CASES: tuple[Case, ...] = (
    Case(
        "QL204",
        DEMO.name,
        together(
            plain_module(f"{LAYER}.self_attn.k_proj", 128, 256),
            config(lambda whole: whole["quantization_config"]["ignore"].append(f"{LAYER}.self_attn.k_proj")),
        ),
        f"{LAYER}.self_attn",
    ),
    Case(
        "QL204",
        "gptq-4bit-g128-asym",
        together(
            plain_module(f"{LAYER}.self_attn.q_proj", 256, 256),
            config(lambda whole: whole["quantization_config"].update(dynamic={r"-:.*\.0\.self_attn\.q_proj": {}})),
        ),
        f"{LAYER}.self_attn",
    ),
    Case(
        "QL204",
        "autoawq-gemm-g128",
        together(
            plain_module(f"{LAYER}.mlp.gate_proj", 512, 256),
            config(
                lambda whole: whole["quantization_config"].update(modules_to_not_convert=[f"{LAYER}.mlp.gate_proj"])
            ),
        ),
        f"{LAYER}.mlp",
    ),
    Case(
        "QL204",
        "quark-uint4-wo-128",
        together(
            plain_module(f"{LAYER}.mlp.up_proj", 512, 256),
            config(lambda whole: whole["quantization_config"]["exclude"].append(f"{LAYER}.mlp.up_proj")),
        ),
        f"{LAYER}.mlp",
    ),
    Case(
        "QL306",
        "ct-fp8-static",
        together(
            *(replace_module(f"{LAYER}.self_attn.{leaf}_proj", {}) for leaf in "qkv"),
            replace_module(
                f"{LAYER}.self_attn.qkv_proj",
                {
                    "weight": torch.zeros(512, 256).to(torch.float8_e4m3fn),
                    "weight_scale": torch.ones(1, dtype=torch.bfloat16),
                    "input_scale": torch.ones(1, dtype=torch.bfloat16),
                },
            ),
        ),
        f"{LAYER}.self_attn.qkv_proj",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code} {case.checkpoint}")
def test_parts_are_found(case: Case, broken: Callable[[str], Path]) -> None:
    (finding,) = hold(case, broken(case.checkpoint))
    assert finding.where == case.where


def test_bits_may_differ_where_a_method_says_so(broken: Callable[[str], Path]) -> None:
    """The settings of single modules are a part of that format; whether all are quantized is not."""
    assert qload.validate(broken("gptq-dynamic-mixed")).findings == ()


def fused(*scales: int) -> Shapes:
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(2)):
        tensors |= norms(layer) | mlp(f"{layer}.mlp", fp8_tensor) | fp8_tensor(f"{layer}.self_attn.qkv_proj", 512, 256)
        tensors[f"{layer}.self_attn.qkv_proj.weight_scale"] = ("F32", scales)
    return tensors


def test_one_scale_is_found_for_each_fused_module(tmp_path: Path) -> None:
    section = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    folder = write_headers(tmp_path / "made", model_config("phi3", 2, quantization_config=section), fused())
    findings = qload.validate(folder).findings
    assert [(finding.code, finding.where) for finding in findings] == [
        ("QL306", f"model.layers.{number}.self_attn.qkv_proj") for number in range(2)
    ]


def test_the_parts_of_two_attentions_are_not_one_layer(tmp_path: Path) -> None:
    """Queries of one sequence and keys of another are never computed together."""
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(2)):
        tensors |= norms(layer) | attention(layer, fp8_tensor) | mlp(f"{layer}.mlp", fp8_tensor)
        tensors |= fp8_tensor(f"{layer}.cross_attn.k_proj", 128, 256) | plain(f"{layer}.cross_attn.q_proj", 256, 256)
    section = {"quant_method": "fp8", "ignored_layers": [f"model.layers.{each}.cross_attn.q_proj" for each in (0, 1)]}
    folder = write_headers(tmp_path / "made", model_config("any", 2, quantization_config=section), tensors)
    assert qload.validate(folder).findings == ()
