"""Scales of keys and values: of all attentions, and under names that something reads."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from breaking import Break, Case, add
from headers import attention, fp8_tensor, mlp, model_config, norms, outer, write_headers
from holding import hold, together

import qload

ATTENTIONS = tuple(f"model.layers.{number}.self_attn" for number in (0, 1))


def add_scales(*leaves: str) -> Break:
    return together(*(add(f"{name}.{leaf}", torch.ones(1)) for name in ATTENTIONS for leaf in leaves))


CASES: tuple[Case, ...] = (
    Case("QL207", "ct-fp8-static", add_scales("k_scale", "v_scale"), ATTENTIONS[0]),
    Case("QL207", "gptq-4bit-g128-asym", add_scales("k_scale", "v_scale"), ATTENTIONS[0]),
    Case("QL207", "ct-fp8-block", add_scales("kv_scale"), ATTENTIONS[1]),
    Case("QL207", "modelopt-nvfp4", add_scales("attn.k_scale", "attn.v_scale"), ATTENTIONS[1]),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.checkpoint)
def test_scales_that_nothing_reads_are_found(case: Case, broken: Callable[[str], Path]) -> None:
    assert [finding.where for finding in hold(case, broken(case.checkpoint))] == list(ATTENTIONS)


def cached(tmp_path: Path, *having: int) -> Path:
    """Three layers, of which some have scales of keys and values, and one after them that has none."""
    tensors = outer()
    for number in range(4):
        layer = f"model.layers.{number}"
        tensors |= norms(layer) | attention(layer, fp8_tensor) | mlp(f"{layer}.mlp", fp8_tensor)
        if number in having:
            tensors |= {f"{layer}.self_attn.{leaf}_scale": ("F32", ()) for leaf in "kv"}
    section = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    return write_headers(tmp_path / "made", model_config("any", 3, quantization_config=section), tensors)


def test_an_attention_without_scales_among_others_that_have_some_is_found(tmp_path: Path) -> None:
    findings = qload.validate(cached(tmp_path, 0, 2)).findings
    assert [(finding.code, finding.where) for finding in findings] == [("QL207", "model.layers.1.self_attn")]


def test_layers_that_predict_further_tokens_may_lack_scales(tmp_path: Path) -> None:
    assert qload.validate(cached(tmp_path, 0, 1, 2)).findings == ()


def test_a_models_own_parameter_is_no_scale_of_a_cache(broken: Callable[[str], Path]) -> None:
    folder = broken("ct-fp8-static")
    add_scales("k_scale")(folder)
    assert qload.validate(folder).findings == ()
