"""AWQ's three layouts, against packers that go value by value."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import make_quantization
from torch import Tensor, nn

import qload
from qload import Registry
from qload.checkpoint import Checkpoint, TensorEntry
from qload.errors import ShardError
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.resolution import resolve
from qload.torch import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear, Site, VocabParallelEmbedding
from qload.torch.parallel import Group

OUT, IN = 64, 96
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(values: Tensor) -> Tensor:
    """Values [rows, columns] into [rows, columns / 8]: value k of a word holds its column ORDER[k]."""
    words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for word in range(words.shape[1]):
        for place, column in enumerate(ORDER):
            words[:, word] |= values[:, word * 8 + column] << (4 * place)
    return (words - ((words >> 31) << 32)).to(torch.int32)


def as_signed(words: Tensor, bits: int) -> Tensor:
    return words - ((words >> (bits - 1)) << bits)


def pack_rows(values: Tensor, words: int) -> Tensor:
    """Values [rows, columns] in order into [rows, words], low bits first; what is left over stays zero."""
    packed = torch.zeros(values.shape[0], words, dtype=torch.int64)
    for column in range(values.shape[1]):
        packed[:, column // 8] |= values[:, column] << (4 * (column % 8))
    return as_signed(packed, 32).to(torch.int32)


def pack_fast(values: Tensor) -> Tensor:
    """Values [rows, columns] into int16 [rows / 4, columns].

    Of 32 columns the one at 8a + 2b + c goes to 8b + 4c + a. Then strips of 64 of four rows, one row after the
    other, are cut into words of four.
    """
    packed = torch.zeros(values.shape[0] // 4, values.shape[1], dtype=torch.int64)
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            a, b, c = column % 32 // 8, column % 8 // 2, column % 2
            place = column - column % 32 + 8 * b + 4 * c + a
            strip, entry = place // 64, row % 4 * 64 + place % 64
            packed[row // 4, strip * 64 + entry // 4] |= int(values[row, column]) << (4 * (entry % 4))
    return as_signed(packed, 16).to(torch.int16)


def store(version: str, values: Tensor, zeros: Tensor, scales: Tensor) -> dict[str, Tensor]:
    """What a module stores in either gemv version: values [out, in], zeros and scales [out, groups]."""
    width = -(-zeros.shape[1] // 8)
    padded = nn.functional.pad(scales, (0, 8 * width - scales.shape[1]))
    if version == "gemv":
        words = values.shape[1] // 8
        return {"m.qweight": pack_rows(values, words), "m.qzeros": pack_rows(zeros, width), "m.scales": padded}
    products = nn.functional.pad(-(scales * zeros), (0, 8 * width - scales.shape[1]))
    return {"m.qweight": pack_fast(values), "m.qzeros": products.T.contiguous(), "m.scales": padded.T.contiguous()}


@pytest.mark.parametrize("version", ["gemv", "gemv_fast"])
@pytest.mark.parametrize(("columns", "group"), [(256, 128), (1280, 128), (128, -1)])
def test_the_gemv_versions(version: str, columns: int, group: int, registry: Registry) -> None:
    torch.manual_seed(0)
    groups = columns // group if group > 0 else 1
    values, zeros = torch.randint(0, 16, (8, columns)), torch.randint(0, 16, (8, groups))
    scales = (torch.rand(8, groups) + 0.5).half()
    index = torch.arange(columns) // (columns // groups)
    expected = scales[:, index] * (values - zeros[:, index]).half()
    section = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version.upper()}
    quantization = make_quantization(section, registry)
    tensors = store(version, values, zeros, scales)
    layer = ReplicatedLinear(columns, 8, Site(quantization, "m"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)
    treatment = quantization.treat(ModuleInfo(("m",)))
    site = Site(quantization, "m", dtype=torch.float16)
    table = VocabParallelEmbedding(8, columns, site, multiple=1, treatment=treatment)
    qload.load_tensors(table, tensors, quantization, kernels=())
    ids = torch.tensor([7, 0, 3, 3, 5])
    assert torch.equal(table(ids), expected[ids])


@pytest.mark.parametrize("version", ["gemv", "gemv_fast"])
def test_rows_of_the_gemv_versions_are_cut_and_inputs_are_not(version: str, registry: Registry) -> None:
    """Their groups are padded, so that no rank could tell which are its own."""
    torch.manual_seed(0)
    values, zeros = torch.randint(0, 16, (16, 256)), torch.randint(0, 16, (16, 2))
    tensors = store(version, values, zeros, (torch.rand(16, 2) + 0.5).half())
    section = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": version}
    quantization = make_quantization(section, registry)
    shards = []
    for rank in range(2):
        layer = ColumnParallelLinear(256, 16, Site(quantization, "m", Group(rank, 2)))
        qload.load_tensors(layer, tensors, quantization, kernels=())
        shards.append(qload.dequantize(layer))
    whole = ReplicatedLinear(256, 16, Site(quantization, "m"))
    qload.load_tensors(whole, tensors, quantization, kernels=())
    assert torch.equal(torch.cat(shards), qload.dequantize(whole))
    with pytest.raises(ShardError) as caught:
        RowParallelLinear(256, 16, Site(quantization, "m", Group(0, 2)))
    assert caught.value.sizes == (1,)


@pytest.mark.parametrize(("version", "shape"), [("gemm", (256, 8)), ("gemv", (64, 32)), ("gemv_fast", (16, 256))])
def test_a_group_size_that_leaves_a_short_group(version: str, shape: tuple[int, int], registry: Registry) -> None:
    quantization = make_quantization({"quant_method": "awq", "group_size": 129, "version": version}, registry)
    entry = TensorEntry("m.qweight", "I32", shape, "model.safetensors", 0, 0)
    module = ModuleInfo(("m",), stored=frozenset({"qweight"}), tensors={"qweight": entry})
    with pytest.raises(ValueError, match="group_size 129 does not divide the 256 input features"):
        quantization.treat(module)


@pytest.mark.parametrize("group", [-1, 16, 32, 96])
def test_weights_and_rows(group: int, registry: Registry) -> None:
    torch.manual_seed(0)
    groups = IN // group if group > 0 else 1
    values, zeros = torch.randint(0, 16, (IN, OUT)), torch.randint(0, 16, (groups, OUT))
    scales = (torch.rand(groups, OUT) + 0.5).half()
    index = torch.arange(IN) // (group if group > 0 else IN)
    expected = (scales[index] * (values - zeros[index]).half()).T
    quantization = make_quantization({"quant_method": "awq", "bits": 4, "group_size": group}, registry)
    tensors = {"m.qweight": pack(values), "m.qzeros": pack(zeros), "m.scales": scales}
    layer = ReplicatedLinear(IN, OUT, Site(quantization, "m"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)
    treatment = quantization.treat(ModuleInfo(("m",)))
    site = Site(quantization, "m", dtype=torch.float16)
    table = VocabParallelEmbedding(OUT, IN, site, multiple=1, treatment=treatment)
    qload.load_tensors(table, tensors, quantization, kernels=())
    ids = torch.tensor([0, 63, 1, 2, 3, 4, 5, 6, 7, 8])
    assert torch.equal(table(ids), expected[ids])


@pytest.mark.parametrize(
    ("entry", "name", "excluded"),
    [("lm_head", "lm_head", True), ("mlp", "model.layers.0.mlp.up_proj", True), ("gate", "a.up_proj", False)],
)
def test_exclusions_are_any_part_of_a_name(entry: str, name: str, excluded: bool, registry: Registry) -> None:
    section = {"quant_method": "awq", "modules_to_not_convert": [entry]}
    treatment = make_quantization(section, registry).treat(ModuleInfo((name,)))
    assert (treatment.scheme is None) == excluded


@pytest.mark.parametrize(("kind", "quantized"), [(Kind.LINEAR, True), (Kind.LM_HEAD, False), (Kind.EMBEDDING, False)])
def test_linear_layers_alone_are_quantized_where_nothing_stored_says_more(
    kind: Kind, quantized: bool, registry: Registry
) -> None:
    quantization = make_quantization({"quant_method": "awq"}, registry)
    assert (quantization.treat(ModuleInfo(("a",), kind)).scheme is not None) == quantized
    for leaf in ("qweight", "weight"):
        treatment = quantization.treat(ModuleInfo(("a",), kind, stored=frozenset([leaf])))
        assert (treatment.scheme is not None) == (leaf == "qweight")


@pytest.mark.parametrize("key", ["version", "checkpoint_format", "format"])
def test_the_layout_has_several_names(key: str, registry: Registry) -> None:
    """GPTQModel calls it as it calls those of its other methods."""
    quantization = make_quantization({"quant_method": "awq", key: "gemv_fast"}, registry)
    assert quantization.treat(ModuleInfo(("a",))).label == "awq int4 group 128 gemv_fast"


@pytest.mark.parametrize("side", [{"w_bit": 4}, {"q_group_size": 128}, {}])
def test_a_side_file_that_says_too_little_is_not_claimed(
    side: dict[str, int], tmp_path: Path, registry: Registry
) -> None:
    (tmp_path / "quant_config.json").write_text(json.dumps(side))
    assert resolve(Checkpoint(tmp_path, {}, {}, ("quant_config.json",)), registry).method.name == "unquantized"


@pytest.mark.parametrize(
    ("more", "reason"), [({"version": "marlin"}, "'marlin' is not one of gemm, gemv"), ({"bits": 8}, "8 bits")]
)
def test_what_is_not_supported_is_refused_with_a_reason(more: dict[str, Any], reason: str, registry: Registry) -> None:
    quantization = make_quantization({"quant_method": "awq", **more}, registry)
    with pytest.raises(ValueError, match=reason):
        quantization.treat(ModuleInfo(("a",)))
