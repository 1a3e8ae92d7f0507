"""BitNet's packing and arithmetic, against transformers' own, and what its config means."""

import importlib
from typing import Any
from unittest import mock

import pytest
import torch
from samples import DATA, make_quantization, relative_error
from torch import Tensor
from transformers.quantizers.quantizers_utils import should_convert_module

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

DIVIDES = {"quant_method": "bitnet"}
MULTIPLIES = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
ONLINE = {**MULTIPLIES, "quantization_mode": "online"}
NORMED = {"use_rms_norm": True, "rms_norm_eps": 1e-3}
ROWS, COLUMNS = 16, 24


with mock.patch("torch.compile", lambda function: function):
    # Compiled, its functions would round elsewhere than they are written to.
    BITNET: Any = importlib.import_module("transformers.integrations.bitnet")


def ternary(rows: int, columns: int = COLUMNS) -> Tensor:
    torch.manual_seed(rows)
    return torch.randint(-1, 2, (rows, columns))


def make_reference(section: dict[str, Any], dtype: torch.dtype, bias: bool) -> Any:
    """Transformers' layer, filled, and what the checkpoint holds of it."""
    norm: dict[str, Any] = {"use_rms_norm": "use_rms_norm" in section, "rms_norm_eps": 1e-3}
    if section.get("linear_class") != "autobitlinear":
        layer: Any = BITNET.BitLinear(COLUMNS, ROWS, bias, dtype=dtype, **norm)
    else:
        online = section.get("quantization_mode") == "online"
        layer = BITNET.AutoBitLinear(COLUMNS, ROWS, bias, dtype=dtype, online_quant=online, **norm)
    values = ternary(ROWS)
    with torch.no_grad():
        if isinstance(layer, BITNET.BitLinear):
            layer.weight.copy_(BITNET.pack_weights(values.clone()))
        elif not layer.online_quant:
            layer.weight.copy_(values)
        if hasattr(layer, "weight_scale"):
            layer.weight_scale.fill_(2.375)
        if bias:
            layer.bias.copy_(torch.randn(ROWS))
        if layer.rms_norm is not None:
            layer.rms_norm.weight = torch.nn.Parameter(torch.rand(COLUMNS, dtype=dtype) + 0.5)
    stored = {f"m.{name}": tensor.detach().clone() for name, tensor in layer.state_dict().items()}
    if hasattr(layer, "weight_scale"):
        stored["m.weight"] = BITNET.pack_weights(values.clone())
    return layer, stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [{}, NORMED], ids=["plain", "normed"])
@pytest.mark.parametrize(
    ("section", "bias"), [(DIVIDES, False), (DIVIDES, True), (MULTIPLIES, False), (ONLINE, False), (ONLINE, True)]
)
def test_outputs_are_those_of_transformers(
    section: dict[str, Any], norm: dict[str, Any], bias: bool, dtype: torch.dtype, registry: Registry
) -> None:
    section = section | norm
    reference, stored = make_reference(section, dtype, bias)
    quantization = make_quantization(section, registry)
    layer = ReplicatedLinear(COLUMNS, ROWS, Site(quantization, "m", dtype=dtype), bias=bias)
    qload.load_tensors(layer, stored, quantization, kernels=())
    x = torch.randn(2, 5, COLUMNS, dtype=dtype) * torch.tensor([1, 100, 1e-3, 1e-6, 0], dtype=dtype)[:, None]
    if dtype == torch.bfloat16 and isinstance(reference, BITNET.BitLinear):
        # Here it is not compiled, and rounds between its steps; tests/test_docs.py holds what it is when compiled.
        assert all(relative_error(layer(x)[:, n], reference(x)[:, n].detach()) < 2e-2 for n in range(3))
    else:
        assert torch.equal(layer(x), reference(x))
    layer.quantize_activations = False
    normed = x if reference.rms_norm is None else reference.rms_norm(x)
    expected = torch.nn.functional.linear(normed, qload.dequantize(layer).to(dtype), reference.bias)
    assert torch.allclose(layer(x), expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-2)
    assert not torch.equal(layer(x), reference(x))


@pytest.mark.parametrize("section", [DIVIDES, MULTIPLIES], ids=["divides", "multiplies"])
@pytest.mark.parametrize("rows", [16, 18, 3])
def test_bytes_hold_quarters_of_the_rows(section: dict[str, Any], rows: int, registry: Registry) -> None:
    values = ternary(rows)
    stored = {"m.weight": BITNET.pack_weights(values.clone()), "m.weight_scale": torch.tensor([4.0])}
    quantization = make_quantization(section, registry)
    layer = ReplicatedLinear(COLUMNS, rows, Site(quantization, "m"))
    qload.load_tensors(layer, stored, quantization, kernels=())
    expected = values / 4.0 if section is DIVIDES else values * 4.0
    assert torch.equal(qload.dequantize(layer), expected)
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(rows, COLUMNS, Site(quantization, "m"), multiple=1, treatment=treatment)
    qload.load_tensors(table, stored, quantization, kernels=())
    ids = torch.tensor([rows - 1, 0, 1, 2, 2])
    assert torch.equal(table(ids), expected[ids])


