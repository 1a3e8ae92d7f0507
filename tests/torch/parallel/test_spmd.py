"""Models that one process has whole, divided over real ranks: they compute what they computed before."""

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs.spmd import (
    compute_both,
    compute_experts,
    compute_linear,
    compute_named,
    compute_on_axes,
    compute_tied,
    drop_index,
    look_up,
    make_linear,
    save_and_load,
    try_to_shard,
)
from safetensors.torch import load_file
from samples import DATA, read_reference, relative_error
from worlds import World

import qload
from qload.errors import LayoutError, ModelError, ParallelError, ShardError
from qload.geometry import column, single
from qload.layout import in_, out
from qload.torch.spmd import Way
from qload.torch.spmd.parts import make_part
from qload.torch.spmd.ways import find_way

Worlds = Callable[[int], World]
X = torch.linspace(-2, 2, 48).reshape(3, 16)

WHOLE_MODELS = [
    ("fused", "base", (2, 4)),
    ("fused", "ct-w4a16-g128-asym", (2,)),
    ("fused", "gptq-4bit-g32-sym-descact", (2, 4)),
    ("fused", "bnb-nf4-dq", (2, 4)),
    ("plain", "ct-w4a16-lmhead-embed", (2, 4)),
    ("plain", "ct-qwen2-tied-w8a8", (2, 4)),
    ("plain", "gptq-4bit-g32-sym-descact", (2, 4)),
    ("plain", "base-qwen3moe", (2, 4)),
    ("plain", "modelopt-nvfp4", (2,)),
]
CASES = [(kind, name, size) for kind, name, sizes in WHOLE_MODELS for size in sizes]


@pytest.mark.parametrize(("kind", "name", "size"), CASES)
def test_a_divided_model_computes_what_it_computed(worlds: Worlds, kind: str, name: str, size: int) -> None:
    path = DATA / name
    for before, after, left in worlds(size).run(compute_both, kind, path, read_reference(path).input_ids):
        assert after.shape == before.shape
        assert relative_error(after, before) < 1e-5
        assert left < 1 / size + 0.03


def test_a_state_dict_has_the_shapes_of_all_ranks_and_can_be_saved(worlds: Worlds, tmp_path: Path) -> None:
    path = DATA / "gptq-4bit-g32-sym-descact"
    answers = worlds(4).run(save_and_load, path, tmp_path, read_reference(path).input_ids)
    for before, after, shapes in answers:
        assert torch.equal(after, before)
        q, k, down = (
            f"model.layers.0.{name}.qweight"
            for name in (
                "self_attn.qkv_proj.q_proj",
                "self_attn.qkv_proj.k_proj",
                "mlp.down_proj",
            )
        )
        assert shapes[q] == ((32, 256), (32, 64))
        assert shapes[k] == ((32, 128), (32, 64))
        assert shapes[down] == ((64, 256), (16, 256))
        assert not any("qkv_proj.qweight" in name for name in shapes)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", ["qkv", "merged", "column", "row", "replicated"])
@pytest.mark.parametrize(("skips", "returns"), list(product([False, True], repeat=2)))
def test_biases_are_added_and_returned_as_before(
    worlds: Worlds, kind: str, size: int, skips: bool, returns: bool
) -> None:
    options = {"skip_bias_add": skips, "return_bias": returns}
    for before, after, names in worlds(size).run(compute_linear, kind, X, options):
        pairs = zip(before, after, strict=True) if returns else [(before, after)]
        for expected, found in pairs:
            assert (found is None) == (expected is None)
            assert found is None or torch.allclose(found, expected, atol=1e-5)
        if kind == "qkv":
            parts = ("q_proj", "k_proj", "v_proj")
            assert names == [f"{part}.{name}" for part in parts for name in ("weight", "bias")]


@pytest.mark.parametrize(
    ("rows", "multiple", "size", "lies"),
    [
        (65, 64, 4, (32, 128)),
        (65, 64, 2, (64, 128)),
        (67, 1, 2, (34, 68)),
        (66, 1, 4, (17, 68)),
    ],
)
def test_tied_tables_stay_tied_and_vocabularies_are_padded(
    worlds: Worlds, rows: int, multiple: int, size: int, lies: tuple[int, int]
) -> None:
    for before, after, said in worlds(size).run(compute_tied, rows, multiple):
        assert before.shape == after.shape == (1, rows, rows)
        assert relative_error(after, before) < 1e-5
        assert said == {"one module": True, "one table": True, "one parameter": True, "rows": lies}


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("added", "dim"), [(0, 0), (5, 0), (5, 1)])
def test_tables_with_added_rows_or_divided_by_columns(worlds: Worlds, size: int, added: int, dim: int) -> None:
    for before, after in worlds(size).run(look_up, added, dim):
        assert torch.equal(after, before)


