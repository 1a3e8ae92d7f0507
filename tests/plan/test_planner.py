"""The plan: every slot covered exactly once, every tensor accounted for, and what is wrong named."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import entries, plan_layer, written, wrong
from samples import make_quantization

from qload import Quantization, Registry
from qload.checkpoint import Checkpoint, TensorEntry
from qload.errors import LayoutError
from qload.geometry import (
    Geometry,
    Part,
    Sharding,
    column,
    expert_parallel,
    replicated,
    row,
    single,
    vocabulary,
)
from qload.hookspecs import ModuleInfo
from qload.layout import Dim
from qload.plan import PlainTarget, Source, Target, make_plan

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
SECTIONS: list[dict[str, Any]] = [
    GPTQ,
    {**GPTQ, "bits": 3, "desc_act": True},
    {**GPTQ, "bits": 8, "group_size": -1},
    {"quant_method": "awq", "bits": 4, "group_size": 64},
    {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"},
    {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv_fast"},
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    {"quant_method": "fp8", "weight_block_size": [64, 128]},
    {"quant_method": "gguf", "bits": 8, "format": "q_0"},
    *(
        {"quant_method": "modelopt", "quant_algo": name}
        for name in ("FP8_PB_WO", "INT8_SQ", "W4A8_AWQ", "NVFP4", "MXFP8")
    ),
    *(
        {"quant_method": "torchao", "quant_type": {"default": {"_type": name, "_data": fields}}}
        for name, fields in (
            ("Int8WeightOnlyConfig", {}),
            ("Int8WeightOnlyConfig", {"granularity": {"_type": "PerRow", "_data": {"dim": 0}}}),
            ("Int4WeightOnlyConfig", {"group_size": 32}),
            ("NVFP4WeightOnlyConfig", {}),
        )
    ),
    *(
        {"quant_method": "quark", "global_quant_config": {"weight": weight}}
        for weight in (
            {"dtype": "uint4", "qscheme": "per_group", "group_size": 32, "symmetric": False},
            {"dtype": "int8", "qscheme": "per_tensor"},
            {"dtype": "fp6_e2m3", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"},
            {"dtype": "fp8_e4m3", "qscheme": "per_channel", "ch_axis": 1},
        )
    ),
    *(
        {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": {"nbits": bits, "group_size": 32, "axis": axis}},
        }
        for bits in (3, 4, 8)
        for axis in (0, 1)
    ),
    *({"quant_method": "quanto", "weights": weights} for weights in ("int8", "int4")),
    {"quant_method": "mxfp4"},
    *(
        {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"g": {"targets": ["Linear"], "weights": weights}},
        }
        for form, weights in (
            ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}),
            ("pack-quantized", {"num_bits": 3, "strategy": "channel"}),
            ("int-quantized", {"num_bits": 8, "strategy": "tensor"}),
            ("float-quantized", {"type": "float", "strategy": "block", "block_structure": [64, 128]}),
            ("nvfp4-pack-quantized",
             {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
            ("mxfp6-pack-quantized", {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32}),
            ("marlin-24", {"num_bits": 4, "strategy": "channel"}),
        )
    ),
    {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask", "targets": ["Linear"]}},
]  # fmt: skip


TENSOR_SCALES = next(each for each in SECTIONS if each.get("format") == "int-quantized")


def layouts() -> Iterator[tuple[Geometry, tuple[Source, ...]]]:
    """Separate parts, parts fused on disk, experts one by one, and experts in one tensor."""
    two = Geometry(256, (Part("a", 128), Part("b", 128)))
    yield single(256, 256), (Source("a"),)
    yield two, (Source("a"), Source("b", 1))
    yield two, (Source("a", parts=2),)
    stack = replace(two, experts=4)
    one_by_one = tuple(Source(f"{e}.{p}", n, expert=e) for e in range(4) for n, p in enumerate("ab"))
    yield stack, one_by_one
    yield stack, (Source("a", parts=2),)


SHARDINGS: list[Sharding] = [column, row, replicated]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: f"{s['quant_method']}{s.get('bits', '')}")
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_every_slot_is_written_exactly_once(
    registry: Registry, section: dict[str, Any], size: int, sharding: Sharding
) -> None:
    quantization = make_quantization(section, registry)
    for geometry, sources in layouts():
        for rank in range(size):
            plan = plan_layer(quantization, geometry, sources, sharding, rank, size)
            if any(finding.code == "QL401" for finding in plan.findings):
                assert size > 1 or (sources[0].parts > 1 and is_solid(quantization, geometry))
                continue
            assert plan.findings == ()
            assert all((written(slot) == 1).all() for slot in plan.layers[0].slots)


def is_solid(quantization: Quantization, geometry: Geometry) -> bool:
    """Whether rows that are stored as one tensor cannot be told apart by parts."""
    specs = quantization.declare(quantization.treat(ModuleInfo(("a",))), geometry)
    return any(spec.layout.is_solid(Dim.OUT) for spec in specs)


def test_experts_can_be_divided_whole(registry: Registry) -> None:
    quantization = make_quantization(GPTQ, registry)
    geometry, sources = list(layouts())[3]
    plan = plan_layer(quantization, geometry, sources, expert_parallel, 1, 2)
    names = {copy.entry.name.split(".")[0] for copy in plan.copies}
    assert names == {"2", "3"}
    assert all((written(slot) == 1).all() for slot in plan.layers[0].slots)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_ranks_read_the_tensor_once_and_nothing_floors(registry: Registry, data: st.DataObject) -> None:
    """Over random sizes: either every rank's cuts are exact and make the whole, or the plan says why not."""
    quantization = make_quantization(data.draw(st.sampled_from(SECTIONS)), registry)
    geometry = single(data.draw(st.integers(1, 40)) * 16, data.draw(st.integers(1, 40)) * 16)
    sharding = data.draw(st.sampled_from([column, row]))
    size = data.draw(st.integers(1, 6))
    try:
        plans = [plan_layer(quantization, geometry, (Source("a"),), sharding, n, size) for n in range(size)]
    except LayoutError:
        count = geometry.out_features if sharding is column else geometry.in_features
        assert count % size
        return
    if any(plan.findings for plan in plans):
        assert {finding.code for plan in plans for finding in plan.findings} == {"QL401"}
        return
    stored = {
        spec.name: spec.stored_as for spec in quantization.declare(quantization.treat(ModuleInfo(("a",))), geometry)
    }
    for slot in plans[0].layers[0].slots:
        read = [copy for plan in plans for copy in plan.copies if copy.entry.name == f"a.{stored[slot.name]}"]
        times = np.zeros(read[0].view, dtype=np.int64)
        for copy in read:
            times[tuple(interval.slice for interval in copy.source)] += 1
        assert (times == 1).all() or (times == size).all()


