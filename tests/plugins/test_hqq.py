"""HQQ's layouts, against what hqq itself stores and makes of it, and a packer that goes value by value."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from samples import make_quantization
from torch import Tensor
from variants import Variant, read_variants

import qload
from qload import Quantization, Registry
from qload.errors import CheckpointError, ShardError
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.torch import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ParallelLMHead,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
)
from qload.torch.parallel import Group

VARIANTS = read_variants("hqq")
WHOLE = next(each for each in VARIANTS if each.settings.get("whole"))
SHIFTS = {8: (0,), 4: (4, 0), 3: tuple(range(27, -1, -3)), 2: (6, 4, 2, 0), 1: tuple(range(7, -1, -1))}


def section(bits: float, group: int | None, axis: int = 1, joined: bool = False, **weights: Any) -> dict[str, Any]:
    params = {"nbits": bits, "group_size": group, "axis": axis, "channel_wise": True, **weights}
    settings = {"weight_quant_params": params, "offload_meta": joined}
    return {"quant_method": "hqq", "quant_config": settings, "skip_modules": ["lm_head"]}


def section_of(variant: Variant) -> dict[str, Any]:
    settings = variant.settings
    more = {"joined": settings.get("joined", False), "view_as_float": settings.get("as_float", False)}
    return section(settings["bits"], settings["group"], settings["axis"], **more)


def pack(matrix: Tensor, bits: int) -> Tensor:
    """Rows of a matrix in as many stripes as a word has values, one word at a time."""
    shifts = SHIFTS[bits]
    rows = -(-len(matrix) // len(shifts))
    words = torch.zeros(rows, matrix.shape[1], dtype=torch.int32)
    for row in range(len(matrix)):
        words[row % rows] |= matrix[row].to(torch.int32) << shifts[row // rows]
    return words if bits == 3 else words.to(torch.uint8)


def quantize(name: str, rows: int, columns: int, bits: int, group: int, axis: int) -> tuple[dict[str, Tensor], Tensor]:
    """A module of random codes, and the weight that they mean, value by value."""
    generator = torch.Generator().manual_seed(rows)
    codes = torch.randint(0, 1 << bits, (rows * columns,), generator=generator)
    shape = (-1, group) if axis == 1 else (group, -1)
    count = rows * columns // group
    scale, zero = torch.rand(count, generator=generator) + 0.5, torch.rand(count, generator=generator) * 3
    place = [index // group if axis == 1 else index % count for index in range(rows * columns)]
    weight = torch.stack([(codes[i] - zero[place[i]]) * scale[place[i]] for i in range(rows * columns)])
    across = (-1, 1) if axis == 1 else (1, -1)
    stored = {"W_q": pack(codes.view(shape), bits), "scale": scale.view(across), "zero": zero.view(across)}
    return {f"{name}.{leaf}": tensor for leaf, tensor in stored.items()}, weight.view(rows, columns)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_weights_are_what_hqq_makes_of_them(variant: Variant, registry: Registry) -> None:
    quantization, expected = make_quantization(section_of(variant), registry), variant.made["dequantized"]
    rows, columns = variant.settings["shape"]
    layer = ReplicatedLinear(columns, rows, Site(quantization, "m", dtype=expected.dtype))
    qload.load_tensors(layer, variant.stored, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)
    assert qload.dequantize(layer).dtype == expected.dtype


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_rows_are_looked_up_in_tables_with_and_without_padding(
    variant: Variant, multiple: int, registry: Registry
) -> None:
    quantization, expected = make_quantization(section_of(variant), registry), variant.made["dequantized"]
    rows, columns = variant.settings["shape"]
    site = Site(quantization, "m", dtype=expected.dtype)
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(rows, columns, site, multiple=multiple, treatment=treatment)
    qload.load_tensors(table, variant.stored, quantization, kernels=())
    ids = torch.tensor([rows - 1, 0, rows // 2, rows // 2 - 1])
    assert torch.equal(table(ids), expected[ids])
    dense = table.dequantize()
    assert torch.equal(dense[:rows], expected)
    assert dense.shape[0] == -(-rows // multiple) * multiple
    assert not dense[rows:].any()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_what_hqq_stores_is_read_from_files_as_words(variant: Variant, tmp_path: Path, registry: Registry) -> None:
    """Some lie there as floats."""
    rows, columns = variant.settings["shape"]
    save_file(variant.stored, tmp_path / "model.safetensors")
    quantization = make_quantization(section_of(variant), registry)
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "float32", "quantization_config": section_of(variant)}))
    assert qload.validate(tmp_path).findings == ()
    layer = torch.nn.Module()
    layer.m = ReplicatedLinear(columns, rows, Site(quantization, "m", dtype=variant.made["dequantized"].dtype))
    qload.load_weights(layer, tmp_path, kernels=())
    assert torch.equal(qload.dequantize(layer.m), variant.made["dequantized"])
    assert layer.m.W_q.dtype == (torch.int32 if variant.settings["bits"] == 3 else torch.uint8)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_fused_parts_are_each_packed_on_their_own(bits: int, axis: int, registry: Registry) -> None:
    quantization = make_quantization(section(bits, 8, axis), registry)
    sizes = {"q": 24, "k": 8, "v": 8}
    made = {name: quantize(f"attn.{name}", rows, 16, bits, 8, axis) for name, rows in sizes.items()}
    layer = MergedColumnParallelLinear(16, list(sizes.items()), Site(quantization, "attn.qkv"), bias=True)
    biases = {f"attn.{name}.bias": torch.randn(rows) for name, rows in sizes.items()}
    stored = {key: tensor for tensors, _ in made.values() for key, tensor in tensors.items()}
    qload.load_tensors(layer, {**stored, **biases}, quantization, kernels=())
    expected = torch.cat([weight for _, weight in made.values()])
    assert torch.equal(qload.dequantize(layer), expected)
    x = torch.randn(2, 16)
    assert torch.allclose(layer(x), x @ expected.T + torch.cat(list(biases.values())), atol=1e-4)


@pytest.mark.parametrize(
    ("bits", "group", "axis", "fits"),
    [(4, 8, 1, True), (4, 8, 0, True), (2, 8, 1, True), (8, 8, 1, True), (4, None, 1, True), (3, None, 0, True),
     (3, 8, 1, False), (4, 24, 1, False), (8, 24, 1, False), (4, 24, 0, False)],
)  # fmt: skip
def test_ranks_take_whole_groups_of_inputs_where_rows_pair(
    bits: int, group: int | None, axis: int, fits: bool, registry: Registry
) -> None:
    quantization = make_quantization(section(bits, group, axis), registry)
    rows, columns = 8, 96 if group != 24 else 36
    stored, expected = quantize("m", rows, columns, bits, group or (columns if axis == 1 else rows), axis)
    if not fits:
        with pytest.raises(ShardError, match="axis in"):
            RowParallelLinear(columns, rows, Site(quantization, "m", Group(0, 2)))
        return
    for rank in range(2):
        layer = RowParallelLinear(columns, rows, Site(quantization, "m", Group(rank, 2)))
        qload.load_tensors(layer, stored, quantization, kernels=())
        assert torch.equal(qload.dequantize(layer), expected.chunk(2, 1)[rank])


@pytest.mark.parametrize(("bits", "axis"), [(4, 1), (3, 1), (8, 0), (4, 0)])
def test_rows_that_share_words_or_scales_cannot_be_cut(bits: int, axis: int, registry: Registry) -> None:
    quantization = make_quantization(section(bits, 8, axis), registry)
    with pytest.raises(ShardError, match="the axis out") as caught:
        ColumnParallelLinear(64, 64, Site(quantization, "m", Group(1, 2)))
    assert (caught.value.unit, caught.value.sizes) == (64, (1,))
    with pytest.raises(ShardError):
        VocabParallelEmbedding(
            32, 64, Site(quantization, "m", Group(1, 2)), treatment=quantization.treat(ModuleInfo(("m",)))
        )


def test_rows_of_their_own_can_be_cut(registry: Registry) -> None:
    quantization = make_quantization(section(8, 8), registry)
    stored, expected = quantize("m", 8, 16, 8, 8, 1)
    layer = ColumnParallelLinear(16, 8, Site(quantization, "m", Group(1, 2)))
    qload.load_tensors(layer, stored, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected[4:])


def test_a_padded_head_adds_its_bias_to_what_is_stored(registry: Registry) -> None:
    quantization = make_quantization({**section(4, 8), "skip_modules": []}, registry)
    stored, expected = quantize("lm_head", 12, 16, 4, 8, 1)
    head = ParallelLMHead(
        12, 16, Site(quantization, "lm_head"), bias=True, treatment=quantization.treat(ModuleInfo(("m",)))
    )
    bias = torch.randn(12)
    qload.load_tensors(head, {**stored, "lm_head.bias": bias}, quantization, kernels=())
    x = torch.randn(3, 16)
    assert torch.allclose(head(x)[:, :12], x @ expected.T + bias, atol=1e-4)
    assert head(x).shape == (3, 64)
    assert not head(x)[:, 12:].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [("nbits", 3), ("axis", 0), ("group_size", 16), ("view_as_float", 1), ("quant_zero", 1), ("channel_wise", 0)],
)
def test_what_is_stored_beside_the_weights_must_agree_with_the_config(
    name: str, value: int, registry: Registry
) -> None:
    quantization = make_quantization(section_of(WHOLE), registry)
    rows, columns = WHOLE.settings["shape"]
    layer = ReplicatedLinear(columns, rows, Site(quantization, "m"))
    qload.load_tensors(layer, WHOLE.stored, quantization, kernels=())
    # What has been checked is not kept.
    assert {key for key, _ in layer.named_parameters()} == {"W_q", "scale", "zero"}
    qload.load_tensors(layer, WHOLE.stored, quantization, kernels=())
    wrong = {**WHOLE.stored, f"m.{name}": torch.full_like(WHOLE.stored[f"m.{name}"], value)}
    with pytest.raises(CheckpointError, match=rf"QL508 m.{name} in memory.*found {value}"):
        qload.load_tensors(layer, wrong, quantization, kernels=())


def test_scales_along_the_other_axis_are_found(registry: Registry) -> None:
    for axis in (0, 1):
        stored, _ = quantize("m", 8, 16, 4, 8, 1 - axis)
        quantization = make_quantization(section(4, 8, axis), registry)
        with pytest.raises(CheckpointError, match=r"HQQ001 m\.scale"):
            qload.load_tensors(ReplicatedLinear(16, 8, Site(quantization, "m")), stored, quantization, kernels=())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"m.zero": None}, "QL201"),
        ({"m.W_q": torch.zeros(8, 8)}, "QL308"),
        ({"m.W_q": torch.zeros(4, 8, dtype=torch.uint8)}, "QL302"),
        ({"m.scale": torch.ones(8, 1)}, "QL301"),
        ({"m.scale": torch.full((16, 1), torch.nan)}, "QL501"),
        ({"m.scale": torch.ones(16, 1, dtype=torch.uint8)}, "QL304"),
    ],
)
def test_tensors_that_are_not_as_declared(change: dict[str, Tensor | None], code: str, registry: Registry) -> None:
    stored, _ = quantize("m", 8, 16, 4, 8, 1)
    quantization = make_quantization(section(4, 8), registry)
    changed = {key: tensor for key, tensor in {**stored, **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=code):
        qload.load_tensors(ReplicatedLinear(16, 8, Site(quantization, "m")), changed, quantization, kernels=())


def treat(quantization: Quantization, name: str, *stored: str, kind: Kind = Kind.LINEAR) -> Any:
    return quantization.treat(ModuleInfo((name,), kind, ("Linear",), frozenset(stored))).scheme


@pytest.mark.parametrize(
    ("made", "reason"),
    [(section(7, 64), "7 bits are none of 8, 6, 5, 4, 3, 2, 1.58, 1"), (section(4, 64, channel_wise=False), "channel")],
)
def test_what_is_not_supported_is_refused(made: dict[str, Any], reason: str, registry: Registry) -> None:
    with pytest.raises(ValueError, match=reason):
        treat(make_quantization(made, registry), "m")


def test_quantized_scales_are_refused_where_they_are_stored_and_not_where_they_are_asked_for(
    registry: Registry,
) -> None:
    made = section(4, 64)
    made["quant_config"]["zero_quant_params"] = {"nbits": 8}
    quantization = make_quantization(made, registry)
    assert treat(quantization, "m", "W_q", "scale", "zero") is not None
    with pytest.raises(ValueError, match="quantized themselves"):
        treat(quantization, "m", "W_q", "scale", "zero_q")


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("model.layers.0.self_attn.q_proj", 4),
        ("model.layers.11.mlp.down_proj", 2),
        ("model.layers.1.mlp.up_proj", None),
        ("model.layers.1.mlp.gate_proj", None),
        ("lm_head", None),
    ],
)
def test_settings_for_each_tag(name: str, bits: int | None, registry: Registry) -> None:
    """A tag that is not among them, one with null, and one that is skipped are left alone."""
    settings = {bits: section(bits, 64)["quant_config"] for bits in (2, 4)}
    tags = {"self_attn.q_proj": settings[4], "mlp.down_proj": settings[2], "mlp.up_proj": None, "lm_head": settings[2]}
    quantization = make_quantization({"quant_method": "hqq", "quant_config": tags}, registry)
    scheme = treat(quantization, name)
    assert (None if scheme is None else scheme.bits) == bits


def test_what_is_left_alone(registry: Registry) -> None:
    quantization = make_quantization({**section(4, 64), "skip_modules": ["mlp.gate", "lm_head"]}, registry)
    assert treat(quantization, "model.layers.3.mlp.gate") is None
    assert treat(quantization, "model.layers.3.mlp.gate_proj") is not None
    assert treat(quantization, "model.layers.3.mlp.gate_proj", "weight") is None
    assert treat(quantization, "model.embed_tokens", kind=Kind.EMBEDDING) is None
    assert treat(quantization, "model.embed_tokens", "W_q", "scale", "zero", kind=Kind.EMBEDDING) is not None


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {},
        {"weight_quant_params": {"group_size": 64}},
        {"weight_quant_params": {"nbits": 4, "axis": 2}},
        {"weight_quant_params": {"nbits": 4, "group_size": 0}},
        {"self_attn.q_proj": {"nbits": 4}},
    ],
)
def test_configs_that_make_no_sense(settings: Any, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization({"quant_method": "hqq", "quant_config": settings}, registry)
