"""AWQ's gemm version, against a decoder that goes value by value."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import make_quantization
from torch import Tensor

import qload
from qload import Registry
from qload.checkpoint import Checkpoint
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.quantization import resolve
from qload.torch import ReplicatedLinear, Site, VocabParallelEmbedding

OUT, IN = 64, 96
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(values: Tensor) -> Tensor:
    """Values [rows, columns] into [rows, columns / 8]: value k of a word holds its column ORDER[k]."""
    words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
    for word in range(words.shape[1]):
        for place, column in enumerate(ORDER):
            words[:, word] |= values[:, word * 8 + column] << (4 * place)
    return (words - ((words >> 31) << 32)).to(torch.int32)


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
    qload.load_tensors(layer, tensors, quantization)
    assert torch.equal(qload.dequantize(layer), expected)
    treatment = quantization.treat(ModuleInfo(("m",)))
    site = Site(quantization, "m", dtype=torch.float16)
    table = VocabParallelEmbedding(OUT, IN, site, multiple=1, treatment=treatment)
    qload.load_tensors(table, tensors, quantization)
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


@pytest.mark.parametrize("side", [{"w_bit": 4}, {"q_group_size": 128}, {}])
def test_a_side_file_that_says_too_little_is_not_claimed(
    side: dict[str, int], tmp_path: Path, registry: Registry
) -> None:
    (tmp_path / "quant_config.json").write_text(json.dumps(side))
    assert resolve(Checkpoint(tmp_path, {}, {}, ("quant_config.json",)), registry).method.name == "unquantized"


@pytest.mark.parametrize(("more", "reason"), [({"version": "GEMV"}, "'gemv' is not gemm"), ({"bits": 8}, "8 bits")])
def test_what_is_not_supported_is_refused_with_a_reason(more: dict[str, Any], reason: str, registry: Registry) -> None:
    quantization = make_quantization({"quant_method": "awq", **more}, registry)
    with pytest.raises(ValueError, match=reason):
        quantization.treat(ModuleInfo(("a",)))