def test_a_vocabulary_leaves_its_padding_to_zeros(registry: Registry) -> None:
    quantization = make_quantization({**GPTQ, "lm_head": True}, registry)
    plan = plan_layer(quantization, single(1001, 64), (Source("a"),), vocabulary(64))
    assert plan.findings == ()
    stored = entries(quantization, single(1001, 64), (Source("a"),))
    for slot in plan.layers[0].slots:
        assert slot.fill == 0
        assert written(slot).max() == 1
        assert written(slot).sum() == np.prod(stored[f"a.{slot.name}"].shape)
    assert {slot.name: slot.shape[-1] for slot in plan.layers[0].slots}["qweight"] == 1024


def test_bytes_are_counted(registry: Registry) -> None:
    quantization = make_quantization(GPTQ, registry)
    stored = entries(quantization, single(256, 256), (Source("a"),))
    plan = plan_layer(quantization, single(256, 256), (Source("a"),))
    assert plan.bytes_read == plan.nbytes == sum(entry.nbytes for entry in stored.values())


@pytest.mark.parametrize(
    ("changes", "code", "where"),
    [
        ({"a.scales": None}, "QL201", "a.scales"),
        (wrong("a.scales", "I8", (8, 256)), "QL304", "a.scales"),
        (wrong("a.scales", "F16", (4, 256)), "QL301", "a.scales"),
        (wrong("a.scales", "F16", (256, 8)), "QL301", "a.scales"),
        (wrong("a.qweight", "I32", (32, 128)), "QL302", "a.qweight"),
        (wrong("a.qweight", "U8", (32, 256)), "QL308", "a.qweight"),
        (wrong("a.qzeros", "I32", (8, 256)), "QL305", "a.qzeros"),
        (wrong("a.qzeros", "F16", (8, 32)), "QL305", "a.qzeros"),
        (wrong("a.g_idx", "I32", (128,)), "QL307", "a.g_idx"),
        (wrong("a.bias", "F16", (256,)), "QL208", "a.bias"),
        (wrong("a.surplus", "F16", (256,)), "QL210", "a.surplus"),
        (wrong("b.weight", "F16", (256,)), "QL210", "b.weight"),
    ],
)
def test_what_is_wrong_is_named(
    registry: Registry, changes: dict[str, TensorEntry | None], code: str, where: str
) -> None:
    quantization = make_quantization(GPTQ, registry)
    plan = plan_layer(quantization, single(256, 256), (Source("a"),), changes=changes)
    assert [(finding.code, finding.where) for finding in plan.findings] == [(code, where)]


