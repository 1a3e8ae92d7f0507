"""What validating can find without a model, and what only loading can: the catalogue says it, and this holds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from breaking import Break, Case, add, config, cut, drop, half, put
from edits import INDEX, WEIGHTS, split_files, write_index
from samples import DEMO
from torch import Tensor

import qload
from qload.catalogue import RULES
from qload.errors import CheckpointError

LAYER = "model.layers.0.mlp.down_proj"


def put_leaf(leaf: str, change: Callable[[Tensor], Tensor]) -> Break:
    return put(f"{LAYER}.{leaf}", change)


def pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def lose_file(folder: Path) -> None:
    (folder / split_files(folder)[f"{LAYER}.weight_scale"]).unlink()


def misplace(folder: Path) -> None:
    placed = split_files(folder)
    write_index(folder, {**placed, "surplus": placed[f"{LAYER}.weight_scale"]})


def lose_index(folder: Path) -> None:
    split_files(folder)
    (folder / INDEX).unlink()


def store_twice(folder: Path) -> None:
    lose_index(folder)
    first = min(folder.glob("model-*"))
    (folder / "model-00003-of-00003.safetensors").write_bytes(first.read_bytes())


VALIDATED: dict[str, tuple[str, Break]] = {
    "QL001": (DEMO.name, pickle),
    "QL002": (DEMO.name, lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1")),
    "QL003": (DEMO.name, lambda folder: (folder / WEIGHTS).write_bytes(b"\2" + bytes(7) + b"[]")),
    "QL004": (DEMO.name, cut(100_000)),
    "QL005": (DEMO.name, lose_file),
    "QL006": (DEMO.name, misplace),
    "QL007": (DEMO.name, lose_index),
    "QL008": (DEMO.name, store_twice),
    "QL011": (DEMO.name, lambda folder: (folder / WEIGHTS).unlink()),
    "QL012": (DEMO.name, lambda folder: (folder / "config.json").unlink()),
    "QL101": (DEMO.name, config(lambda whole: whole.pop("quantization_config"))),
    "QL104": (DEMO.name, config(lambda whole: whole["quantization_config"].update(quant_method="wish"))),
    "QL105": (DEMO.name, lambda folder: (folder / "config.json").write_text("{")),
    "QL201": (DEMO.name, drop(f"{LAYER}.weight_scale")),
    "QL202": (DEMO.name, config(lambda whole: whole["quantization_config"]["ignore"].append(LAYER))),
    "QL210": (DEMO.name, add(f"{LAYER}.surplus", torch.zeros(2))),
    "QL301": (DEMO.name, put_leaf("weight_scale", lambda scale: scale[:, 1:].clone())),
    "QL302": (DEMO.name, put_leaf("weight_packed", half)),
    "QL303": ("ct-fp8-block", put_leaf("weight_scale", half)),
    "QL304": (DEMO.name, put_leaf("weight_scale", lambda scale: scale.to(torch.uint8))),
    "QL305": (DEMO.name, put_leaf("weight_zero_point", half)),
    "QL307": (DEMO.name, put_leaf("weight_shape", half)),
    "QL308": (DEMO.name, put_leaf("weight_packed", lambda packed: packed.to(torch.int64))),
}
"""For each code that validating can find, a checkpoint and what makes it so."""

CASES: tuple[Case, ...] = tuple(Case(code, *case) for code, case in VALIDATED.items())

LOADED: dict[str, tuple[str, Break]] = {
    "QL501": (DEMO.name, put_leaf("weight_scale", lambda scale: scale * float("nan"))),
    "QL505": ("gptq-4bit-g32-sym-descact", put_leaf("g_idx", lambda index: index + 1)),
    "QL508": ("hqq-3bit-g64", put_leaf("nbits", lambda bits: bits + 1)),
}
"""The same for some that only loading can."""


def test_the_catalogue_says_what_validating_can_find() -> None:
    assert VALIDATED.keys() <= {code for code, rule in RULES.items() if rule.is_validated}


@pytest.mark.parametrize("code", VALIDATED)
def test_what_validating_can_find_it_finds(code: str, broken: Callable[[str], Path]) -> None:
    name, broken_by = VALIDATED[code]
    folder = broken(name)
    broken_by(folder)
    found = {finding.code for finding in qload.validate(folder).findings}
    assert code in found
    assert all(RULES[each].is_validated for each in found)


@pytest.mark.parametrize("code", LOADED)
def test_what_only_loading_can_find_is_no_fault_to_the_validator(code: str, broken: Callable[[str], Path]) -> None:
    name, broken_by = LOADED[code]
    folder = broken(name)
    broken_by(folder)
    assert qload.validate(folder).findings == ()
    assert {finding.code for finding in load(folder)} == {code}
    assert not RULES[code].is_validated


@pytest.mark.parametrize("begin", ["model.norm.", "model.layers.1.self_attn.v_proj.", "model.embed_tokens."])
def test_what_a_model_may_lack_is_found_by_loading(begin: str, broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop(begin)(folder)
    assert qload.validate(folder).findings == ()
    assert {finding.code for finding in load(folder)} == {"QL201"}


@pytest.mark.parametrize("begin", ["model.layers.1.", "model.layers.0.mlp.up_proj."])
def test_what_other_layers_have_is_found_by_both(begin: str, broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    drop(begin)(folder)
    assert {finding.code for finding in qload.validate(folder).findings} == {"QL201"}
    assert {finding.code for finding in load(folder)} == {"QL201"}


def load(folder: Path) -> tuple[Any, ...]:
    """What a load finds, whether it raises it or not."""
    try:
        return qload.report(qload.load(folder)).findings
    except CheckpointError as error:
        return error.findings
