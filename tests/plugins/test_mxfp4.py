"""mxfp4's stacks of experts, against arithmetic that goes value by value and transformers' own, and refusals."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import copy_checkpoint, edit_config, edit_tensors
from samples import DATA, make_quantization
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import qload
from qload import Registry
from qload.errors import CheckpointError, ShardError
from qload.geometry import Part, Sharding, expert_parallel, row
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.torch import ExpertLinear, Experts, ReplicatedLinear, Site, VocabParallelEmbedding
from qload.torch.parallel import Group

SECTION = {"quant_method": "mxfp4"}
NAME = "hf-gptoss-mxfp4"
EXPERTS = "model.layers.0.mlp.experts"
MAGNITUDES = (0, 0.5, 1, 1.5, 2, 3, 4, 6)


def make_stack(experts: int, rows: int, columns: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "e.up_blocks": torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8),
        "e.up_scales": torch.randint(100, 150, (experts, rows, columns // 32), dtype=torch.uint8),
    }


def load_stack(
    tensors: dict[str, Tensor], registry: Registry, sharding: Sharding, rank: int, size: int
) -> ExpertLinear:
    quantization = make_quantization(SECTION, registry)
    count, rows, blocks, _ = tensors["e.up_blocks"].shape
    site, source = Site(quantization, "e.up", Group(rank, size)), Source("e.up")
    layer = ExpertLinear(count, 32 * blocks, [Part("", rows)], site, sources=(source,), sharding=sharding)
    qload.load_tensors(layer, tensors, quantization, kernels=())
    return layer


def test_each_value_is_its_code_times_a_power_of_two(registry: Registry) -> None:
    tensors = make_stack(2, 3, 64)
    weight = qload.dequantize(load_stack(tensors, registry, row, 0, 1))
    assert weight.dtype == torch.bfloat16
    for expert, out, column in ((0, 0, 0), (0, 1, 1), (1, 2, 33), (1, 0, 62), (0, 2, 31), (1, 1, 32)):
        byte = int(tensors["e.up_blocks"][expert, out, column // 32, column % 32 // 2])
        code = byte & 15 if column % 2 == 0 else byte >> 4
        size = MAGNITUDES[code & 7] * 2.0 ** (int(tensors["e.up_scales"][expert, out, column // 32]) - 127)
        assert float(weight[expert, out, column]) == math.copysign(size, -1 if code & 8 else 1)


def test_every_code_and_scale_is_what_transformers_makes_of_it(registry: Registry) -> None:
    """From the least scale on, up to those that make values too great for any float of eight bits of exponent."""
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 255, 16, 16).contiguous()
    scales = torch.arange(255, dtype=torch.uint8).reshape(1, 255, 1).expand(1, 255, 16).contiguous()
    expected = convert_moe_packed_tensors(codes, scales, dtype=torch.float32).mT
    layer = load_stack({"e.up_blocks": codes, "e.up_scales": scales}, registry, row, 0, 1)
    found = qload.dequantize(layer).float()
    kept = expected.abs() < torch.finfo(torch.bfloat16).max
    assert torch.equal(found[kept], expected[kept])
    assert kept[:, :253].all()


def test_rows_that_are_looked_up(registry: Registry) -> None:
    quantization = make_quantization(SECTION, registry)
    stored = {name.replace("e.up_", "m."): tensor[0] for name, tensor in make_stack(1, 50, 96).items()}
    layer = ReplicatedLinear(96, 50, Site(quantization, "m"))
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(50, 96, Site(quantization, "m"), multiple=1, treatment=treatment)
    for module in (layer, table):
        qload.load_tensors(module, stored, quantization, kernels=())
    ids = torch.tensor([49, 0, 7, 7])
    assert torch.equal(table(ids), qload.dequantize(layer)[ids].float())


@pytest.mark.parametrize(("sharding", "dim"), [(expert_parallel, 0), (row, 2)])
def test_ranks_hold_experts_or_whole_blocks(sharding: Sharding, dim: int, registry: Registry) -> None:
    tensors = make_stack(4, 6, 192)
    whole = qload.dequantize(load_stack(tensors, registry, sharding, 0, 1))
    shards = [qload.dequantize(load_stack(tensors, registry, sharding, rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat(shards, dim), whole)
    with pytest.raises(ShardError, match="4 experts" if dim == 0 else "split a unit of the axis in"):
        load_stack(tensors, registry, sharding, 0, 3 if dim == 0 else 4)


@pytest.mark.parametrize(
    ("entry", "name", "excluded"),
    [
        ("model.layers.*.self_attn", "model.layers.11.self_attn.q_proj", True),
        ("model.layers.1", "model.layers.1.mlp.experts.down_proj", True),
        ("model.layers.1", "model.layers.11.mlp.experts.down_proj", False),
        ("mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj", True),
        ("mlp.experts", "model.layers.1.mlp.experts.down_proj", False),
        (r"model.layers.\d+.mlp.experts", "model.layers.1.mlp.experts.down_proj", True),
        ("lm_head", "lm_head", True),
        ("lm_head|model.embed_tokens", "lm_head_2", False),
    ],
)
def test_what_is_left_alone(entry: str, name: str, excluded: bool, registry: Registry) -> None:
    quantization = make_quantization({**SECTION, "modules_to_not_convert": [entry]}, registry)
    assert (quantization.treat(ModuleInfo((name,))).scheme is None) == excluded


def test_an_entry_that_is_no_pattern(registry: Registry) -> None:
    with pytest.raises(CheckpointError, match=r"QL105.*'\(' is not a regular expression"):
        make_quantization({**SECTION, "modules_to_not_convert": ["("]}, registry)


def test_experts_stay_packed_also_once_they_have_computed() -> None:
    model = qload.load(DATA / NAME, kernels=())
    experts = model.get_submodule(EXPERTS)
    assert isinstance(experts, Experts)
    held = qload.report(model).bytes_in_memory
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3]]))
    now = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert now == held <= 1.02 * qload.validate(DATA / NAME).nbytes
    assert {name: tuple(tensor.shape) for name, tensor in experts.named_parameters()} == {
        "gate_up_proj.blocks": (4, 512, 8, 16),
        "gate_up_proj.scales": (4, 512, 8),
        "gate_up_proj.bias": (4, 512),
        "down_proj.blocks": (4, 256, 8, 16),
        "down_proj.scales": (4, 256, 8),
        "down_proj.bias": (4, 256),
    }


def remove(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{EXPERTS}.down_proj_scales"]


def remove_both(tensors: dict[str, Tensor]) -> None:
    for leaf in ("blocks", "scales"):
        del tensors[f"{EXPERTS}.down_proj_{leaf}"]


def widen(tensors: dict[str, Tensor]) -> None:
    tensors[f"{EXPERTS}.gate_up_proj_scales"] = tensors[f"{EXPERTS}.gate_up_proj_scales"].int()


def shorten(tensors: dict[str, Tensor]) -> None:
    tensors[f"{EXPERTS}.gate_up_proj_scales"] = tensors[f"{EXPERTS}.gate_up_proj_scales"][:, :-2].contiguous()


def lose_an_expert(tensors: dict[str, Tensor]) -> None:
    tensors[f"{EXPERTS}.down_proj_blocks"] = tensors[f"{EXPERTS}.down_proj_blocks"][:3].contiguous()


def add(tensors: dict[str, Tensor]) -> None:
    tensors[f"{EXPERTS}.down_proj_zeros"] = torch.zeros(4, 256, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("edit", "code", "where"),
    [
        (remove, "QL201", "down_proj_scales"),
        (remove_both, "QL201", "down_proj"),
        (widen, "QL304", "gate_up_proj_scales"),
        (shorten, "QL301", "gate_up_proj_scales"),
        (lose_an_expert, "QL302", "down_proj_blocks"),
        (add, "QL210", "down_proj_zeros"),
    ],
)
def test_a_faulty_tensor_is_named(
    edit: Callable[[dict[str, Tensor]], None], code: str, where: str, broken: Callable[[str], Path]
) -> None:
    path = broken(NAME)
    edit_tensors(path, edit)
    with pytest.raises(CheckpointError) as caught:
        qload.load(path, kernels=())
    assert (code, f"{EXPERTS}.{where}") in {(each.code, each.where) for each in caught.value.findings}
    if edit is not remove_both:
        assert code in {finding.code for finding in qload.validate(path).findings}


def test_experts_that_the_config_leaves_alone_and_that_are_packed(broken: Callable[[str], Path]) -> None:
    def exclude(config: dict[str, Any]) -> None:
        config["quantization_config"]["modules_to_not_convert"].append("model.layers.1.mlp.experts")

    path = broken(NAME)
    edit_config(path, exclude)
    for findings in (qload.validate(path).findings, refused(path)):
        assert {finding.code for finding in findings} == {"QL202"}
        assert any("layers.1.mlp.experts" in finding.where for finding in findings)


def refused(path: Path) -> list[Any]:
    with pytest.raises(CheckpointError) as caught:
        qload.load(path, kernels=())
    return list(caught.value.findings)


def test_layers_whose_experts_are_dense(tmp_path: Path) -> None:
    """As the config may say: they lie as the model has them, and stay so. Half of a layer's cannot be."""

    def unpack(tensors: dict[str, Tensor], stacks: tuple[str, ...]) -> None:
        for stack in stacks:
            name = f"{EXPERTS}.{stack}"
            blocks, scales = tensors.pop(f"{name}_blocks"), tensors.pop(f"{name}_scales")
            tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)

    ids, whole = torch.tensor([[1, 2, 3]]), qload.load(DATA / NAME, kernels=())
    both, half = (copy_checkpoint(DATA / NAME, tmp_path / name) for name in ("both", "half"))
    edit_tensors(both, lambda tensors: unpack(tensors, ("gate_up_proj", "down_proj")))
    mixed = qload.load(both, kernels=())
    assert qload.validate(both).findings == ()
    assert qload.report(mixed).layers == {"unquantized": 10, "mxfp4 fp4 group 32": 2}
    with torch.inference_mode():
        assert torch.allclose(mixed(ids).logits, whole(ids).logits, atol=2e-2)
    edit_tensors(half, lambda tensors: unpack(tensors, ("down_proj",)))
    assert {finding.code for finding in refused(half)} == {"QL211"}
