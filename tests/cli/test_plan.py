"""`qload plan`, as its users meet it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from edits import edit_config, edit_tensors, split_files, write_index
from samples import DATA, DEMO

import qload
from qload.cli import cli

SCALE = "model.layers.{}.mlp.down_proj.weight_scale"
MIXTURE = DATA / "ct-qwen3moe-w4a16"


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["plan", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def lines(result: Result) -> list[list[str]]:
    """Each line's cells, which two spaces or more keep apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in result.output.splitlines()]


def test_sizes_that_fit() -> None:
    result = call(DEMO, "--tp", "1,2,4")
    assert result.exit_code == 0
    found = lines(result)
    assert found[0] == [f"{DEMO} (compressed-tensors; 63 tensors, 1.66 MB)"]
    assert found[2:6] == [
        ["ranks", "each reads", "each holds", "all read", "read again"],
        ["1", "1.66 MB", "1.66 MB", "1.66 MB", "0 B"],
        ["2", "833.28 kB", "833.28 kB", "1.67 MB", "2.56 kB"],
        ["4", "434.94 kB", "434.94 kB", "1.74 MB", "75.78 kB"],
    ]
    assert found[7] == ["modules", "stored as", "bytes", "1 rank", "2 ranks", "4 ranks"]
    label, keys = "int4 group 128 asymmetric", "model.layers.{0..1}.self_attn.k_proj (2)"
    assert ["model.layers.{0..1}.mlp.down_proj (2)", label, "136.19 kB", "whole", "row", "row"] in found
    assert [keys, label, "34.05 kB", "whole", "column", "column +34.05 kB"] in found
    assert ["lm_head", "unquantized", "524.29 kB", "whole", "vocabulary", "vocabulary"] in found
    assert ["model.norm.weight", "512 B", "whole", "whole +512 B", "whole +1.54 kB"] in found


def test_a_size_that_does_not_fit_is_1_and_said_why() -> None:
    result = call(DEMO, "--tp", "2,3,8")
    assert result.exit_code == 1
    found = result.output.splitlines()
    assert [cells for cells in lines(result) if "does not fit" in cells] == [
        ["3", "does not fit"],
        ["8", "does not fit"],
    ]
    assert "3 ranks cannot share it:" in found
    assert found[found.index("8 ranks cannot share it:") + 1 :] == [
        "  model.layers.{0..1}.self_attn.q_proj (2): 4 heads of the layer cannot be divided by 8; 64 stay together; "
        "numbers of ranks that fit: 1, 2, 4"
    ]
    (keys,) = [line for line in found if "k_proj (2): " in line]
    assert keys.endswith("numbers of ranks that fit: 1, 2, 4, 6, 8, 10, 12, 14, ...")
    (tensor,) = [line for line in call(DATA / "ct-fp8-block", "--tp", 4).output.splitlines() if "k_proj.w" in line]
    assert tensor.startswith("  model.layers.{0..1}.self_attn.k_proj.weight_scale (2): elements 0 to 64 of 128 split")
    assert tensor.endswith("; 128 stay together; numbers of ranks that fit: 1, 2")


def test_mixtures_by_experts() -> None:
    result = call(MIXTURE, "--tp", "2", "--expert-parallel")
    assert result.exit_code == 0
    experts = [cells for cells in lines(result) if cells and ".experts." in cells[0]]
    assert [cells[0].rpartition(".")[2] for cells in experts] == ["down_proj (8)", "gate_proj (8)", "up_proj (8)"]
    assert {cells[-1] for cells in experts} == {"experts"}
    assert call(MIXTURE, "--tp", "2", "--expert-parallel").output != call(MIXTURE, "--tp", "2").output


def test_as_json() -> None:
    result = call(MIXTURE, "--tp", "2,3", "--format", "json")
    assert result.exit_code == 1
    found, plans = json.loads(result.output), qload.plan_ranks(MIXTURE, [2, 3])
    two, three = found["sizes"]
    assert (found["path"], found["method"], found["findings"]) == (str(MIXTURE), "compressed-tensors", [])
    assert (two["size"], two["fits"], two["replicated"]) == (2, True, plans.sizes[0].replicated)
    assert two["ranks"] == [{"read": share.read, "held": share.held} for share in plans.sizes[0].ranks]
    assert [group["where"] for group in two["groups"]] == [group.where for group in plans.sizes[0].groups]
    assert {group["split"] for group in two["groups"]} == {"column", "row", "vocabulary", "whole"}
    assert (three["fits"], three["obstacles"][0]["sizes"]) == (False, list(plans.sizes[1].obstacles[0].sizes))


def test_a_broken_checkpoint_gives_its_findings_and_2(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    edit_tensors(folder, lambda stored: [stored.pop(SCALE.format(layer)) for layer in (0, 1)].clear())
    result = call(folder)
    assert result.exit_code == 2
    finding, verdict = result.output.splitlines()
    assert finding.startswith("QL201 error: " + SCALE.format("{0..1}") + " (2): the group scale is not stored")
    assert verdict.startswith(f"{folder} (compressed-tensors; 61 tensors")
    assert verdict.endswith("nothing is planned for a broken checkpoint")
    found = json.loads(call(folder, "--format", "json").output)
    assert ([each["code"] for each in found["findings"]], found["sizes"]) == (["QL201", "QL201"], [])


def test_a_warning_is_shown_and_no_reason_not_to_plan(broken: Callable[[str], Path]) -> None:
    folder = broken(DEMO.name)
    placed = split_files(folder)
    placed.popitem()
    write_index(folder, placed)
    result = call(folder, "--tp", 2)
    assert result.exit_code == 0
    assert result.output.startswith("QL007 warning: ")


def test_what_could_not_be_told_is_2(broken: Callable[[str], Path]) -> None:
    result = call("nowhere")
    assert (result.exit_code, result.output.count("\n")) == (2, 1)
    folder = broken("bnb-nf4-dq")
    edit_config(folder, lambda config: config.pop("hidden_size"))
    result = call(folder, "--tp", 2)
    assert result.exit_code == 2
    assert "  model.layers.{0..1}.mlp.down_proj" in result.output.splitlines()


@pytest.mark.parametrize("sizes", ["0", "-2", "100000000", "1,,2", "two", "1.5", "", "2, x"])
def test_what_is_no_number_of_ranks_is_a_usage_error(sizes: str) -> None:
    result = call(DEMO, "--tp", sizes)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert line == f"Error: Invalid value for '--tp': {sizes!r} is no list of numbers of ranks, as 1,2,4,8"
