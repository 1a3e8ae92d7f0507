"""What each rank would read and hold, against loads, against headers, and against plans of every layer by itself."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edits import edit_config, edit_tensors
from samples import DATA, DEMO, is_sound, is_swept, samples
from torch import Tensor

import qload
from qload import Registry
from qload.catalogue import Severity
from qload.declare import ParameterKind, ParameterSpec
from qload.dtypes import storage_bytes
from qload.errors import ParallelError, QloadError, ShardError
from qload.examination import Examination, examine
from qload.geometry import expert_parallel
from qload.layout import Dim
from qload.outline import Outline
from qload.plan import Target, make_plan
from qload.preview import RankPlans, SizePlan, Split, plan_ranks
from qload.preview.modules import Modules, choose_dtype, list_modules
from qload.roles import choose_sharding
from qload.sharding import cut_layer

SIZES = (1, 2, 3, 4, 6, 8)
DIMS = {Split.COLUMN: Dim.OUT, Split.VOCABULARY: Dim.OUT, Split.ROW: Dim.IN, Split.EXPERTS: Dim.EXPERT}
DROPPED = (ParameterKind.INDEX, ParameterKind.DOCUMENT, ParameterKind.SETTING)
SOUND = [pytest.param(path, id=path.name) for path in samples() if is_sound(path) and is_swept(path)]
MIXTURE = DATA / "ct-qwen3moe-w4a16"


def find(path: Path, registry: Registry) -> tuple[Examination, list[Modules]]:
    """A checkpoint's headers and modules, with the layers that are like another one."""
    found = examine(path, registry)
    assert found.quantization is not None
    assert isinstance(found.outline, Outline)
    dtype = choose_dtype(found.checkpoint)
    return found, list(list_modules(found.checkpoint, found.quantization, found.outline, dtype))


def declare(found: Examination, modules: Modules) -> tuple[ParameterSpec, ...]:
    assert found.quantization is not None
    return found.quantization.declare(modules.target.treatment, modules.target.geometry)


def name_stored(found: Examination, module: str, spec: ParameterSpec) -> str:
    return found.checkpoint.modules.get(module, {}).get(spec.stored_as, f"{module}.{spec.stored_as}")


def of(plans: RankPlans, size: int) -> SizePlan:
    return next(plan for plan in plans.sizes if plan.size == size)


def expand(where: str) -> Iterator[str]:
    """The names that are one in a group's."""
    pieces = re.split(r"\{([^}]*)\}", where)
    choices = [[piece] if number % 2 == 0 else list(read_span(piece)) for number, piece in enumerate(pieces)]
    return ("".join(name) for name in itertools.product(*choices))


def read_span(text: str) -> Iterator[str]:
    first, dots, last = text.partition("..")
    return map(str, range(int(first), int(last) + 1)) if dots else iter(text.split(","))


def write_checkpoint(folder: Path, config: dict[str, Any], **shapes: tuple[int, ...]) -> Path:
    """Plain tensors in float32, of which only the headers are there."""
    table, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + storage_bytes("F32", shape[0] * shape[-1] if len(shape) > 1 else shape[0])
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    raw = json.dumps(table).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    (folder / "config.json").write_text(json.dumps({"dtype": "float32", **config}))
    return folder


@pytest.mark.parametrize("path", SOUND)
def test_one_rank_reads_and_holds_what_a_load_does(path: Path, registry: Registry) -> None:
    """Beside what the model computes, and but for what hooks let go of once it is loaded."""
    (share,) = of(plan_ranks(path, [1], registry=registry), 1).ranks
    model = qload.load(path, registry=registry, kernels=())
    report = qload.report(model)
    held = report.bytes_in_memory - sum(buffer.nbytes for name, buffer in model.named_buffers() if "inv_freq" in name)
    assert share.read == report.bytes_read
    assert held <= share.held
    found, modules = find(path, registry)
    dropped = sum(
        found.checkpoint.tensors[name_stored(found, name, spec)].nbytes
        for each in modules
        for name in each.names
        for spec in declare(found, each)
        if spec.kind in DROPPED and name_stored(found, name, spec) in found.checkpoint.tensors
    )
    if dropped == 0:
        assert held == share.held