@pytest.mark.parametrize("section", [DIVIDES, MULTIPLIES, ONLINE], ids=["divides", "multiplies", "online"])
def test_fused_parts_have_their_own_scales_and_quarters(section: dict[str, Any], registry: Registry) -> None:
    quantization = make_quantization(section | NORMED, registry)
    stored: dict[str, Tensor] = {}
    for name, rows, scale in (("a", 8, 2.0), ("b", 12, 4.0)):
        dense = section is ONLINE
        weight = torch.randn(rows, COLUMNS) * scale if dense else BITNET.pack_weights(ternary(rows).clone())
        stored |= {f"{name}.weight": weight, f"{name}.rms_norm.weight": torch.rand(COLUMNS)}
        stored |= {} if dense else {f"{name}.weight_scale": torch.tensor([scale])}
    fused = MergedColumnParallelLinear(COLUMNS, [("a", 8), ("b", 12)], Site(quantization, "m"))
    parts = [ReplicatedLinear(COLUMNS, rows, Site(quantization, name)) for name, rows in (("a", 8), ("b", 12))]
    for layer in (fused, *parts):
        qload.load_tensors(
            layer,
            {n: t for n, t in stored.items() if layer is fused or n[0] == layer.name},
            quantization,
            kernels=(),
        )
    x = torch.randn(3, COLUMNS)
    assert torch.equal(fused(x), torch.cat([part(x) for part in parts], -1))


def test_ranks_take_inputs_and_no_outputs(registry: Registry) -> None:
    site = Site(make_quantization(DIVIDES, registry), "m", Group(0, 2))
    assert RowParallelLinear(32, 16, site).local.in_features == 16
    with pytest.raises(ShardError):
        ColumnParallelLinear(32, 16, site)
    for section in (DIVIDES | NORMED, ONLINE):
        with pytest.raises(ShardError):
            RowParallelLinear(32, 16, Site(make_quantization(section, registry), "m", Group(0, 2)))


@pytest.mark.parametrize(
    "entry", ["lm_head", "mlp", "model.layers.1", "layers", "model.*mlp", "up_proj", "p_proj", "m.la"]
)
@pytest.mark.parametrize("name", ["lm_head", "model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj", "model.mlp"])
def test_modules_are_left_alone_where_transformers_does(entry: str, name: str, registry: Registry) -> None:
    quantization = make_quantization({**DIVIDES, "modules_to_not_convert": [entry]}, registry)
    assert (quantization.treat(ModuleInfo((name,))).scheme is not None) == should_convert_module(name, [entry])


def test_what_is_stored_tells_which_modules_are_packed(registry: Registry) -> None:
    def is_quantized(section: dict[str, Any], *stored: str, kind: Kind = Kind.LINEAR) -> bool:
        module = ModuleInfo(("m",), kind, stored=frozenset(stored))
        return make_quantization(section, registry).treat(module).scheme is not None

    assert is_quantized(MULTIPLIES, "weight", "weight_scale")
    assert not is_quantized(MULTIPLIES, "weight")
    assert is_quantized(ONLINE, "weight")
    assert not is_quantized(ONLINE, "weight", kind=Kind.EMBEDDING)
    assert not is_quantized(ONLINE, "weight", kind=Kind.LM_HEAD)
    assert is_quantized({**ONLINE, "modules_to_not_convert": ["other"]}, "weight", kind=Kind.LM_HEAD)
    with pytest.raises(ValueError, match="multiplies a bias"):
        is_quantized(MULTIPLIES, "weight", "weight_scale", "bias")


@pytest.mark.parametrize(
    "more",
    [
        {"linear_class": "bitlinears"},
        {"quantization_mode": "sometimes"},
        {"modules_to_not_convert": ["("]},
        {"use_rms_norm": "perhaps"},
    ],
)
def test_configs_that_make_no_sense(more: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization({**DIVIDES, **more}, registry)


def test_half_precision_has_room_for_the_scales_of_inputs() -> None:
    ids = torch.tensor([[1, 5, 9, 33]])
    expected = qload.load(DATA / "hf-bitnet-packed", dtype=torch.float32)(ids).logits
    found = qload.load(DATA / "hf-bitnet-packed", dtype=torch.float16)(ids).logits
    assert relative_error(found, expected) < 0.05
