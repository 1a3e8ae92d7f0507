"""Holding a checkpoint against its architecture: what a load would find before it reads is found, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from breaking import Case, add, config, drop
from edits import edit_tensors
from samples import DEMO, flaws, is_sound, samples
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import qload
from qload.errors import CheckpointError, ModelError

EXPERTS = "model.layers.0.mlp.experts"


def unpack_one_stack(folder: Path) -> None:
    """One of a mixture's two stacks is stored dense, and the other one packed."""

    def change(tensors: dict[str, Tensor]) -> None:
        name = f"{EXPERTS}.down_proj"
        blocks, scales = tensors.pop(f"{name}_blocks"), tensors.pop(f"{name}_scales")
        tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)

    edit_tensors(folder, change)


MODEL = {"model": True}
CASES: tuple[Case, ...] = (
    Case("QL211", "hf-gptoss-mxfp4", unpack_one_stack, EXPERTS, MODEL),
    Case("QL212", DEMO.name, config(lambda whole: whole.update(model_type="nothing")), "", MODEL),
    Case("QL201", DEMO.name, drop("model.layers.0.mlp.up_proj."), "model.layers.0.mlp.up_proj", MODEL),
    Case("QL201", DEMO.name, drop("model.norm."), "model.norm.weight", MODEL),
    Case("QL210", DEMO.name, add("model.layers.0.mlp.side_proj.weight", torch.zeros(2, 2)), "", MODEL),
    Case("QL307", DEMO.name, config(lambda whole: whole.update(vocab_size=1000)), "model.embed_tokens.weight", MODEL),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code} {case.where}")
def test_what_does_not_fit_the_architecture_is_found(case: Case, broken: Callable[[str], Path]) -> None:
    folder = broken(case.checkpoint)
    assert qload.validate(folder, model=True).findings == ()
    case.breaks(folder)
    found = qload.validate(folder, model=True).findings
    assert any(each.code == case.code and each.where.startswith(case.where) for each in found), found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code} {case.where}")
def test_it_is_what_loading_finds(case: Case, broken: Callable[[str], Path]) -> None:
    folder = broken(case.checkpoint)
    case.breaks(folder)
    errors = {finding.code for finding in qload.validate(folder, model=True).errors}
    if errors == {"QL212"}:
        with pytest.raises(ModelError):
            qload.load(folder)
    else:
        with pytest.raises(CheckpointError) as caught:
            qload.load(folder)
        assert {finding.code for finding in caught.value.findings} == errors


@pytest.mark.parametrize("path", [path for path in samples() if is_sound(path)], ids=lambda path: path.name)
def test_real_checkpoints_fit_their_architectures(path: Path) -> None:
    assert {finding.code for finding in qload.validate(path, model=True).findings} <= flaws(path)


def test_a_checkpoint_with_errors_is_not_built(broken: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("qload.torch.models.checking.find_model_faults", build)
    folder = broken(DEMO.name)
    drop("model.layers.0.mlp.down_proj.weight_scale")(folder)
    assert {finding.code for finding in qload.validate(folder, model=True).findings} == {"QL201"}