def count_reads(path: Path, plan: SizePlan, registry: Registry) -> int:
    """The bytes of every stored tensor, as often as its axes and the config's heads say that it is read."""
    found, listed = find(path, registry)
    modules = {name: each for each in listed for name in each.names}
    tensors, config, total = found.checkpoint.tensors, found.checkpoint.config, 0
    for group in plan.groups:
        names = [group.where] if group.count == 1 else list(expand(group.where))
        assert len(names) == group.count
        for name in names:
            if name not in modules:
                total += tensors[name].nbytes * plan.size
                continue
            for spec in declare(found, modules[name]):
                stored = name_stored(found, name, spec)
                if stored in tensors and spec.loaded:
                    total += tensors[stored].nbytes * count_times(spec, group.split, name, config, plan.size)
    return total


def count_times(spec: ParameterSpec, split: Split, name: str, config: Mapping[str, Any], size: int) -> int:
    if split is Split.WHOLE or not any(axis.dim is DIMS[split] and not axis.whole for axis in spec.layout.axes):
        return size
    is_of_keys = name.endswith(("k_proj", "v_proj")) and split is Split.COLUMN
    return max(1, size // config["num_key_value_heads"]) if is_of_keys else 1


@pytest.mark.parametrize("path", SOUND)
def test_all_ranks_read_what_is_stored_and_again_what_is_replicated(path: Path, registry: Registry) -> None:
    plans = plan_ranks(path, SIZES, registry=registry)
    once = of(plans, 1).read
    assert any(plan.fits for plan in plans.sizes if plan.size > 1)
    for plan in plans.sizes:
        if plan.fits:
            assert plan.read == count_reads(path, plan, registry) == once + plan.replicated
            assert [sum(group.ranks[rank].read for group in plan.groups) for rank in range(plan.size)] == [
                share.read for share in plan.ranks
            ]


@pytest.mark.parametrize("path", SOUND)
@pytest.mark.parametrize("by_experts", [False, True])
def test_a_rank_has_what_a_plan_of_each_of_its_layers_has(path: Path, by_experts: bool, registry: Registry) -> None:
    """Layers that are alike are planned once, and counted: here each is planned by its name."""
    found, modules = find(path, registry)
    if by_experts and not any(each.is_mixture for each in modules):
        return
    assert found.quantization is not None
    plan = of(plan_ranks(path, [2], expert_parallel=by_experts, registry=registry), 2)
    assert found.outline is not None
    whole = sum(found.checkpoint.tensors[tensor.stored_as].nbytes for tensor in found.outline.plain)
    for rank in range(2):
        targets = [target for each in modules for target in cut(each, rank, by_experts, found)]
        planned = make_plan(found.checkpoint, found.quantization, targets, is_expected=lambda name: True)
        assert planned.findings == ()
        assert planned.bytes_read + whole == plan.ranks[rank].read
        plain = sum(group.ranks[rank].held for group in plan.groups if not group.label)
        assert planned.nbytes + plain == plan.ranks[rank].held


def cut(modules: Modules, rank: int, by_experts: bool, found: Examination) -> Iterator[Target]:
    """The targets of one of two ranks; of experts that are stored one by one, its own four's half."""
    target, specs = modules.target, declare(found, modules)
    sharding = choose_sharding(target.name, target.geometry, specs, 2)
    for name in modules.names:
        shard = sharding(target.geometry, rank, 2)
        if by_experts and modules.is_mixture:
            if target.geometry.experts is None:
                if int(name.split(".experts.")[1].split(".")[0]) // 2 != rank:
                    continue
                shard = target.shard
            else:
                shard = expert_parallel(target.geometry, rank, 2)
        yield replace(target, name=name, shard=shard, sources=(replace(target.sources[0], prefix=name),))


@pytest.mark.parametrize("path", SOUND)
def test_sizes_that_are_said_to_fit_do_and_others_raise(path: Path, registry: Registry) -> None:
    found, modules = find(path, registry)
    plans = plan_ranks(path, SIZES, registry=registry)
    obstacles = {name: each for plan in plans.sizes for each in plan.obstacles for name in expand(each.where)}
    for each in modules:
        fitting = {size for size in range(1, 17) if can_be_cut(each, size, found)}
        for plan in plans.sizes:
            stopped = {name for obstacle in plan.obstacles for name in expand(obstacle.where)}
            assert stopped.isdisjoint(each.names) == (plan.size in fitting)
        for name in obstacles.keys() & set(each.names):
            assert {size for size in obstacles[name].sizes if size < 17} == fitting


def can_be_cut(modules: Modules, size: int, found: Examination) -> bool:
    target, specs = modules.target, declare(found, modules)
    sharding = choose_sharding(target.name, target.geometry, specs, size)
    try:
        for rank in range(size):
            cut_layer(target.geometry, sharding, specs, target.name, rank, size)
    except ShardError:
        return False
    return True


def test_every_obstacle_is_named_and_those_of_like_layers_are_one(registry: Registry) -> None:
    plan = of(plan_ranks(DEMO, [8], registry=registry), 8)
    assert (plan.fits, plan.ranks, plan.groups) == (False, (), ())
    (obstacle,) = plan.obstacles
    assert (obstacle.where, obstacle.count, obstacle.tensor) == ("model.layers.{0..1}.self_attn.q_proj", 2, "")
    assert (obstacle.unit, obstacle.sizes) == (64, (1, 2, 4))
    plan = of(plan_ranks(DATA / "ct-fp8-block", [8], registry=registry), 8)
    found = {obstacle.where: (obstacle.tensor, obstacle.unit, obstacle.sizes) for obstacle in plan.obstacles}
    assert found == {
        "model.layers.{0..1}.mlp.down_proj": ("weight_quantized", 128, (1, 2, 4)),
        "model.layers.{0..1}.mlp.gate_proj": ("weight_scale", 128, (1, 2, 4)),
        "model.layers.{0..1}.mlp.up_proj": ("weight_scale", 128, (1, 2, 4)),
        "model.layers.{0..1}.self_attn.k_proj": ("weight_scale", 128, (1, 2)),
        "model.layers.{0..1}.self_attn.o_proj": ("weight_quantized", 128, (1, 2)),
        "model.layers.{0..1}.self_attn.q_proj": ("", 64, (1, 2)),
        "model.layers.{0..1}.self_attn.v_proj": ("weight_scale", 128, (1, 2)),
    }


def test_the_last_rank_has_the_rest_of_a_vocabulary(tmp_path: Path, registry: Registry) -> None:
    """10 rows over 4 ranks are 3, 3, 3 and 1, and two of padding; over 8, the last three have padding alone."""
    shapes = {"model.embed_tokens.weight": (10, 4), "model.norm.weight": (4,)}
    plans = plan_ranks(write_checkpoint(tmp_path, {}, **shapes), [4, 8], registry=registry)
    four, eight = plans.sizes
    assert [share.read - 16 for share in four.ranks] == [48, 48, 48, 16]
    assert [share.held - 16 for share in four.ranks] == [48] * 4
    assert [share.read - 16 for share in eight.ranks] == [32] * 5 + [0] * 3
    assert (four.replicated, eight.replicated) == (3 * 16, 7 * 16)
    assert {group.where: group.split for group in four.groups} == {
        "model.embed_tokens": Split.VOCABULARY, "model.norm.weight": Split.WHOLE,
    }  # fmt: skip


def test_values_are_held_in_the_configs_dtype(tmp_path: Path, registry: Registry) -> None:
    shapes = {"model.embed_tokens.weight": (10, 4), "model.norm.weight": (4,)}
    folder = write_checkpoint(tmp_path, {"dtype": "bfloat16"}, **shapes)
    ((share,),) = [plan.ranks for plan in plan_ranks(folder, [1], registry=registry).sizes]
    assert (share.read, share.held) == (176, 88)


def test_without_a_dtype_in_the_config_they_are_held_in_that_of_most(
    broken: Callable[[str], Path], registry: Registry
) -> None:
    """Of all that is stored, not of one layer of each kind alone."""
    folder = broken("base")
    edit_config(folder, lambda config: config.pop("dtype"))

    def widen(stored: dict[str, Tensor]) -> None:
        for leaf in ("embed_tokens", "layers.0.mlp.up_proj", "layers.1.mlp.up_proj"):
            stored[f"model.{leaf}.weight"] = stored[f"model.{leaf}.weight"].float()

    edit_tensors(folder, widen)
    found, modules = find(folder, registry)
    assert {each.target.geometry.dtype for each in modules} == {"BF16"}
    share = of(plan_ranks(folder, [1], registry=registry), 1).ranks[0]
    assert share.held == found.checkpoint.nbytes - 2 * (1024 * 256 + 2 * 512 * 256)


def test_few_keys_are_on_several_ranks(tmp_path: Path, registry: Registry) -> None:
    config = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4, "hidden_size": 32}
    shapes = {f"model.layers.0.self_attn.{leaf}.weight": (rows, 32) for leaf, rows in (("q_proj", 32), ("k_proj", 8))}
    plan = of(plan_ranks(write_checkpoint(tmp_path, config, **shapes), [8], registry=registry), 8)
    queries, keys = plan.groups
    assert (queries.split, queries.replicated, queries.ranks[0].read) == (Split.COLUMN, 0, 4 * 32 * 4)
    assert (keys.split, keys.replicated, keys.ranks[7].read) == (Split.COLUMN, 3 * 8 * 32 * 4, 4 * 32 * 4)


