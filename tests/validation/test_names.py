"""Entries of a config's lists: those that match nothing, and those that mean more to other matchers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from breaking import Break, Case, add, config, config_alone
from headers import (
    HIDDEN,
    Shapes,
    attention,
    awq,
    ct_section,
    fp8_block,
    fp8_section,
    mlp,
    model_config,
    norms,
    outer,
    packed,
    plain,
    write_headers,
)
from holding import hold, together
from samples import DEMO

import qload
from qload import Registry
from qload.patterns import ListsNames

LAYER = "model.layers.0"


def append(key: str, *entries: str) -> Break:
    def change(whole: dict[str, Any]) -> None:
        section = whole["quantization_config"]
        section[key] = [*(section.get(key) or ()), *entries]

    return config_alone(change)


def add_group(*targets: str) -> Break:
    def change(whole: dict[str, Any]) -> None:
        groups = whole["quantization_config"]["config_groups"]
        groups["group_1"] = {**groups["group_0"], "targets": list(targets)}

    return config_alone(change)


ROUTER = add(f"{LAYER}.mlp.gate.weight", torch.zeros(4, 256, dtype=torch.bfloat16))

CASES: tuple[Case, ...] = (
    Case("QL107", DEMO.name, append("ignore", f"{LAYER}.mlp.down_porj"), f"{LAYER}.mlp.down_porj"),
    Case("QL107", DEMO.name, append("ignore", r"re:.*\.self_attm\..*"), "re:"),
    Case("QL107", DEMO.name, append("ignore", ".*mlp.*proj"), ".*mlp.*proj"),
    Case("QL107", "ct-qwen3moe-w4a16", append("ignore", "mlp.gate"), "mlp.gate"),
    Case("QL107", "ct-qwen3moe-w4a16", append("ignore", f"{LAYER}.mlp.gate.weight"), f"{LAYER}.mlp.gate.weight"),
    Case("QL107", "ct-fp8-static", add_group(r"re:.*\.experts\..*"), "config_groups.group_1.targets"),
    Case("QL107", "autoawq-gemm-g128", append("modules_to_not_convert", "self_atn"), "self_atn"),
    Case("QL107", "modelopt-nvfp4", append("ignore", "model.layers.*.self_atn*"), "model.layers.*.self_atn*"),
    Case("QL107", "quark-uint4-wo-128", append("exclude", "*.down_proj.weight", "*.dwon_proj"), "*.dwon_proj"),
    Case(
        "QL107",
        "gptq-4bit-g128-asym",
        config(lambda whole: whole["quantization_config"].update(dynamic={r"-:.*\.down_porj": {}})),
        r"-:.*\.down_porj",
    ),
    Case("QL203", DEMO.name, together(ROUTER, append("ignore", f"{LAYER}.mlp.gate")), f"{LAYER}.mlp.gate"),
    Case("QL203", "quark-uint4-wo-128", together(ROUTER, append("exclude", f"{LAYER}.mlp.gate")), f"{LAYER}.mlp.gate"),
    Case(
        "QL203",
        "hf-bitnet-packed",
        together(ROUTER, append("modules_to_not_convert", f"{LAYER}.mlp.gate")),
        f"{LAYER}.mlp.gate",
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.checkpoint} {case.where}")
def test_an_entry_is_found_where_it_is_written(case: Case, broken: Callable[[str], Path]) -> None:
    folder = broken(case.checkpoint)
    (finding,) = hold(case, folder)
    assert finding.file == "config.json"
    assert finding.pointer[0] == "quantization_config"


@pytest.mark.parametrize(
    ("entry", "meaning"),
    [
        (f"{LAYER}.mlp.down_porj", f"{LAYER}.mlp.down_proj"),
        (f"{LAYER}.mlp.up_proj.weight", f"{LAYER}.mlp.up_proj"),
        ("mlp.up_proj", r"re:.*\.mlp\.up_proj$"),
        (r".*\.up_proj$", r"re:.*\.up_proj$"),
        (r"re:.*\.self_atn\.q_proj", r"re:.*\.self_attn\.q_proj"),
    ],
)
def test_the_remedy_is_the_entry_that_was_meant(entry: str, meaning: str, broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    append("ignore", entry)(folder)
    (finding,) = qload.validate(folder).findings
    assert finding.remedy == f"did you mean {meaning}?"
    assert finding.pointer == ("quantization_config", "ignore", 1)


@pytest.mark.parametrize(
    "entry",
    [
        "re:.*vision_tower.*",
        "re:.*k_projs?_norm.*",
        r"re:.*\.qkv_proj$",
        r"re:.*\.gate_up_proj$",
        r"re:.*shared_experts.*",
        "LlamaRMSNorm",
        "embed_out",
        "re:.*lm_head2?",
        "model.embed_tokens",
        f"{LAYER}.mlp",
        "language_model.model.layers.0.mlp.gate",
        "model.layers.7.mlp.down_proj",
        "visual",
    ],
)
def test_an_entry_for_other_models_of_the_family_is_no_fault(entry: str, broken: Callable[[str], Path]) -> None:
    """Nor are those of a class, a head that may be tied, what is above modules, or one layer too many."""
    folder = broken(DEMO.name)
    append("ignore", entry)(folder)
    assert qload.validate(folder).findings == ()


def test_an_idle_target_beside_one_that_matches_is_no_fault(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    add_group(r"re:.*\.qkv_proj$", r"re:.*\.q_proj$")(folder)
    assert qload.validate(folder).findings == ()


def llama(*plains: int, make: Any) -> Shapes:
    tensors = outer()
    for number in range(12):
        layer = f"model.layers.{number}"
        chosen = plain if number in plains else make
        tensors |= norms(layer) | attention(layer, chosen) | mlp(f"{layer}.mlp", chosen)
    return tensors


def test_an_entry_for_a_layer_that_begins_the_numbers_of_others_is_found(tmp_path: Path) -> None:
    """The second layer, and to who looks for parts of names the eleventh and the twelfth, which are quantized."""
    config = model_config("llama", 12, quantization_config=fp8_section("lm_head", "model.layers.1"))
    (finding,) = qload.validate(write_headers(tmp_path / "made", config, llama(1, make=fp8_block))).findings
    assert (finding.code, finding.where) == ("QL203", "model.layers.1")
    assert "model.layers.{10..11}.mlp.down_proj" in finding.found


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}


def test_a_part_of_names_that_leaves_out_more_than_it_names_is_found(tmp_path: Path) -> None:
    """By the method's own word, `layers.1` leaves out the eleventh layer, too, which is stored so."""
    config = model_config("llama", 12, quantization_config={**AWQ, "modules_to_not_convert": ["layers.1"]})
    (finding,) = qload.validate(write_headers(tmp_path / "made", config, llama(1, 10, 11, make=awq))).findings
    assert (finding.code, finding.where) == ("QL203", "layers.1")
    assert "model.layers.{10..11}" in finding.found


