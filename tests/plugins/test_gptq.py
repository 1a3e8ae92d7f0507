"""GPTQ: every width, version and order, against a decoder that goes bit by bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import make_quantization
from torch import Tensor

import qload
from qload import CheckpointError, ModelError, Registry
from qload.checkpoint import Checkpoint
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.resolution import resolve
from qload.torch import ReplicatedLinear, RowParallelLinear, Site, VocabParallelEmbedding
from qload.torch.parallel import Group

OUT, IN = 64, 96


def pack_rows(values: Tensor, bits: int) -> Tensor:
    """Values [rows, columns] packed along the rows into int32 words, bit by bit."""
    rows, columns = values.shape
    words = torch.zeros(-(-rows * bits // 32), columns, dtype=torch.int64)
    for row in range(rows):
        for bit in range(bits):
            place = row * bits + bit
            words[place // 32] |= ((values[row] >> bit) & 1) << (place % 32)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def store(bits: int, group: int, *, ordered: bool, version: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """A layer's tensors, and the weight that they stand for: scale * (value - zero)."""
    torch.manual_seed(seed)
    groups = -(-IN // group) if group > 0 else 1
    values = torch.randint(0, 1 << bits, (IN, OUT))
    # Version 1 stores zero-points less one, and cannot say zero without borrowing.
    zeros = torch.randint(1, 1 << bits, (groups, OUT))
    scales = (torch.rand(groups, OUT) + 0.5).half()
    index = torch.arange(IN) // group if group > 0 else torch.zeros(IN, dtype=torch.int64)
    if ordered:
        index = index[torch.randperm(IN)]
    stored_zeros = zeros - 1 if version == 1 else zeros
    tensors = {
        "qweight": pack_rows(values, bits),
        "qzeros": pack_rows(stored_zeros.T, bits).T.contiguous(),
        "scales": scales,
        "g_idx": index.to(torch.int32),
    }
    return tensors, (scales[index] * (values - zeros[index]).half()).T


def section(bits: int, group: int, *, ordered: bool = False, version: int = 1, **more: Any) -> dict[str, Any]:
    form = "gptq" if version == 1 else "gptq_v2"
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": ordered,
        "checkpoint_format": form,
        **more,
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [-1, 32, 16, 40])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_weights_and_rows(bits: int, group: int, ordered: bool, version: int, registry: Registry) -> None:
    stored, expected = store(bits, group, ordered=ordered, version=version)
    quantization = make_quantization(section(bits, group, ordered=ordered, version=version), registry)
    tensors = {f"m.{name}": tensor for name, tensor in stored.items()}
    layer = ReplicatedLinear(IN, OUT, Site(quantization, "m"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(
        OUT, IN, Site(quantization, "m", dtype=torch.float16), multiple=1, treatment=treatment
    )
    qload.load_tensors(table, tensors, quantization, kernels=())
    ids = torch.tensor([0, 63, 10, 11, 21, 32, 31])
    assert torch.equal(table(ids), expected[ids])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_of_zero_borrows_from_its_word(bits: int, registry: Registry) -> None:
    """Its tool subtracts one from whole words; adding it back restores what was borrowed."""
    stored, _ = store(bits, 32, ordered=False, version=2)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    second = {**stored, "qzeros": torch.zeros_like(stored["qzeros"]) + 5}
    first = {**second, "qzeros": second["qzeros"] - ones}
    found = []
    for version, tensors in ((1, first), (2, second)):
        quantization = make_quantization(section(bits, 32, version=version), registry)
        layer = ReplicatedLinear(IN, OUT, Site(quantization, "m"))
        qload.load_tensors(layer, {f"m.{n}": t for n, t in tensors.items()}, quantization, kernels=())
        found.append(qload.dequantize(layer))
    assert torch.equal(*found)


def test_the_two_versions_differ_by_one_scale(registry: Registry) -> None:
    stored, _ = store(4, 32, ordered=False, version=1)
    found = []
    for version in (1, 2):
        quantization = make_quantization(section(4, 32, version=version), registry)
        layer = ReplicatedLinear(IN, OUT, Site(quantization, "m"))
        qload.load_tensors(layer, {f"m.{n}": t for n, t in stored.items()}, quantization, kernels=())
        found.append(qload.dequantize(layer, dtype=torch.float32))
    scales = stored["scales"].float()[torch.arange(IN) // 32].T
    assert torch.allclose(found[1] - found[0], scales, atol=1e-4)


def test_an_order_that_says_nothing_is_dropped(registry: Registry) -> None:
    stored, _ = store(4, 32, ordered=False, version=1)
    for ordered in (False, True):
        quantization = make_quantization(section(4, 32, ordered=ordered), registry)
        layer = ReplicatedLinear(IN, OUT, Site(quantization, "m"))
        qload.load_tensors(layer, {f"m.{n}": t for n, t in stored.items()}, quantization, kernels=())
        assert layer.g_idx is None


def test_an_order_that_the_config_denies_is_obeyed_whole_and_refused_cut(registry: Registry) -> None:
    stored, expected = store(4, 16, ordered=True, version=1)
    quantization = make_quantization(section(4, 16, ordered=False), registry)
    tensors = {f"m.{n}": t for n, t in stored.items()}
    layer = ReplicatedLinear(IN, OUT, Site(quantization, "m"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)
    cut = RowParallelLinear(IN, OUT, Site(quantization, "m", group=Group(0, 2)))
    with pytest.raises(ModelError, match="columns are reordered"):
        qload.load_tensors(cut, tensors, quantization, kernels=())


@pytest.mark.parametrize(
    ("dynamic", "name", "expected"),
    [
        ({"+:.*up": {"bits": 8}}, "model.layers.0.mlp.up_proj", "int8 group 128"),
        ({".*up": {"bits": 8, "group_size": 32}}, "model.layers.0.mlp.up_proj", "int8 group 32"),
        ({"+:.*up": {"desc_act": True}}, "model.layers.0.mlp.up_proj", "int4 group 128 act-order"),
        ({"+:.*up": {"bits": 8}}, "model.layers.0.mlp.down_proj", "int4 group 128"),
        ({"+:.*": {"bits": 8}, "-:.*up": {}}, "model.layers.0.mlp.up_proj", "None"),
        ({"+:mlp": {"bits": 8}}, "model.layers.0.mlp.up_proj", "int4 group 128"),
        ({"+:.*mlp": {"bits": 8}, "+:.*up": {"bits": 2}}, "model.layers.0.mlp.up_proj", "int8 group 128"),
    ],
)
def test_dynamic_overrides_by_the_first_pattern(
    dynamic: dict[str, Any], name: str, expected: str, registry: Registry
) -> None:
    quantization = make_quantization(section(4, 128, dynamic=dynamic), registry)
    assert str(quantization.treat(ModuleInfo((name,))).scheme) == expected


def test_only_the_listed_modules_of_a_block_are_quantized(registry: Registry) -> None:
    listed = [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.up_proj"]]
    quantization = make_quantization(section(4, 128, modules_in_block_to_quantize=listed), registry)
    treated = {name: quantization.treat(ModuleInfo((f"model.layers.0.{name}",))).scheme for name in
               ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj", "shared_mlp.up_proj")}  # fmt: skip
    assert [scheme is not None for scheme in treated.values()] == [True, True, False, False]


@pytest.mark.parametrize("more", [{}, {"lm_head": True}])
def test_a_head_is_quantized_where_the_config_or_what_is_stored_says_so(
    more: dict[str, Any], registry: Registry
) -> None:
    quantization = make_quantization(section(4, 128, **more), registry)
    head = ModuleInfo(("lm_head",), Kind.LM_HEAD)
    assert (quantization.treat(head).scheme is not None) == bool(more)
    for stored, quantized in (({"weight"}, False), ({"qweight", "qzeros", "scales", "g_idx"}, True)):
        assert (quantization.treat(replace(head, stored=frozenset(stored))).scheme is not None) == quantized


def test_one_group_of_all_columns_is_one_on_every_rank(registry: Registry) -> None:
    stored, expected = store(4, -1, ordered=False, version=1)
    quantization = make_quantization(section(4, -1), registry)
    found = []
    for rank in range(2):
        layer = RowParallelLinear(IN, OUT, Site(quantization, "m", Group(rank, 2)))
        qload.load_tensors(layer, {f"m.{name}": tensor for name, tensor in stored.items()}, quantization, kernels=())
        found.append(qload.dequantize(layer))
    assert torch.equal(torch.cat(found, 1), expected)


@pytest.mark.parametrize(
    ("side", "method"),
    [
        ({"bits": 4}, "gptq"),
        ({"bits": 4, "quant_method": "gptq"}, "gptq"),
        ({"bits": 4, "quant_method": "other"}, "unquantized"),
        ({"group_size": 128}, "unquantized"),
    ],
)
def test_a_side_file_of_another_method_is_not_claimed(
    side: dict[str, Any], method: str, tmp_path: Path, registry: Registry
) -> None:
    (tmp_path / "quantize_config.json").write_text(json.dumps(side))
    assert resolve(Checkpoint(tmp_path, {}, {}, ("quantize_config.json",)), registry).method.name == method


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({"bits": 5}, "5 bits"),
        ({"pack_dtype": "int16"}, "pack_dtype 'int16'"),
        ({"dynamic": {"+:.*": {"bits": 6}}}, "6 bits"),
    ],
)
def test_what_is_not_supported_is_refused_with_a_reason(more: dict[str, Any], reason: str, registry: Registry) -> None:
    quantization = make_quantization({**section(4, 128), **more}, registry)
    with pytest.raises(ValueError, match=reason):
        quantization.treat(ModuleInfo(("a",)))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("labelled", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("stored", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_wrong_version_is_found_by_symmetric_zero_points(
    bits: int, labelled: str, stored: str, symmetric: bool, registry: Registry
) -> None:
    tensors, _ = store(bits, 32, ordered=False, version=1)
    zeros = torch.full((3, OUT), (1 << (bits - 1)) - (stored == "gptq"))
    tensors["qzeros"] = pack_rows(zeros.T, bits).T.contiguous()
    quantization = make_quantization({**section(bits, 32), "sym": symmetric, "checkpoint_format": labelled}, registry)
    layer = ReplicatedLinear(IN, OUT, Site(quantization, "m"))
    named = {f"m.{name}": tensor for name, tensor in tensors.items()}
    if symmetric and labelled != stored:
        with pytest.raises(CheckpointError, match=rf"QL503 m\.qzeros.*correct checkpoint_format to {stored}"):
            qload.load_tensors(layer, named, quantization, kernels=())
    else:
        qload.load_tensors(layer, named, quantization, kernels=())
