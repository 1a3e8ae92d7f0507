"""Folders: one file or an index of several, and everything that can be wrong between them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from edits import INDEX, WEIGHTS, split_files, write_index
from safetensors.torch import load_file, save_file
from samples import DEMO

from qload.catalogue import Severity
from qload.checkpoint import Folder, open_folder
from qload.checkpoint.documents import MAX_JSON_BYTES
from qload.checkpoint.names import group_tensors, join_name, split_name
from qload.errors import QloadError

NAME = DEMO.name


def codes(path: Path) -> list[str]:
    return [finding.code for finding in open_folder(Folder(path)).findings]


def test_several_files_are_the_one_that_they_were(broken: Callable[[str], Path]) -> None:
    whole, folder = open_folder(Folder(DEMO)), broken(NAME)
    split_files(folder, 3)
    parts = open_folder(Folder(folder))
    assert parts.findings == ()
    assert {n: (e.dtype, e.shape) for n, e in parts.tensors.items()} == {
        n: (e.dtype, e.shape) for n, e in whole.tensors.items()
    }
    assert parts.nbytes == whole.nbytes


def test_what_files_say_of_names_is_put_together(tmp_path: Path) -> None:
    """Of names below modules, whatever files say it; what they say alike once, and what is no text not at all."""
    tables: dict[str, dict[str, object]] = {
        "model-1.safetensors": {"a.b.weight": "x", "format": "pt", "a.b.bias": "y", "c.weight": 3},
        "model-2.safetensors": {"a.b.weight": "z", "a.b.bias": "y", "d.weight": ["w"]},
    }
    for name, table in tables.items():
        header = json.dumps({"__metadata__": table}).encode()
        (tmp_path / name).write_bytes(len(header).to_bytes(8, "little") + header)
    assert open_folder(Folder(tmp_path)).descriptions == {"a.b": {"weight": ("x", "z"), "bias": ("y",)}}


def test_there_is_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(QloadError, match="there is no such folder"):
        open_folder(Folder(tmp_path / "nothing"))
    with pytest.raises(QloadError, match="is no folder"):
        open_folder(Folder(DEMO / "config.json"))


def test_the_index_names_a_file_that_is_not_there(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    placed = split_files(folder)
    gone = next(iter(sorted(set(placed.values()))))
    (folder / gone).unlink()
    (finding,) = open_folder(Folder(folder)).findings
    assert (finding.code, finding.file) == ("QL005", gone)
    assert str(sum(file == gone for file in placed.values())) in finding.expected


def test_the_index_leads_out_of_the_folder(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    placed = split_files(folder)
    write_index(folder, {**placed, "a.b": "../elsewhere.safetensors"})
    (finding,) = open_folder(Folder(folder)).findings
    assert finding.code == "QL005"
    assert "not inside the folder" in finding.message


def test_the_index_places_a_tensor_wrongly(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    placed = split_files(folder)
    write_index(folder, {**placed, "model.extra.weight": next(iter(placed.values()))})
    (finding,) = open_folder(Folder(folder)).findings
    assert (finding.code, finding.where) == ("QL006", "model.extra.weight")


def test_the_index_forgets_a_tensor(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    placed = split_files(folder)
    forgotten = placed.popitem()[0]
    write_index(folder, placed)
    checkpoint = open_folder(Folder(folder))
    assert [(finding.code, finding.where) for finding in checkpoint.findings] == [("QL007", forgotten)]
    assert forgotten in checkpoint.tensors


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none(broken: Callable[[str], Path], content: str) -> None:
    folder = broken(NAME)
    split_files(folder)
    (folder / INDEX).write_text(content)
    checkpoint = open_folder(Folder(folder))
    assert [finding.code for finding in checkpoint.findings] == ["QL105"]
    assert checkpoint.tensors.keys() == open_folder(Folder(DEMO)).tensors.keys()


def test_files_without_an_index(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    split_files(folder)
    (folder / INDEX).unlink()
    checkpoint = open_folder(Folder(folder))
    assert [finding.code for finding in checkpoint.findings] == ["QL007"]
    assert checkpoint.tensors.keys() == open_folder(Folder(DEMO)).tensors.keys()


def test_one_tensor_in_two_files_that_no_index_places(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    split_files(folder)
    (folder / INDEX).unlink()
    shard = folder / "model-00001-of-00002.safetensors"
    (folder / "model-00003-of-00002.safetensors").write_bytes(shard.read_bytes())
    assert set(codes(folder)) == {"QL007", "QL008"}


def test_a_stale_copy_that_the_index_does_not_name(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    placed = split_files(folder)
    (folder / "model-extra.safetensors").write_bytes(b"stale")
    checkpoint = open_folder(Folder(folder))
    assert checkpoint.findings == ()
    assert {entry.file for entry in checkpoint.tensors.values()} == set(placed.values())


@pytest.mark.parametrize("chosen", [0, 1])
def test_the_index_decides_between_two_copies_of_a_tensor(broken: Callable[[str], Path], chosen: int) -> None:
    folder, name = broken(NAME), "model.norm.weight"
    files = sorted(set(split_files(folder).values()))
    shards = [load_file(folder / file) for file in files]
    for number, (file, shard) in enumerate(zip(files, shards, strict=True)):
        save_file({**shard, name: torch.full((number + 1,), 1.0)}, folder / file)
    placed = {each: file for file, shard in zip(files, shards, strict=True) for each in shard}
    write_index(folder, {**placed, name: files[chosen]})
    checkpoint = open_folder(Folder(folder))
    (finding,) = checkpoint.findings
    assert (finding.code, finding.severity, finding.where, finding.file) == (
        "QL008",
        Severity.WARNING,
        name,
        files[1 - chosen],
    )
    assert (checkpoint.tensors[name].file, checkpoint.tensors[name].shape) == (files[chosen], (chosen + 1,))


def test_a_file_that_cannot_be_read_is_one_finding_and_not_one_for_each_of_its_tensors(
    broken: Callable[[str], Path],
) -> None:
    folder = broken(NAME)
    placed = split_files(folder)
    pointer = placed["model.norm.weight"]
    (folder / pointer).write_text("version https://git-lfs.github.com/spec/v1")
    checkpoint = open_folder(Folder(folder))
    assert [(finding.code, finding.file) for finding in checkpoint.findings] == [("QL002", pointer)]
    assert checkpoint.lost == {name for name, file in placed.items() if file == pointer}


def test_one_file_is_taken_before_the_files_of_an_index(broken: Callable[[str], Path]) -> None:
    """As transformers takes it: what lies beside is left from before the files were merged."""
    folder = broken(NAME)
    merged = (folder / WEIGHTS).read_bytes()
    split_files(folder)
    (folder / WEIGHTS).write_bytes(merged)
    checkpoint = open_folder(Folder(folder))
    assert [finding.code for finding in checkpoint.findings] == ["QL009"]
    assert {entry.file for entry in checkpoint.tensors.values()} == {WEIGHTS}


def test_pickled_weights_beside_safetensors_are_left_alone(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    checkpoint = open_folder(Folder(folder))
    assert (checkpoint.findings, checkpoint.pickled) == ((), ())


def test_a_config_that_is_too_large_is_not_read(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    os.truncate(folder / "config.json", MAX_JSON_BYTES + 1)
    (finding,) = open_folder(Folder(folder)).findings
    assert (finding.code, finding.message) == ("QL105", "is too large for a config")


@pytest.mark.parametrize("content", ["", "{", "3", "[" * 100_000])
def test_a_config_that_is_none(broken: Callable[[str], Path], content: str) -> None:
    folder = broken(NAME)
    (folder / "config.json").write_text(content)
    assert codes(folder) == ["QL105"]


def test_no_config_at_all(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    (folder / "config.json").unlink()
    assert codes(folder) == ["QL012"]


def test_pickled_weights_are_named_and_not_read(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    checkpoint = open_folder(Folder(folder))
    assert checkpoint.pickled == ("pytorch_model.bin",)
    assert [finding.code for finding in checkpoint.findings] == ["QL001"]


def test_no_weights_at_all(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    (folder / WEIGHTS).unlink()
    assert codes(folder) == ["QL011"]


def test_a_side_file_is_read_or_not_there(broken: Callable[[str], Path]) -> None:
    folder = broken(NAME)
    (folder / "side.json").write_text(json.dumps({"bits": 4}))
    (folder / "list.json").write_text("[]")
    checkpoint = open_folder(Folder(folder))
    assert checkpoint.read_json("side.json") == {"bits": 4}
    assert checkpoint.read_json("list.json") is None
    assert checkpoint.read_json("nothing.json") is None


@pytest.mark.parametrize(
    ("name", "module", "leaf"),
    [
        ("model.norm.weight", "model.norm", "weight"),
        ("a.q_proj.weight.absmax", "a.q_proj", "weight.absmax"),
        ("a.q_proj.weight.quant_state.nf4", "a.q_proj", "weight.quant_state.nf4"),
        ("scale", "", "scale"),
        (".", "", "."),
        (".scale", "", ".scale"),
        (".weight.absmax", "", ".weight.absmax"),
    ],
)
def test_a_tensor_belongs_to_a_module(name: str, module: str, leaf: str) -> None:
    assert split_name(name) == (module, leaf)
    assert group_tensors([name], []) == {module: {leaf: name}}
    assert join_name(module, leaf, {}) == name


@pytest.mark.parametrize(
    ("stored", "stacks"),
    [
        (
            {"gate_up_proj_blocks": 4, "gate_up_proj_scales": 3, "gate_up_proj_bias": 2, "down_proj_blocks": 4}
            | {"down_proj_scales": 3, "down_proj_bias": 2},
            {"gate_up_proj": ["blocks", "scales", "bias"], "down_proj": ["blocks", "scales", "bias"]},
        ),
        (
            {"up_proj": 3, "up_proj_scale_inv": 3, "up_proj_activation_scale": 1, "up_proj_bias": 2},
            {"up_proj": ["weight", "weight_scale_inv", "activation_scale", "bias"]},
        ),
        ({"up_proj": 3, "up_proj_weight_scale": 3}, {"up_proj": ["weight", "weight_scale"]}),
        ({"up_proj": 3, "up_proj_scale": 3, "up_proj_weight_scale": 3}, {"up_proj": ["weight", "weight_scale"]}),
        ({"gate_up_proj": 3, "down_proj": 3}, {}),
        ({"weight": 3, "weight_scale": 3, "bias": 1}, {}),
        ({"weight_g": 3, "weight_v": 3, "bias": 1}, {}),
        ({"k_scale": 1, "k_proj": 2, "A_log": 1, "dt_bias": 1}, {}),
    ],
)
def test_the_tensors_of_a_stack_are_those_of_a_module(stored: dict[str, int], stacks: dict[str, list[str]]) -> None:
    ranks = {f"a.experts.{leaf}": rank for leaf, rank in stored.items()}
    found = group_tensors(ranks, [name for name, rank in ranks.items() if rank > 2])
    parts = {module: list(leaves) for module, leaves in found.items() if module != "a.experts"}
    assert parts == {f"a.experts.{stack}": leaves for stack, leaves in stacks.items()}
    names = [name for leaves in found.values() for name in leaves.values()]
    assert sorted(names) == sorted(f"a.experts.{leaf}" for leaf in stored)
    assert all(join_name(module, leaf, found) == name for module in found for leaf, name in found[module].items())


def test_a_tensor_of_a_stack_that_is_missing_is_named_as_the_others_are() -> None:
    deep = ["a.up_blocks", "a.down"]
    found = group_tensors(["a.up_blocks", "a.up_bias", "a.down", "a.down_bias"], deep)
    names = [join_name("a.up", "scales", found), join_name("a.down", "weight_scale", found)]
    assert names == ["a.up_scales", "a.down_scale"]
    # A module of that name keeps its own.
    both = group_tensors(["a.up_blocks", "a.up_scales", "a.up.weight"], ["a.up_blocks", "a.up_scales"])
    assert both.keys() == {"a", "a.up"}


@pytest.mark.parametrize("name", ["a" * 300, "with\0null"])
def test_a_path_that_the_system_refuses(tmp_path: Path, name: str) -> None:
    with pytest.raises(QloadError, match="the folder cannot be read"):
        open_folder(Folder(tmp_path / name))
