"""Names of the config that begin otherwise than the tensors': sure where what is stored agrees with one reading."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from breaking import Break, Case, config, config_alone
from headers import attention, ct_section, mlp, model_config, norms, outer, packed, plain, write_headers
from holding import hold, plain_module, rename, together
from samples import DEMO

import qload

PLACE = "layers.0.mlp.down_proj"
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LEAVES = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def ignore(entry: str, rows: int, columns: int) -> Break:
    """A module that is stored plain, as an entry with another prefix says."""
    return together(
        plain_module(f"model.{PLACE}", rows, columns),
        config_alone(lambda whole: whole["quantization_config"].setdefault("ignore", []).append(entry)),
    )


def target(prefix: str) -> Break:
    """All layers by name, with another prefix."""

    def change(whole: dict[str, Any]) -> None:
        (group,) = whole["quantization_config"]["config_groups"].values()
        group["targets"] = [f"{prefix}.layers.{number}.{leaf}" for number in (0, 1) for leaf in LEAVES]

    return config(change)


def wrap(name: str) -> str:
    return name.replace("model.", "model.language_model.", 1)


CASES: tuple[Case, ...] = (
    Case("QL209", DEMO.name, ignore(f"language_model.model.{PLACE}", 256, 512), f"language_model.model.{PLACE}"),
    Case("QL209", "ct-fp8-static", ignore(f"model.language_model.{PLACE}", 256, 512), f"model.language_model.{PLACE}"),
    Case("QL209", "modelopt-nvfp4", ignore(PLACE, 256, 512), PLACE),
    Case("QL209", DEMO.name, target("model.language_model"), "model.language_model.layers.0.self_attn.q_proj"),
    Case("QL209", "ct-fp8-block", together(rename(wrap), target("model")), "model.layers.0.mlp.down_proj"),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.checkpoint} {case.where}")
def test_a_drift_is_found_in_place_of_what_it_leads_to(case: Case, broken: Callable[[str], Path]) -> None:
    for finding in hold(case, broken(case.checkpoint)):
        assert finding.file == "config.json"
        assert finding.expected == finding.found


def test_other_faults_of_other_modules_stay(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    ignore(f"language_model.model.{PLACE}", 256, 512)(folder)
    plain_module("model.layers.1.self_attn.q_proj", 256, 256)(folder)
    found = [(finding.code, finding.where) for finding in qload.validate(folder).findings]
    assert ("QL209", f"language_model.model.{PLACE}") in found
    assert {where for code, where in found if code == "QL201"} == {
        f"model.layers.1.self_attn.q_proj.{leaf}" for leaf in ("weight_packed", "weight_scale", "weight_zero_point")
    }


@pytest.mark.parametrize("prefix", ["model.visual", "model.vision_tower", "visual"])
def test_names_that_differ_are_no_fault_where_nothing_contradicts_them(prefix: str, tmp_path: Path) -> None:
    """A tower that nobody quantizes, by the names that a newer version of the model gives it."""
    tensors = outer()
    for number in range(2):
        layer = f"model.layers.{number}"
        tensors |= norms(layer) | attention(layer, packed) | mlp(f"{layer}.mlp", packed)
        tensors |= plain(f"visual.blocks.{number}.attn.qkv", 192, 64)
    ignored = [f"{prefix}.blocks.{number}.attn.qkv" for number in range(2)]
    config = model_config("any", 2, quantization_config=ct_section("lm_head", *ignored))
    assert qload.validate(write_headers(tmp_path / "made", config, tensors)).findings == ()


def test_an_entry_beside_the_right_one_is_no_fault(broken: Callable[[str], Path]) -> None:
    """Lists for several versions of a model's names."""
    folder = broken("modelopt-nvfp4")
    ignore(PLACE, 256, 512)(folder)
    config_alone(lambda whole: whole["quantization_config"]["ignore"].append(f"model.{PLACE}"))(folder)
    assert qload.validate(folder).findings == ()


def test_newer_names_of_a_model_that_sees_are_those_of_its_older_tensors(broken: Callable[[str], Path]) -> None:
    """Whoever loads it gives the tensors the names that the entries have, and the plan's word is taken back."""
    folder = broken(DEMO.name)
    ignore(f"model.language_model.{PLACE}", 256, 512)(folder)
    assert [finding.code for finding in qload.validate(folder).findings] == ["QL209"]
    config(lambda whole: whole.update(vision_config={}))(folder)
    assert qload.validate(folder).findings == ()
