"""Layers that the config counts, and projections that the others of their make have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from breaking import Case, drop
from headers import Shapes, attention, mlp, model_config, norms, outer, plain, write_headers
from holding import hold
from samples import DEMO

import qload

CASES: tuple[Case, ...] = (
    Case("QL201", DEMO.name, drop("model.layers.1."), "model.layers.1"),
    Case("QL201", "gptq-qwen3moe-4bit-g128", drop("model.layers.0."), "model.layers.0"),
    Case("QL201", "hf-gptoss-mxfp4", drop("model.layers.1."), "model.layers.1"),
    Case("QL201", DEMO.name, drop("model.layers.0.mlp.up_proj."), "model.layers.0.mlp.up_proj"),
    Case("QL201", "modelopt-nvfp4", drop("model.layers.1.self_attn.o_proj."), "model.layers.1.self_attn.o_proj"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.checkpoint} {case.where}")
def test_what_is_absent_is_found(case: Case, broken: Callable[[str], Path]) -> None:
    (finding,) = hold(case, broken(case.checkpoint))
    assert finding.where == case.where


def layers(*numbers: int, place: str = "model.layers") -> Shapes:
    tensors = outer()
    for layer in (f"{place}.{number}" for number in numbers):
        tensors |= norms(layer) | attention(layer, plain) | mlp(f"{layer}.mlp", plain)
    return tensors


@pytest.mark.parametrize(
    ("config", "numbers", "absent"),
    [
        (model_config("any", 5), (0, 1, 4), [2, 3]),
        ({"text_config": model_config("any", 3), "num_hidden_layers": 9}, (0, 1), [2]),
        ({"n_layer": 3}, (0, 2), [1]),
        (model_config("any", 2), (0, 1, 2), []),
        (model_config("any", 4, num_layers=2), (0, 1), []),
        (model_config("any", 4, is_encoder_decoder=True), (0, 1), []),
        (model_config("any", 4, layer_sharing=True), (0, 1), []),
        (model_config("any", 4, num_kv_shared_layers=2), (0, 1), []),
        (model_config("any", 4, block_configs=[{}]), (0, 1), []),
        ({}, (0, 2), []),
        ({"vision_config": {"num_hidden_layers": 4}}, (0, 2), []),
    ],
)
def test_the_layers_are_those_that_the_config_counts(
    config: dict[str, Any], numbers: tuple[int, ...], absent: list[int], tmp_path: Path
) -> None:
    """Silent where it counts none, counts in two ways, or has layers that share what is stored."""
    findings = qload.validate(write_headers(tmp_path / "made", config or {"any": 1}, layers(*numbers))).findings
    assert [finding.where for finding in findings] == [f"model.layers.{number}" for number in absent]


def test_layers_of_a_list_that_is_not_the_decoders_are_not_counted(tmp_path: Path) -> None:
    folder = write_headers(tmp_path / "made", model_config("any", 4), layers(0, 1, place="vision.encoder.layers"))
    assert qload.validate(folder).findings == ()


def test_layers_may_have_the_keys_and_values_of_others(broken: Callable[[str], Path]) -> None:
    """Or only the values: nothing says that a model of that kind has them in all layers."""
    folder = broken(DEMO.name)
    drop("model.layers.1.self_attn.v_proj.")(folder)
    assert qload.validate(folder).findings == ()
