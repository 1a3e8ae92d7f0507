"""QQQ: its kernel's order, against tensors that GPTQModel packed and made dense; see tests/goldens/make_qqq.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from samples import DATA, WIDER, make_quantization, read_reference, relative_error
from torch import Tensor

import qload
from qload import Registry
from qload.errors import CheckpointError, ShardError
from qload.geometry import Kind
from qload.hookspecs import ModuleInfo
from qload.torch import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    Site,
    VocabParallelEmbedding,
)
from qload.torch.parallel import Group

ROWS, COLUMNS = 128, 256


def read_golden(group: int, name: str = "m") -> tuple[dict[str, Tensor], Tensor]:
    """What is stored of a module of that name, and its dense weight."""
    golden = load_file(Path(__file__).parents[1] / "goldens" / "qqq.safetensors")
    found = {key.split(".")[1]: tensor for key, tensor in golden.items() if key.startswith(f"group {group}.")}
    dense = found.pop("dense")
    return {f"{name}.{leaf}": tensor for leaf, tensor in found.items()}, dense


def section(group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "qqq", "bits": 4, "group_size": group, **more}


@pytest.mark.parametrize("group", [-1, 128])
def test_the_weight_is_gptqmodels(group: int, registry: Registry) -> None:
    stored, dense = read_golden(group)
    quantization = make_quantization(section(group), registry)
    layer = ReplicatedLinear(COLUMNS, ROWS, Site(quantization, "m"))
    report = qload.load_tensors(layer, stored, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), dense)
    assert report.bytes_in_memory == sum(tensor.nbytes for tensor in stored.values())
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(ROWS, COLUMNS, Site(quantization, "m"), multiple=1, treatment=treatment)
    qload.load_tensors(table, stored, quantization, kernels=())
    ids = torch.tensor([127, 0, 64, 31, 0])
    assert torch.equal(table(ids), dense[ids])


@pytest.mark.parametrize("group", [-1, 128])
@pytest.mark.parametrize(("kind", "dim"), [(ColumnParallelLinear, 0), (RowParallelLinear, 1)])
def test_ranks_hold_whole_tiles(group: int, kind: Any, dim: int, registry: Registry) -> None:
    stored, dense = read_golden(group)
    quantization = make_quantization(section(group), registry)
    for rank in range(2):
        layer = kind(COLUMNS, ROWS, Site(quantization, "m", Group(rank, 2)))
        qload.load_tensors(layer, stored, quantization, kernels=())
        assert torch.equal(qload.dequantize(layer), dense.chunk(2, dim)[rank])
    with pytest.raises(ShardError):
        ColumnParallelLinear(COLUMNS, ROWS, Site(quantization, "m", Group(0, 4)))


def test_fused_layers_are_the_separate_ones(registry: Registry) -> None:
    quantization = make_quantization(section(128), registry)
    one, dense = read_golden(128, "gate_proj")
    other, _ = read_golden(128, "up_proj")
    layer = MergedColumnParallelLinear(COLUMNS, [("gate_proj", ROWS), ("up_proj", ROWS)], Site(quantization, "fused"))
    qload.load_tensors(layer, {**one, **other}, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), torch.cat([dense, dense]))


def test_inputs_are_rounded_to_int8_by_token(registry: Registry) -> None:
    stored, dense = read_golden(128)
    quantization = make_quantization(section(128), registry)
    layer = ReplicatedLinear(COLUMNS, ROWS, Site(quantization, "m"))
    qload.load_tensors(layer, stored, quantization, kernels=())
    x = torch.randn(3, COLUMNS, generator=torch.Generator().manual_seed(0))
    x[1] = 0
    scale = x.abs().amax(-1, keepdim=True) / 127
    seen = torch.where(scale > 0, (x / scale).round() * scale, 0)
    assert torch.allclose(layer(x), seen @ dense.T, atol=1e-5)
    assert not torch.allclose(layer(x), x @ dense.T, atol=1e-5)
    layer.quantize_activations = False
    assert torch.allclose(layer(x), x @ dense.T, atol=1e-5)


def test_what_is_quantized(registry: Registry) -> None:
    quantization = make_quantization(section(-1), registry)
    kinds = {Kind.LINEAR: "qqq int4 channel, inputs dynamic int8", Kind.LM_HEAD: "unquantized"}
    assert {kind: quantization.treat(ModuleInfo(("m",), kind)).label for kind in kinds} == kinds
    head = make_quantization(section(-1, lm_head=True), registry)
    assert head.treat(ModuleInfo(("lm_head",), Kind.LM_HEAD)).scheme is not None


@pytest.mark.parametrize("config", [{"bits": 8}, {"group_size": 0}, {"group_size": "all"}])
def test_what_the_format_does_not_have(config: dict[str, Any], registry: Registry) -> None:
    with pytest.raises((CheckpointError, ValueError), match=r"QL105|8 bits are not 4"):
        make_quantization(section(-1, **config), registry).treat(ModuleInfo(("m",)))


def test_a_real_checkpoint_is_near_what_it_was_made_of() -> None:
    path = Path(WIDER or DATA) / "gptqmodel-qqq"
    if not path.is_dir():
        pytest.skip("the checkpoint is one of the further ones")
    reference = read_reference(DATA / "base")
    model = qload.load(path, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(reference.input_ids).logits
    assert 0.01 < relative_error(logits, reference.logits) < 0.2
