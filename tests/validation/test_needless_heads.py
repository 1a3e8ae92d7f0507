"""Heads that the config ties to the embedding, and that are stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from breaking import Case, add, config
from headers import attention, mlp, model_config, norms, outer, plain, write_headers
from holding import hold
from samples import DEMO

import qload

CASES: tuple[Case, ...] = (
    Case("QL206", DEMO.name, config(lambda whole: whole.update(tie_word_embeddings=True)), "lm_head"),
    Case("QL206", "gptq-4bit-g128-asym", config(lambda whole: whole.update(tie_word_embeddings=True)), "lm_head"),
    Case("QL206", "ct-qwen2-tied-w8a8", add("lm_head.weight", torch.zeros(1024, 256, dtype=torch.bfloat16)), "lm_head"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.checkpoint)
def test_a_needless_head_is_found(case: Case, broken: Callable[[str], Path]) -> None:
    (finding,) = hold(case, broken(case.checkpoint))
    assert (finding.file, finding.pointer) == ("config.json", ("tie_word_embeddings",))


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ({"text_config": {"tie_word_embeddings": True}}, 1),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, 0),
        ({"tie_word_embeddings": None}, 0),
        ({"vision_config": {"tie_word_embeddings": True}}, 0),
        ({}, 0),
    ],
)
def test_only_a_config_that_says_so_ties(words: dict[str, Any], count: int, tmp_path: Path) -> None:
    """And without another word against it; what a model's class ties by default is the model's to know."""
    layer = "model.layers.0"
    tensors = outer() | norms(layer) | attention(layer, plain) | mlp(f"{layer}.mlp", plain)
    findings = qload.validate(write_headers(tmp_path / "made", {**model_config("any", 1), **words}, tensors)).findings
    assert [finding.code for finding in findings] == ["QL206"] * count