@pytest.mark.parametrize(
    ("leaf", "noun"),
    [("qweight", "packed weight"), ("qzeros", "zero-point"), ("scales", "group scale"), ("g_idx", "group index")],
)
def test_a_tensor_is_called_by_what_it_is_for(registry: Registry, leaf: str, noun: str) -> None:
    quantization = make_quantization({**GPTQ, "desc_act": True}, registry)
    plan = plan_layer(quantization, single(256, 256), (Source("a"),), changes={f"a.{leaf}": None})
    assert [finding.message for finding in plan.findings] == [f"the {noun} is not stored"]


def test_an_optional_tensor_may_be_absent_everywhere_but_not_somewhere(registry: Registry) -> None:
    quantization = make_quantization(GPTQ, registry)
    geometry, sources = Geometry(256, (Part("a", 128), Part("b", 128))), (Source("a"), Source("b", 1))
    both = plan_layer(quantization, geometry, sources, changes={"a.g_idx": None, "b.g_idx": None})
    assert both.findings == ()
    assert "g_idx" not in [slot.name for slot in both.layers[0].slots]
    one = plan_layer(quantization, geometry, sources, changes={"b.g_idx": None})
    assert [(finding.code, finding.where) for finding in one.findings] == [("QL201", "b.g_idx")]


def test_parts_of_different_dtypes_are_not_fused(registry: Registry) -> None:
    quantization = make_quantization(GPTQ, registry)
    geometry, sources = Geometry(256, (Part("a", 128), Part("b", 128))), (Source("a"), Source("b", 1))
    plan = plan_layer(quantization, geometry, sources, changes=wrong("b.scales", "BF16", (8, 128)))
    assert [finding.code for finding in plan.findings] == ["QL204"]


def test_plain_parts_of_different_dtypes_are_cast_into_one(registry: Registry) -> None:
    plain = make_quantization({}, registry)
    geometry, sources = Geometry(256, (Part("a", 128), Part("b", 128))), (Source("a"), Source("b", 1))
    changes = wrong("a.weight", "BF16", (128, 256)) | wrong("b.weight", "F16", (128, 256))
    plan = plan_layer(plain, geometry, sources, changes=changes)
    assert plan.findings == ()
    assert [slot.dtype for slot in plan.layers[0].slots] == ["F32"]


def test_a_module_stored_quantized_against_the_config(registry: Registry) -> None:
    quantization = make_quantization({**GPTQ, "dynamic": {"-:a": {}}}, registry)
    stored = entries(make_quantization(GPTQ, registry), single(256, 256), (Source("a"),))
    geometry = single(256, 256)
    target = Target("a", geometry, quantization.treat(ModuleInfo(("a",))), replicated(geometry), (Source("a"),))
    plan = make_plan(Checkpoint(Path("x"), {}, stored), quantization, [target])
    (finding,) = plan.findings
    assert (finding.code, finding.where) == ("QL202", "a")
    assert "qweight" in finding.found


