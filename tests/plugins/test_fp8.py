"""fp8's layouts, against arithmetic that goes block by block, and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import edit_config, edit_tensors
from samples import make_quantization
from torch import Tensor

import qload
from qload import Registry
from qload.errors import CheckpointError, ShardError
from qload.hookspecs import ModuleInfo
from qload.torch import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear, Site, VocabParallelEmbedding
from qload.torch.activations import fake_quantize, fake_quantize_dynamic
from qload.torch.parallel import Group

BLOCK = {"quant_method": "fp8", "weight_block_size": [64, 32], "activation_scheme": "dynamic"}
SIZE = (100, 80)


def blocks(divide: bool = False, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    """A module of blocks of which the last are short, and what it means."""
    torch.manual_seed(0)
    weight = torch.randn(SIZE).to(torch.float8_e4m3fn)
    scale = (torch.rand(2, 3) + 0.5).to(dtype)
    expected = weight.to(dtype)
    for row in range(2):
        for column in range(3):
            place = slice(64 * row, 64 * row + 64), slice(32 * column, 32 * column + 32)
            expected[place] = expected[place] / scale[row, column] if divide else expected[place] * scale[row, column]
    return {"m.weight": weight, "m.weight_scale_inv": scale}, expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divide", [False, True])
def test_blocks_in_both_senses(divide: bool, dtype: torch.dtype, registry: Registry) -> None:
    tensors, expected = blocks(divide, dtype)
    section = {**BLOCK, **({"weight_scale_semantics": "inverse"} if divide else {})}
    quantization = make_quantization(section, registry)
    layer = ReplicatedLinear(80, 100, Site(quantization, "m"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer), expected)
    treatment = quantization.treat(ModuleInfo(("m",)))
    table = VocabParallelEmbedding(100, 80, Site(quantization, "m", dtype=dtype), multiple=1, treatment=treatment)
    qload.load_tensors(table, tensors, quantization, kernels=())
    ids = torch.tensor([99, 0, 63, 64, 64])
    assert torch.equal(table(ids), expected[ids])


def test_powers_of_two_in_one_byte(registry: Registry) -> None:
    tensors, _ = blocks()
    scale = torch.tensor([[127, 128, 120], [130, 127, 126]], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    quantization = make_quantization(BLOCK, registry)
    layer = ReplicatedLinear(80, 100, Site(quantization, "m"))
    qload.load_tensors(layer, {**tensors, "m.weight_scale_inv": scale}, quantization, kernels=())
    wide = tensors["m.weight"].float()
    assert torch.equal(qload.dequantize(layer)[64:, 64:], wide[64:, 64:] / 2)
    assert torch.equal(qload.dequantize(layer)[:64, 32:64], wide[:64, 32:64] * 2)


@pytest.mark.parametrize("scheme", ["dynamic", "static", None])
def test_inputs_are_quantized_as_the_config_says(scheme: str | None, registry: Registry) -> None:
    torch.manual_seed(0)
    weight, scale, inputs = torch.randn(16, 64).to(torch.float8_e4m3fn), torch.tensor(0.5), torch.tensor([0.02])
    section: dict[str, Any] = {"quant_method": "fp8"} | ({"activation_scheme": scheme} if scheme else {})
    quantization = make_quantization(section, registry)
    layer = ReplicatedLinear(64, 16, Site(quantization, "m"))
    stored = {"m.weight": weight, "m.weight_scale": scale, "m.input_scale": inputs}
    if scheme != "static":
        del stored["m.input_scale"]
    qload.load_tensors(layer, stored, quantization, kernels=())
    x = torch.randn(3, 64)
    seen = {"dynamic": fake_quantize_dynamic(x, 8, True), "static": fake_quantize(x, inputs, None, 8, True), None: x}
    dense = weight.float() * 0.5
    assert torch.equal(qload.dequantize(layer), dense)
    assert torch.allclose(layer(x), seen[scheme] @ dense.T, atol=1e-5)
    layer.quantize_activations = False
    assert torch.allclose(layer(x), x @ dense.T, atol=1e-5)


@pytest.mark.parametrize("semantics", [None, "inverse"])
def test_scales_by_tensor_under_the_names_of_those_by_block(semantics: str | None, registry: Registry) -> None:
    """As transformers stores them, and with it Ministral 3 and Devstral 2; GPTQModel's divide."""
    section = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"}
    quantization = make_quantization({**section, "weight_scale_semantics": semantics}, registry)
    weight = torch.randn(SIZE).to(torch.float8_e4m3fn)
    scale, inputs = torch.tensor(0.25), torch.tensor([0.5])
    tensors = {"m.weight": weight, "m.weight_scale_inv": scale, "m.activation_scale": inputs}
    quantization.modules = {"m": {name.removeprefix("m."): name for name in tensors}}
    layer = ReplicatedLinear(80, 100, Site(quantization, "m", dtype=torch.float32))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    dense = weight.float() * (4 if semantics else 0.25)
    assert torch.equal(qload.dequantize(layer), dense)
    x = torch.randn(3, 80)
    assert torch.allclose(layer(x), fake_quantize(x, inputs, None, 8, is_float=True) @ dense.T)


