"""Biases: of all modules of a make, or of none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from breaking import Case, add, drop
from headers import HIDDEN, INNER, attention, model_config, norms, outer, plain, write_headers
from holding import hold
from samples import DEMO

import qload

LAYER = "model.layers.1"

CASES: tuple[Case, ...] = (
    Case("QL208", "ct-qwen2-tied-w8a8", drop(f"{LAYER}.self_attn.q_proj.bias"), f"{LAYER}.self_attn.q_proj"),
    Case("QL208", "hf-gptoss-mxfp4", drop(f"{LAYER}.self_attn.o_proj.bias"), f"{LAYER}.self_attn.o_proj"),
    Case("QL208", DEMO.name, add("model.layers.0.mlp.down_proj.bias", torch.zeros(256)), f"{LAYER}.mlp.down_proj"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.checkpoint)
def test_an_odd_bias_is_found(case: Case, broken: Callable[[str], Path]) -> None:
    (finding,) = hold(case, broken(case.checkpoint))
    assert finding.where == case.where


def test_the_one_bias_that_others_lack_is_found(tmp_path: Path) -> None:
    tensors = outer()
    for layer in (f"model.layers.{number}" for number in range(3)):
        tensors |= norms(layer) | attention(layer, plain)
    tensors |= {"model.layers.0.self_attn.o_proj.bias": ("BF16", (HIDDEN,))}
    (finding,) = qload.validate(write_headers(tmp_path / "made", model_config("any", 3), tensors)).findings
    assert (finding.code, finding.where) == ("QL208", "model.layers.0.self_attn.o_proj")


def test_modules_of_one_name_in_blocks_of_two_makes_may_differ(tmp_path: Path) -> None:
    """As a state space and an attention that are both called `mixer`; and members of a sequence, by their numbers."""
    tensors = outer() | plain("model.layers.0.head.0", 64, HIDDEN, bias=True) | plain("model.layers.0.head.2", 64, 64)
    for number in range(4):
        mixer = f"model.layers.{number}.mixer"
        tensors |= norms(f"model.layers.{number}") | plain(f"{mixer}.out_proj", HIDDEN, INNER, bias=number % 2 == 0)
        tensors |= plain(f"{mixer}.{'in_proj' if number % 2 else 'qkv'}", INNER, HIDDEN)
    assert qload.validate(write_headers(tmp_path / "made", model_config("any", 4), tensors)).findings == ()
