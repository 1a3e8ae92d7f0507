"""ggml's blocks, against gguf-py's decoder on random bytes, and GPTQModel's packing of them."""

from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from qload_gguf.types import BLOCKS, BlockType
from samples import make_quantization
from torch import Tensor

import qload
from qload import Quantization, Registry
from qload.errors import CheckpointError, ShardError
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.torch import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear, Site, VocabParallelEmbedding
from qload.torch.parallel import Group

REFERENCED = [number for number in BLOCKS if number != 41]
"""The types that gguf-py decodes: all but the one of one bit."""
ROWS, COUNT = 12, 3
PACKED: dict[str, Any] = {"quant_method": "gguf", "bits": 4, "checkpoint_format": "q_k_m", "format": "q_k_m"}


def blocks(block: BlockType, seed: int = 0) -> Tensor:
    """Rows of random bytes, in which every value of every field occurs, but for NaN and infinite scales."""
    raw = np.random.default_rng(seed).integers(0, 256, (ROWS, COUNT, block.nbytes), dtype=np.uint8)
    for place in block.scales:
        raw[..., place + 1] ^= np.where(raw[..., place + 1] & 0x7C == 0x7C, 0x40, 0).astype(np.uint8)
    return torch.from_numpy(raw.reshape(ROWS, -1))


def quantize(stored: set[str], registry: Registry) -> Quantization:
    quantization = make_quantization({"quant_method": "gguf"}, registry)
    quantization.modules = {"m": {leaf: f"m.{leaf}" for leaf in stored}}
    return quantization


def have_same_bits(found: Tensor, expected: Tensor) -> bool:
    numbers = ~expected.isnan()
    same = torch.equal(found[numbers].view(torch.int32), expected[numbers].view(torch.int32))
    return same and torch.equal(found.isnan(), ~numbers)


def test_the_types_are_ggmls() -> None:
    theirs = {kind.value: (kind.name, *size) for kind, size in GGML_QUANT_SIZES.items() if size[0] > 1}
    intermediate = {GGMLQuantizationType.Q8_1.value, GGMLQuantizationType.Q8_K.value}
    assert {number: tuple(block[:3]) for number, block in BLOCKS.items()}.items() <= theirs.items()
    assert theirs.keys() - BLOCKS.keys() == intermediate


@pytest.mark.parametrize("number", REFERENCED, ids=lambda number: BLOCKS[number].name)
def test_every_type_is_decoded_bit_for_bit(number: int, registry: Registry) -> None:
    block = BLOCKS[number]
    raw, leaf = blocks(block), f"weight.{block.name.lower()}"
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(quants.dequantize(raw.numpy(), GGMLQuantizationType(number)))
    quantization = quantize({leaf}, registry)
    layer = ReplicatedLinear(COUNT * block.elements, ROWS, Site(quantization, "m"))
    qload.load_tensors(layer, {f"m.{leaf}": raw}, quantization, kernels=())
    assert have_same_bits(qload.dequantize(layer), expected)
    table = VocabParallelEmbedding(ROWS, COUNT * block.elements, Site(quantization, "m"), multiple=1)
    qload.load_tensors(table, {f"m.{leaf}": raw}, quantization, kernels=())
    ids = torch.tensor([[11, 0], [5, 5]])
    assert have_same_bits(table(ids), expected[ids])
    assert table(torch.zeros(0, dtype=torch.int64)).shape == (0, COUNT * block.elements)