def test_experts_are_dealt_out_whole(registry: Registry) -> None:
    plans = plan_ranks(MIXTURE, [2, 3, 4], expert_parallel=True, registry=registry)
    assert [plan.fits for plan in plans.sizes] == [True, False, True]
    for plan in plans.sizes[::2]:
        experts = [group for group in plan.groups if "experts" in group.where]
        assert [(group.split, group.replicated) for group in experts] == [(Split.EXPERTS, 0)] * 3
        assert all(len({share.read for share in group.ranks}) == 1 for group in experts)
    (obstacle,) = [each for each in plans.sizes[1].obstacles if "experts" in each.where]
    assert (obstacle.where, obstacle.count, obstacle.sizes) == ("model.layers.{0..1}.mlp.experts", 2, (1, 2, 4))


def test_a_stack_of_experts_is_dealt_out_too(registry: Registry) -> None:
    plans = plan_ranks(DATA / "hf-gptoss-mxfp4", [4, 8], expert_parallel=True, registry=registry)
    stacks = [group for group in plans.sizes[0].groups if "experts" in group.where]
    assert [(group.split, group.replicated) for group in stacks] == [(Split.EXPERTS, 0)] * 2
    sizes = {each.where: each.sizes for each in plans.sizes[1].obstacles}
    assert sizes["model.layers.{0..1}.mlp.experts.down_proj"] == (1, 2, 4)


