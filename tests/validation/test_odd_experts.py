"""Experts: all there, and stored alike in each mixture and from layer to layer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from breaking import Case, add, config, drop
from headers import (
    HIDDEN,
    INNER,
    Shapes,
    attention,
    fp8_block,
    fp8_section,
    mixture,
    model_config,
    norms,
    outer,
    plain,
    write_headers,
)
from holding import hold, plain_module, together

import qload

LAYER = "model.layers.1"
EXPERTS = f"{LAYER}.mlp.experts"
GPTQ, PACKED, PLAIN = "gptq-qwen3moe-4bit-g128", "ct-qwen3moe-w4a16", "base-qwen3moe"

CASES: tuple[Case, ...] = (
    Case("QL205", GPTQ, drop(f"{EXPERTS}.2."), f"{EXPERTS}.2"),
    Case("QL205", PACKED, drop(f"{EXPERTS}.3."), f"{EXPERTS}.3"),
    Case("QL205", PLAIN, drop(f"{EXPERTS}.1.up_proj."), f"{EXPERTS}.1.up_proj"),
    Case(
        "QL205",
        PACKED,
        together(
            plain_module(f"{EXPERTS}.1.down_proj", 256, 128),
            config(lambda whole: whole["quantization_config"]["ignore"].append(f"{EXPERTS}.1.down_proj")),
        ),
        f"{EXPERTS}.1.down_proj",
    ),
    Case(
        "QL205",
        PLAIN,
        together(
            drop(f"{EXPERTS}."),
            add(f"{EXPERTS}.gate_up_proj", torch.zeros(4, 256, 256, dtype=torch.bfloat16)),
            add(f"{EXPERTS}.down_proj", torch.zeros(4, 256, 128, dtype=torch.bfloat16)),
        ),
        EXPERTS,
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.checkpoint} {case.where}")
def test_experts_are_found(case: Case, broken: Callable[[str], Path]) -> None:
    (finding,) = hold(case, broken(case.checkpoint))
    assert finding.where == case.where


def mixtures(experts: int) -> Shapes:
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(2)):
        tensors |= norms(layer) | attention(layer, fp8_block) | mixture(f"{layer}.mlp", fp8_block, experts)
        tensors |= plain(f"{layer}.mlp.gate", experts, HIDDEN)
    return tensors


def test_experts_that_all_layers_lack_are_those_that_the_config_counts(tmp_path: Path) -> None:
    section = fp8_section("lm_head", *(f"model.layers.{number}.mlp.gate" for number in range(2)))
    config = {"text_config": model_config("any", 2, num_experts=6), "quantization_config": section}
    findings = qload.validate(write_headers(tmp_path / "made", config, mixtures(4))).findings
    assert [finding.where for finding in findings] == [
        f"model.layers.{layer}.mlp.experts.{expert}" for layer in (0, 1) for expert in (4, 5)
    ]


@pytest.mark.parametrize("counts", [{"num_experts": [6, 4]}, {"num_experts": 6, "moe_num_experts": 4}, {}])
def test_a_config_that_says_no_one_number_counts_nothing(counts: dict[str, object], tmp_path: Path) -> None:
    section = fp8_section("lm_head", *(f"model.layers.{number}.mlp.gate" for number in range(2)))
    config = model_config("any", 2, **counts, quantization_config=section)
    assert qload.validate(write_headers(tmp_path / "made", config, mixtures(4))).findings == ()


def test_layers_after_those_that_are_counted_may_be_stored_otherwise(tmp_path: Path) -> None:
    """What predicts further tokens is often taken over as it was."""
    section = fp8_section("lm_head", "model.layers.2", *(f"model.layers.{number}.mlp.gate" for number in range(2)))
    stack = "model.layers.2.mlp.experts"
    tensors = mixtures(4) | {f"{stack}.gate_up_proj": ("BF16", (4, 2 * INNER, HIDDEN))}
    tensors |= {f"{stack}.down_proj": ("BF16", (4, HIDDEN, INNER))}
    config = model_config("any", 2, num_experts=4, quantization_config=section)
    assert qload.validate(write_headers(tmp_path / "made", config, tensors)).findings == ()