def test_a_scalar_on_disk_fills_every_part(registry: Registry) -> None:
    quantization = make_quantization(TENSOR_SCALES, registry)
    geometry = Geometry(256, (Part("a", 128), Part("b", 128)))
    sources = (Source("a", parts=2),)
    for shape in ((), (1,), (2,)):
        plan = plan_layer(quantization, geometry, sources, changes=wrong("a.weight_scale", "F32", shape))
        assert plan.findings == ()
        (slot,) = [slot for slot in plan.layers[0].slots if slot.name == "weight_scale"]
        assert slot.shape == (2,)
        assert (written(slot) == 1).all()


@pytest.mark.parametrize("divide", [replicated, expert_parallel])
def test_a_scalar_on_disk_fills_a_whole_stack_of_experts(registry: Registry, divide: Sharding) -> None:
    quantization = make_quantization(TENSOR_SCALES, registry)
    geometry = Geometry(256, (Part("a", 128), Part("b", 128)), experts=4)
    size = 1 if divide is replicated else 2
    for shape in ((), (1,), (4,)):
        for rank in range(size):
            changes = wrong("a.weight_scale", "F32", shape)
            plan = plan_layer(quantization, geometry, (Source("a", parts=2),), divide, rank, size, changes)
            assert plan.findings == ()
            (slot,) = [slot for slot in plan.layers[0].slots if slot.name == "weight_scale"]
            assert slot.shape == (4 // size, 2)
            assert (written(slot) == 1).all()


def test_plain_tensors_are_matched_by_name_shape_and_dtype(registry: Registry) -> None:
    quantization = make_quantization(GPTQ, registry)
    stored = wrong("norm.weight", "F16", (4,)) | wrong("ids", "I64", (4,))
    checkpoint = Checkpoint(Path("x"), {}, stored)
    targets = [PlainTarget("n.weight", "norm.weight", (4,), "F32"), PlainTarget("ids", "ids", (4,), "I64")]
    plan = make_plan(checkpoint, quantization, [], targets)
    assert plan.findings == ()
    assert [slot.dtype for layer in plan.layers for slot in layer.slots] == ["F32", "I64"]
    bad = [replace(targets[0], shape=(5,)), replace(targets[1], dtype="F32"), PlainTarget("x", "x", (1,), None)]
    bad.append(PlainTarget("y", "y", (1,), None, required=False))
    codes = [finding.code for finding in make_plan(checkpoint, quantization, [], bad).findings]
    assert codes == ["QL307", "QL308", "QL201"]


@pytest.mark.parametrize(
    ("stored", "wanted", "fits"),
    [
        ("F32", "BF16", True),
        ("F16", "F64", True),
        ("I64", "I64", True),
        ("F8_E4M3", "F8_E4M3", True),
        ("F32", None, True),
        ("F8_E4M3", None, True),
        ("F32", "I64", False),
        ("F32", "F8_E4M3", False),
        ("F8_E4M3", "F32", False),
        ("I64", "I32", False),
        ("U8", "BOOL", False),
    ],
)
def test_plain_tensors_are_cast_only_between_ordinary_floats(
    registry: Registry, stored: str, wanted: str | None, fits: bool
) -> None:
    checkpoint = Checkpoint(Path("x"), {}, wrong("ids", stored, (4,)))
    plan = make_plan(checkpoint, make_quantization(GPTQ, registry), [], [PlainTarget("ids", "ids", (4,), wanted)])
    assert [(finding.code, finding.found) for finding in plan.findings] == ([] if fits else [("QL308", stored)])
    assert len(plan.layers) == int(fits)


def test_rows_that_lie_in_a_tensor_of_several_layers(registry: Registry) -> None:
    """A layer that is stored as rows 128 to 256 of a fused tensor."""
    quantization = make_quantization(GPTQ, registry)
    source = Source("a", before=128, after=64)
    plan = plan_layer(quantization, single(128, 256), (source,))
    assert plan.findings == ()
    weight = next(copy for copy in plan.copies if copy.entry.name == "a.qweight")
    assert weight.view == (32, 320)
    assert (weight.source[1].start, weight.source[1].stop) == (128, 256)