def test_a_head_that_is_tied_and_not_stored_costs_nothing(registry: Registry) -> None:
    plan = of(plan_ranks(DATA / "ct-qwen2-tied-w8a8", [2], registry=registry), 2)
    assert not any("lm_head" in group.where for group in plan.groups)


@pytest.mark.parametrize("name", ["bnb-nf4-dq", "hqq-3bit-g64", "quanto-qint4"])
def test_rows_of_weights_that_are_stored_flat_are_the_configs(name: str, registry: Registry) -> None:
    sizes = [
        {each.target.name: (each.target.geometry.out_features, each.target.geometry.in_features) for each in modules}
        for modules in (find(DATA / name, registry)[1], find(DATA / "base", registry)[1])
    ]
    assert sizes[0] == sizes[1]


def test_sizes_that_nothing_tells_are_not_made_up(broken: Callable[[str], Path], registry: Registry) -> None:
    """Weights stored flat, and a config that does not say how wide the model is."""
    folder = broken("bnb-nf4-dq")
    assert plan_ranks(folder, [2], registry=registry).is_told
    edit_config(folder, lambda config: config.pop("hidden_size"))
    plans = plan_ranks(folder, [2], registry=registry)
    assert not plans.is_told
    assert "model.layers.{0..1}.mlp.down_proj" in plans.untold
    (split,) = {group.split for group in of(plans, 2).groups if group.where in plans.untold}
    assert split is Split.WHOLE


def test_a_broken_checkpoint_has_its_findings(broken: Callable[[str], Path], registry: Registry) -> None:
    folder = broken(DEMO.name)
    edit_tensors(folder, lambda stored: stored.__delitem__("model.layers.0.mlp.down_proj.weight_scale"))
    plans = plan_ranks(folder, [1, 2], registry=registry)
    assert plans.findings == qload.validate(folder, registry=registry).findings != ()
    assert (plans.is_told, plans.sizes) == (False, ())
    assert {finding.severity for finding in plans.findings} == {Severity.ERROR}


@pytest.mark.parametrize("size", [0, -1, 1025, 10**8, True, 2.0, "2"])
def test_what_is_no_number_of_ranks_is_refused(size: Any, registry: Registry) -> None:
    with pytest.raises(ParallelError, match="that many ranks"):
        plan_ranks(DEMO, [1, size], registry=registry)


def test_a_folder_that_is_not_there_is_an_error(registry: Registry) -> None:
    with pytest.raises(QloadError, match="no such folder"):
        plan_ranks("nowhere", [1], registry=registry)


def test_a_config_alone_says_nothing_of_sizes(tmp_path: Path, registry: Registry) -> None:
    config = tmp_path / "config.json"
    config.write_text((DATA / "base" / "config.json").read_text())
    with pytest.raises(QloadError, match="planning needs the headers of the weights"):
        plan_ranks(config, [2], registry=registry)
