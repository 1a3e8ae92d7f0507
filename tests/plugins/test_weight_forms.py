"""The forms of weights that kernels get: of each of ggml's types, and where a scheme has none, or has a lesser one."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from qload_gguf.runtime.decoding import decode
from qload_gguf.runtime.weights import find_weight
from qload_gguf.types import BY_NAME
from samples import make_quantization
from torch import Tensor

import qload
from qload.geometry import column, single
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.testing.tensors import make_tensors
from qload.torch import Layer, Site
from qload.torch.kernels import Case, FloatWeight, IntegerWeight, Weight, choose_kernel
from qload.torch.kernels.roundings import StaticRounding
from qload.torch.kernels.table import BUILT_IN

TABLES = sorted(name for name in BY_NAME if name.startswith("IQ"))
PAIRED = ("Q4_0", "Q4_1", "Q4_K", "MXFP4", "NVFP4")


def make_blocks(name: str, rows: int, count: int) -> Tensor:
    """Rows of blocks of random bytes, whose float16s are small numbers, and whose other scales are numbers at all."""
    block = BY_NAME[name]
    blocks = torch.randint(0, 256, (rows, count, block.nbytes), dtype=torch.uint8)
    for place in block.scales:
        blocks[..., place : place + 2] = torch.randn(rows, count, 1).half().view(torch.uint8)
    if name == "MXFP4":
        blocks[..., 0] = torch.randint(0, 255, (rows, count), dtype=torch.uint8)
    if name == "NVFP4":
        blocks[..., :4] = torch.randint(0, 127, (rows, count, 4), dtype=torch.uint8)
    return blocks.flatten(1)


def is_same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first.view(torch.int32), second.contiguous().view(torch.int32))


@pytest.mark.parametrize("name", sorted(BY_NAME.keys() - set(TABLES)))
@pytest.mark.parametrize("lacking", [0, 2, 18])
def test_blocks_that_are_no_codes_of_a_table_have_a_form(name: str, lacking: int) -> None:
    torch.manual_seed(0)
    rows = make_blocks(name, 5, 3)
    columns = 3 * BY_NAME[name].elements - lacking
    weight = find_weight(rows, name, columns)
    assert not isinstance(weight, str)
    assert is_same(weight.dequantize(), decode(rows, name)[:, :columns])
    assert (weight.values.shape[1] == columns // 2) == (name in PAIRED)


@pytest.mark.parametrize("name", TABLES)
def test_codes_of_a_table_have_none(name: str) -> None:
    assert (
        find_weight(make_blocks(name, 2, 1), name, BY_NAME[name].elements) == f"values of {name} are those of a table"
    )


@pytest.mark.parametrize(("name", "code"), [("MXFP4", 255), ("NVFP4", 0x7F), ("NVFP4", 0xFF)])
def test_blocks_whose_scales_are_not_those_of_the_element_have_none(name: str, code: int) -> None:
    torch.manual_seed(0)
    rows = make_blocks(name, 2, 1)
    rows[1, 0] = code
    answer = find_weight(rows, name, BY_NAME[name].elements)
    assert isinstance(answer, str)
    assert "scales beyond" in answer


def make_layer(section: dict[str, Any], columns: int = 128, changed: Mapping[str, Tensor] | None = None) -> Layer:
    """A layer of random tensors; some are changed."""
    quantization = make_quantization(section)
    geometry = single(64, columns)
    treatment = quantization.treat(ModuleInfo(("layer",), classes=("Linear", "Module")))
    layer = Layer(geometry, (Source("layer"),), Site(quantization, "layer"), treatment, column)
    tensors = make_tensors(quantization, treatment, geometry, layer.sources)
    tensors |= {f"layer.{name}": tensor for name, tensor in (changed or {}).items()}
    qload.load_tensors(layer, tensors, quantization, kernels=())
    return layer


def ask(layer: Layer) -> Weight | str:
    (piece,) = layer.pieces()
    answer: Weight | str = layer.hooks.runtime["qload_weight"](piece)
    return answer


def quark(**specs: Any) -> dict[str, Any]:
    return {"quant_method": "quark", "global_quant_config": specs}


def spec(dtype: str, scheme: str = "per_tensor", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "qscheme": scheme, "is_dynamic": False, "symmetric": True, **more}


def torchao(name: str, **data: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": name, "_data": data}}}


FP6 = spec("fp6_e2m3", "per_group", group_size=32, scale_format="e8m0", ch_axis=-1)
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "online": ({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}, "ternary"),
    "normed": (
        {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
        | {"use_rms_norm": True, "rms_norm_eps": 1e-6},
        "normed",
    ),
    "outputs": (quark(weight=spec("int8"), output_tensors=spec("int8")), "outputs are rounded"),
    "six bits": (quark(weight=FP6), "6 bits"),
    "twice": ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "rounded to fp8"),
}


def test_blocks_that_end_inside_of_rows_have_no_form() -> None:
    layer = make_layer({"quant_method": "bitsandbytes", "load_in_4bit": True}, columns=96)
    assert ask(layer) == "blocks of 64 go on from one row to the next"


@pytest.mark.parametrize("name", REASONS)
def test_what_has_no_form_says_why(name: str) -> None:
    section, reason = REASONS[name]
    answer = ask(make_layer(section))
    assert isinstance(answer, str)
    assert reason in answer


def test_weights_that_are_rounded_twice_have_a_form_where_inputs_are_not_rounded() -> None:
    layer = make_layer(REASONS["twice"][0])
    layer.quantize_activations = False
    assert isinstance(ask(layer), IntegerWeight)


@pytest.mark.parametrize("low", [-8, -9])
def test_values_beyond_their_bits_are_of_eight(low: int) -> None:
    values = torch.full((64, 128), low, dtype=torch.int8)
    weight = ask(make_layer(torchao("IntxWeightOnlyConfig", weight_dtype="int4"), changed={"_weight_qdata": values}))
    assert isinstance(weight, IntegerWeight)
    assert weight.bits == (4 if low == -8 else 8)


@pytest.mark.parametrize("zero", [0, 3])
def test_zero_points_that_are_all_zero_are_none(zero: int) -> None:
    section = quark(weight=spec("int8"), input_tensors=spec("int8"))
    zeros = {f"{name}_zero_point": torch.tensor(zero, dtype=torch.int8) for name in ("weight", "input")}
    weight = ask(make_layer(section, changed=zeros))
    assert isinstance(weight, IntegerWeight)
    assert isinstance(weight.zero, Tensor) == (zero != 0)
    assert weight.inputs.rounding == StaticRounding(8, is_float=False, has_zero=zero != 0)


def test_a_kernel_is_not_given_what_it_does_not_know() -> None:
    values, scale = torch.zeros(64, 64, dtype=torch.uint8), torch.ones(64, 1)
    weight = IntegerWeight(values, 4, 128, scale, 8, 128, whole=torch.tensor(0.5))
    choice = choose_kernel(BUILT_IN, weight, Case(torch.device("cpu"), torch.float32))
    assert choice.kernel is None or not choice.kernel.is_fast
    assert "knows no whole" in choice.reason


def test_small_scales_are_computed_in_the_dtype_that_is_said() -> None:
    pairs, scale = torch.arange(16, dtype=torch.uint8).view(1, 16), torch.tensor([[130]], dtype=torch.uint8)
    powers = scale.view(torch.float8_e8m0fnu)
    narrow = FloatWeight(pairs, "e2m1", 32, powers, (1, 32))
    wide = FloatWeight(pairs, "e2m1", 32, powers, (1, 32), dtype=torch.float32)
    assert (narrow.dequantize().dtype, wide.dequantize().dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(narrow.dequantize().float(), wide.dequantize())