@pytest.mark.parametrize("size", [2, 4])
def test_experts_and_their_gradients_are_what_they_were(worlds: Worlds, size: int) -> None:
    ids, weights = torch.tensor([[0, 3], [1, 2], [3, 1]]), torch.rand(3, 2)
    for before, after, (first, second) in worlds(size).run(compute_experts, X, ids, weights):
        assert torch.allclose(after, before, atol=1e-5)
        for expected, found in zip(first, second, strict=True):
            assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "axis", "rows"), [((2, 2), "columns", 16), ((1, 4), "columns", 8), ((4, 1), "rows", 8)]
)
def test_the_axis_is_chosen(worlds: Worlds, shape: tuple[int, ...], axis: str, rows: int) -> None:
    for before, after, (_, held) in worlds(4).run(compute_on_axes, shape, axis, X):
        assert torch.allclose(after, before, atol=1e-5)
        assert held == rows


REFUSED = {
    "uneven": (ShardError, r"second: 6 rows of the layer cannot be divided by 4.*fit: 1, 2, 3, 6"),
    "unloaded": (ModelError, "second: the layer has not been loaded"),
    "out of order": (ShardError, "second.weight: ranks do not have even runs in their order"),
    "a table outside": (ModelError, "second: a head is tied to a table outside"),
    "divided": (ModelError, "first: the layer is divided already.*found rank . of 4"),
    "a list": (ModelError, "only a module that computes.*ParameterList"),
    "a tensor": (ModelError, "only a module that computes.*found Tensor"),
    "no layer": (ModelError, "none of qload's layers.*found Linear"),
    "no mesh": (ModelError, "over a device mesh.*found Tensor"),
    "no axis": (ParallelError, "no such axis.*found pp"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_divided_is_refused_before_anything_is_changed(worlds: Worlds, kind: str) -> None:
    sort, text = REFUSED[kind]
    for error, is_unchanged in worlds(4).run(try_to_shard, kind):
        assert type(error) is sort
        assert re.search(text, str(error))
        assert is_unchanged


def test_an_index_that_was_dropped_is_there_again_beside_whole_scales(worlds: Worlds) -> None:
    path, name = DATA / "gptq-4bit-g32-sym-descact", "model.layers.0.mlp.down_proj"
    stored = {key: value for key, value in load_file(path / "model.safetensors").items() if key.startswith(name)}
    stored[f"{name}.g_idx"] = (torch.arange(512) // 32).to(torch.int32)
    x = torch.linspace(-1, 1, 1024).reshape(2, 512)
    for before, after in worlds(2).run(drop_index, path, name, stored, x):
        assert relative_error(after, before) < 1e-5


def test_layers_that_are_whole_everywhere_go_by_the_plan(worlds: Worlds) -> None:
    for before, after, shapes in worlds(2).run(compute_named, X):
        assert torch.allclose(after, before, atol=1e-5)
        assert shapes == [(32, 16), (32, 8)]


def test_a_part_is_a_layer_of_its_own_that_can_be_loaded() -> None:
    whole: Any = make_linear("merged", bias=False)
    stored = {f"a.{name}.weight": torch.randn(rows, 16) for name, rows in (("gate", 24), ("up", 8))}
    part = make_part(whole, 1)
    part.allocate("cpu")
    model = torch.nn.ModuleDict({"part": part})
    qload.load_tensors(model, {"a.up.weight": stored["a.up.weight"]}, quantization_of(), kernels=())
    assert torch.equal(part.dequantize(), stored["a.up.weight"])


def quantization_of() -> Any:
    return qload.quantization.unquantized(qload.Registry.discover())


def test_ways_are_even_runs_along_one_axis() -> None:
    geometry = single(8, 8)
    shards = [column(geometry, rank, 4) for rank in range(4)]
    spec = weight_spec(out(), in_())
    assert find_way(spec, geometry, shards) == Way(0, 4)
    assert find_way(spec, geometry, shards[:1] * 4) == Way(None)
    with pytest.raises(LayoutError, match="even runs"):
        find_way(spec, geometry, [shards[0], shards[1], shards[0], shards[1]])


def weight_spec(*axes: Any) -> Any:
    return qload.declare.weight("weight", *axes)