def test_the_ends_of_names_are_left_out_by_most_matchers(tmp_path: Path) -> None:
    """`router` ends `shared_router`, which needs no entry of its own."""
    tensors = llama(make=awq)
    for number in range(12):
        tensors |= plain(f"model.layers.{number}.moe.router", 4, HIDDEN)
        tensors |= plain(f"model.layers.{number}.moe.shared_router", 1, HIDDEN)
    config = model_config("llama", 12, quantization_config={**AWQ, "modules_to_not_convert": ["router"]})
    assert qload.validate(write_headers(tmp_path / "made", config, tensors)).findings == ()


def test_parts_of_names_that_other_entries_name_are_no_fault(tmp_path: Path) -> None:
    left = ["layers.1", "layers.10", "layers.11"]
    config = model_config("llama", 12, quantization_config={**AWQ, "modules_to_not_convert": left})
    assert qload.validate(write_headers(tmp_path / "made", config, llama(1, 10, 11, make=awq))).findings == ()


def test_whole_names_are_no_fault_where_nothing_else_begins_so(tmp_path: Path) -> None:
    tensors = llama(make=packed)
    for number in range(12):
        tensors |= plain(f"model.layers.{number}.router", 4, HIDDEN)
    routers = [f"model.layers.{number}.router" for number in range(12)]
    config = model_config("llama", 12, quantization_config=ct_section("lm_head", *routers))
    assert qload.validate(write_headers(tmp_path / "made", config, tensors)).findings == ()


def test_the_configs_of_methods_that_list_modules_tell_their_lists(registry: Registry) -> None:
    """All but those that list none, and one whose names are neither those of modules nor parts of them."""
    silent = {
        method.name
        for method in registry.methods()
        if method.info.config is not None and not issubclass(method.info.config, ListsNames)
    }
    assert silent == {"hqq", "qqq"}
