"""Tensors that transformers computes from stored ones: what is wrong with those is found before anything is read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import compute, make_model
from edits import WEIGHTS, edit_config, edit_tensors
from safetensors.torch import load_file
from torch import Tensor

import qload
from qload.errors import CheckpointError

CONV = "model.layers.0.linear_attn.{}_conv1d.weight"


def codes(path: Path) -> set[str]:
    with pytest.raises(CheckpointError) as caught:
        qload.load(path)
    return {finding.code for finding in caught.value.findings}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda stored: stored.to(torch.int8), "QL211"),
        (lambda stored: stored[:-1], "QL307"),
        (lambda stored: stored[:, 0], "QL307"),
        (lambda stored: None, "QL201"),
    ],
    ids=["quantized", "short", "flat", "missing"],
)
def test_parts_that_do_not_fit(change: Callable[[Tensor], Tensor | None], code: str, tmp_path: Path) -> None:
    make_model("olmo_hybrid").save_pretrained(tmp_path)

    def edit(tensors: dict[str, Tensor]) -> None:
        changed = change(tensors.pop(CONV.format("k")))
        if changed is not None:
            tensors[CONV.format("k")] = changed

    edit_tensors(tmp_path, edit)
    assert codes(tmp_path) == {code}


def test_a_quantized_stack_that_would_have_to_be_reordered(tmp_path: Path) -> None:
    """Inkling's experts have the rows of gate and up projections in turns."""
    make_model("inkling2_text").save_pretrained(tmp_path)
    stacks = [name for name in load_file(tmp_path / WEIGHTS) if name.endswith("w13_weight")]
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(torch.int8) for name in stacks}))
    assert codes(tmp_path) == {"QL211"}


def test_what_is_converted_is_counted_and_given_back(tmp_path: Path) -> None:
    make_model("olmo_hybrid").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    model = qload.load(tmp_path, dtype=torch.bfloat16)
    report = qload.report(model)
    assert report.bytes_read == sum(tensor.nbytes for tensor in tensors.values())
    parts = torch.cat([tensors[CONV.format(part)] for part in "qkv"])
    assert torch.equal(model.get_parameter("model.layers.0.linear_attn.conv1d.weight"), parts.bfloat16())
    assert torch.isfinite(compute(model)).all()


def test_a_linear_layer_that_computes_more_is_named_once(tmp_path: Path) -> None:
    """A router that is a linear layer and gives more than its output."""
    make_model("llama4_text").save_pretrained(tmp_path)
    router = "model.layers.0.feed_forward.router"

    def quantize(tensors: dict[str, Tensor]) -> None:
        weight = tensors[f"{router}.weight"]
        tensors |= {f"{router}.weight": weight.to(torch.int8), f"{router}.weight_scale": weight[:, :1]}

    edit_tensors(tmp_path, quantize)
    weights = {"num_bits": 8, "strategy": "channel", "symmetric": True}
    section = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    groups = {"config_groups": {"group_0": {"targets": [f"re:{router}"], "weights": weights}}}
    edit_config(tmp_path, lambda config: config.update(quantization_config={**section, **groups}))
    with pytest.raises(CheckpointError, match=rf"QL211 {router}: a Llama4Router is quantized"):
        qload.load(tmp_path)