def as_fp8_with_a_cache(names: tuple[str, ...]) -> Callable[[Path], None]:
    """Turn a static fp8 checkpoint into what AutoFP8 and Quark write under this method's name."""
    section = {"quant_method": "fp8", "activation_scheme": "static", "kv_cache_scheme": "static"}

    def change(folder: Path) -> None:
        edit_config(
            folder, lambda config: config.update(quantization_config={**section, "ignored_layers": ["lm_head"]})
        )
        scales = {f"model.layers.{n}.self_attn.{name}": torch.tensor(0.5) for n in range(2) for name in names}
        edit_tensors(folder, lambda tensors: tensors.update(scales))

    return change


@pytest.mark.parametrize("names", [("kv_scale",), ("k_scale", "v_scale")])
def test_scales_of_a_cache_are_loaded_and_checked(names: tuple[str, ...], broken: Callable[[str], Path]) -> None:
    folder = broken("ct-fp8-static")
    ids = torch.tensor([[1, 2, 3]])
    expected = qload.load(folder)(ids).logits
    as_fp8_with_a_cache(names)(folder)
    assert qload.validate(folder).findings == ()
    model = qload.load(folder)
    assert torch.equal(model(ids).logits, expected)
    assert qload.report(model).layers["fp8 kv cache"] == 2
    edit_tensors(folder, lambda tensors: tensors.update({f"model.layers.1.self_attn.{names[-1]}": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=rf"{names[-1]}.*the tensor scale has the wrong shape"):
        qload.load(folder)


def test_half_of_a_caches_scales_is_a_fault(broken: Callable[[str], Path]) -> None:
    folder = broken("ct-fp8-static")
    as_fp8_with_a_cache(("k_scale",))(folder)
    assert {finding.code for finding in qload.validate(folder).findings} == {"QL201"}


def test_a_list_of_names_may_be_null(registry: Registry) -> None:
    section = {**BLOCK, "modules_to_not_convert": None, "ignored_layers": None}
    assert make_quantization(section, registry).treat(ModuleInfo(("m",))).scheme is not None


def test_dynamic_inputs_share_the_blocks_columns(registry: Registry) -> None:
    tensors, expected = blocks()
    quantization = make_quantization({**BLOCK, "weight_block_size": [64, 32]}, registry)
    layer = ReplicatedLinear(80, 100, Site(quantization, "m"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    x = torch.randn(3, 80)
    padded = torch.nn.functional.pad(x, (0, 16))
    seen = fake_quantize_dynamic(padded, 8, True, group=32)[:, :80]
    assert torch.allclose(layer(x), seen @ expected.T, atol=1e-4)


def test_ranks_take_whole_blocks(registry: Registry) -> None:
    quantization = make_quantization(BLOCK, registry)
    for kind, sizes in ((ColumnParallelLinear, (128, 192)), (RowParallelLinear, (192, 128))):
        with pytest.raises(ShardError):
            kind(*sizes, Site(quantization, "m", Group(0, 4)))
        assert kind(*sizes, Site(quantization, "m", Group(0, 3))).local.extents


@pytest.mark.parametrize(
    ("more", "name", "excluded"),
    [
        ({"modules_to_not_convert": ["lm_head"]}, "lm_head", True),
        ({"modules_to_not_convert": ["mlp.gate"]}, "model.layers.0.mlp.gate", True),
        ({"ignored_layers": ["model.layers.0.self_attn.q_proj"]}, "model.layers.0.self_attn.q_proj", True),
        ({"modules_to_not_convert": ["visual"]}, "model.visual.blocks.0.attn.qkv", True),
        ({"modules_to_not_convert": ["model.layers.1"]}, "model.layers.1.mlp.up_proj", True),
        ({"modules_to_not_convert": ["model.layers.1"]}, "model.layers.10.mlp.up_proj", False),
        ({"modules_to_not_convert": ["mlp.gate"]}, "model.layers.0.mlp.gate_proj", False),
        ({"modules_to_not_convert": None}, "model.layers.0.mlp.up_proj", False),
    ],
)
def test_what_is_left_alone(more: dict[str, Any], name: str, excluded: bool, registry: Registry) -> None:
    treatment = make_quantization({**BLOCK, **more}, registry).treat(ModuleInfo((name,)))
    assert (treatment.scheme is None) == excluded


@pytest.mark.parametrize(
    "more",
    [
        {"weight_block_size": [128]},
        {"weight_block_size": [0, 128]},
        {"activation_scheme": "sometimes"},
        {"activation_scheme": "static"},
        {"weight_scale_semantics": "sideways"},
    ],
)
def test_configs_that_make_no_sense(more: dict[str, Any], registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="QL105"):
        make_quantization({**BLOCK, **more}, registry)