@pytest.mark.parametrize(
    ("bits", "form", "elements"), [(1, "q_0", 32), (1, "q_0_g128", 128), ("q1_0_g128", "gguf", 128)]
)
def test_one_bit_is_a_sign(bits: Any, form: str, elements: int, registry: Registry) -> None:
    quantization = make_quantization({**PACKED, "bits": bits, "checkpoint_format": form}, registry)
    signs = torch.randint(0, 2, (4, 2 * elements), generator=torch.manual_seed(0))
    scale = torch.tensor([[0.5, 2.0]] * 4).half()
    expected = torch.empty(4, 2 * elements)
    packed = torch.zeros(4, 2, 2 + elements // 8, dtype=torch.uint8)
    packed[..., :2] = scale.view(torch.uint8).view(4, 2, 2)
    for row in range(4):
        for column in range(2 * elements):
            number, place = divmod(column, elements)
            packed[row, number, 2 + place // 8] |= int(signs[row, column]) << place % 8
            expected[row, column] = float(scale[row, number]) * (1 if signs[row, column] else -1)
    layer = ReplicatedLinear(2 * elements, 4, Site(quantization, "m"))
    qload.load_tensors(layer, {"m.qweight": packed.flatten(1)}, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)


@pytest.mark.parametrize("columns", [300, 256, 4])
def test_rows_are_padded_to_whole_blocks(columns: int, registry: Registry) -> None:
    quantization = make_quantization(PACKED, registry)
    raw = torch.from_numpy(np.random.default_rng(1).integers(0, 120, (8, -(-columns // 256) * 144), dtype=np.uint8))
    expected = torch.from_numpy(quants.dequantize(raw.numpy(), GGMLQuantizationType.Q4_K))[:, :columns]
    layer = ReplicatedLinear(columns, 8, Site(quantization, "m"))
    qload.load_tensors(layer, {"m.qweight": raw}, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)
    x = torch.randn(2, columns)
    assert torch.allclose(layer(x), x @ expected.T, rtol=1e-5, atol=1e-3)
    with pytest.raises(CheckpointError, match="QL302"):
        qload.load_tensors(layer, {"m.qweight": raw[:, :-1].contiguous()}, quantization, kernels=())


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"bits": 4, "checkpoint_format": "q_k_s"}, "Q4_K"),
        ({"bits": 4, "format": "q_0"}, "Q4_0"),
        ({"bits": "q5_k_m"}, "Q5_K"),
        ({"bits": "Q6-K"}, "Q6_K"),
        ({"bits": 8, "format": "gguf"}, "Q8_0"),
        ({"bits": 5}, "Q5_K"),
    ],
)
def test_names_of_types(section: dict[str, Any], expected: str, registry: Registry) -> None:
    treatment = make_quantization({"quant_method": "gguf", **section}, registry).treat(ModuleInfo(("m",)))
    assert str(treatment.scheme) == expected


@pytest.mark.parametrize(
    "section", [{"bits": 3}, {"bits": 4, "format": "q_9"}, {"bits": "q2_0"}, {"bits": 8, "format": "q_k"}]
)
def test_unknown_types_are_refused(section: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(ValueError, match="is not one of the types"):
        make_quantization({"quant_method": "gguf", **section}, registry).treat(ModuleInfo(("m",)))


def test_modules_that_differ(registry: Registry) -> None:
    dynamic = {"-:.*down": {}, "+:.*up": {"bits": 8}, "+:.*gate": {"format": "q_0"}, "+:.*q_proj": {"bits": "q6_k"}}
    quantization = make_quantization({**PACKED, "dynamic": dynamic}, registry)
    names = ("mlp.down_proj", "mlp.up_proj", "mlp.gate_proj", "q_proj", "k_proj")
    found = [str(quantization.treat(ModuleInfo((name,))).scheme) for name in names]
    assert found == ["None", "Q8_0", "Q4_0", "Q6_K", "Q4_K"]
    head = ModuleInfo(("lm_head",), Kind.LM_HEAD)
    assert quantization.treat(head).scheme is None
    quantized = make_quantization({**PACKED, "lm_head": True}, registry)
    assert str(quantized.treat(head).scheme) == "Q4_K"
    assert quantized.treat(ModuleInfo(("e",), Kind.EMBEDDING, ("Embedding",))).scheme is None


@pytest.mark.parametrize("section", [{"dynamic": {"+:(": {}}}, {"bits": [4]}, {"lm_head": "perhaps"}])
def test_configs_that_make_no_sense(section: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization({**PACKED, **section}, registry)


def test_ranks_take_whole_blocks(registry: Registry) -> None:
    raw = blocks(BLOCKS[8])
    quantization = quantize({"weight.q8_0"}, registry)
    whole = ReplicatedLinear(96, ROWS, Site(quantization, "m"))
    qload.load_tensors(whole, {"m.weight.q8_0": raw}, quantization, kernels=())
    expected = qload.dequantize(whole).nan_to_num()
    for kind, dim in ((ColumnParallelLinear, 0), (RowParallelLinear, 1)):
        parts = []
        for rank in range(3):
            layer = kind(96, ROWS, Site(quantization, "m", Group(rank, 3)))
            qload.load_tensors(layer, {"m.weight.q8_0": raw}, quantization, kernels=())
            parts.append(qload.dequantize(layer).nan_to_num())
        assert torch.equal(torch.cat(parts, dim), expected)
    with pytest.raises(ShardError, match="32"):
        RowParallelLinear(96, ROWS, Site(quantization, "m", Group(0, 2)))


def test_nvfp4_has_a_scale_of_its_own(registry: Registry) -> None:
    raw = blocks(BLOCKS[40])
    stored = {"weight.nvfp4", "scale", "input_scale"}
    quantization = quantize(stored, registry)
    layer = ReplicatedLinear(COUNT * 64, ROWS, Site(quantization, "m"))
    tensors = {"m.weight.nvfp4": raw, "m.scale": torch.tensor([0.25]), "m.input_scale": torch.tensor([3.0])}
    qload.load_tensors(layer, tensors, quantization, kernels=())
    expected = torch.from_numpy(quants.dequantize(raw.numpy(), GGMLQuantizationType.NVFP4))
    assert torch.equal(qload.dequantize(layer), expected * 0.25)
    alone = ReplicatedLinear(COUNT * 64, ROWS, Site(quantization, "m"))
    qload.load_tensors(alone, {"m.weight.nvfp4": raw}, quantization, kernels=())
    assert torch.equal(qload.dequantize(alone), expected)


def test_a_scale_that_the_type_does_not_have(registry: Registry) -> None:
    quantization = quantize({"weight.q8_0", "scale"}, registry)
    layer = ReplicatedLinear(96, ROWS, Site(quantization, "m"))
    with pytest.raises(CheckpointError, match="QL210"):
        qload.load_tensors(
            layer, {"m.weight.q8_0": blocks(BLOCKS[8]), "m.scale": torch.ones(1)}, quantization, kernels=()
        )


def test_a_weight_is_stored_once(registry: Registry) -> None:
    quantization = quantize({"weight.q8_0", "weight.q4_0"}, registry)
    with pytest.raises(ValueError, match="stored twice"):
        quantization.treat(ModuleInfo(("m",)))
