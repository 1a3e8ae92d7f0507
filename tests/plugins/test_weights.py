"""What methods give kernels: the weight bit by bit, of every layer, expert and share, and what is done to inputs."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from samples import is_sound, make_quantization, read_reference, relative_error, samples, supported
from torch import Tensor, nn
from transformers import PreTrainedModel

import qload
from qload import Registry
from qload.checkpoint import Folder, open_folder
from qload.geometry import Geometry, Kind, Sharding, column, row, single
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.resolution import resolve
from qload.sharding import fitting_sizes
from qload.testing.tensors import make_tensors
from qload.testing.weights import check_weight
from qload.torch import Layer, Site
from qload.torch.kernels import Table, Weight
from qload.torch.kernels.table import BUILT_IN
from qload.torch.parallel import Group

SOUND = [path for path in samples() if is_sound(path)]
STORED = [path for path in SOUND if not any(path.glob("*.gguf"))]
TOLERANCE = 1e-2
"""Of logits in bfloat16: kernels round scales and offsets to it."""


@cache
def load(path: Path) -> PreTrainedModel:
    return qload.load(path, kernels=())


def list_layers(model: nn.Module) -> list[Layer]:
    """The layers that are quantized, and have weights."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    return [each for each in layers if each.treatment.scheme is not None and each.geometry.kind is not Kind.KV_CACHE]


def list_faults(layer: Layer) -> Iterator[str]:
    numbers = [None] if layer.local.experts is None else range(layer.local.experts)
    for number in numbers:
        for piece in layer.pieces(number):
            yield from (f"{layer.name}: {fault}" for fault in check_weight(layer, piece))


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_what_kernels_are_given_is_what_the_method_computes_with(path: Path) -> None:
    layers = list_layers(load(path))
    assert [fault for layer in layers if not layer.apart for fault in list_faults(layer)] == []


@pytest.mark.parametrize("sharding", [column, row])
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_so_is_what_is_given_of_a_rank_s_share(path: Path, sharding: Sharding) -> None:
    quantization = resolve(open_folder(Folder(path)), Registry.discover())
    stored = read_tensors(path)
    unlike = {(each.scheme, shape_of(each.geometry)): each for each in list_layers(load(path)) if not each.apart}
    for layer in unlike.values():
        if 2 in fitting_sizes(layer.geometry, sharding, tuple(layer.declared.values())):
            for rank in range(2):
                share = load_share(layer, quantization, stored, sharding, rank)
                assert list(list_faults(share)) == []
                check_packed(share)


def check_packed(layer: Layer) -> None:
    """Kernels hold the weight that the layer has."""
    expected = layer.dequantize()
    layer.pack(Table(BUILT_IN))
    assert torch.equal(layer.dequantize(), expected)


def shape_of(geometry: Geometry) -> tuple[int, ...]:
    return geometry.out_features, geometry.in_features, len(geometry.parts), geometry.experts or 0


def read_tensors(path: Path) -> dict[str, Tensor]:
    files = [file for file in sorted(path.glob("*.safetensors")) if file.name != "reference.safetensors"]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def load_share(
    layer: Layer, quantization: qload.Quantization, stored: dict[str, Tensor], sharding: Sharding, rank: int
) -> Layer:
    site = Site(quantization, layer.name, group=Group(rank, 2))
    share = Layer(layer.geometry, layer.sources, site, layer.treatment, sharding)
    tensors = {name: stored[name] for name in share.places if name in stored}
    qload.load_tensors(share, tensors, quantization, kernels=())
    return share


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.name)
def test_packed_layers_have_the_weights_that_were_packed(path: Path) -> None:
    packed, plain = qload.load(path), load(path)
    stored = dict(plain.named_modules())
    for name, layer in packed.named_modules():
        if isinstance(layer, Layer) and layer.packed is not None:
            assert torch.equal(layer.dequantize(), stored[name].dequantize())
            assert torch.equal(layer.dequantize(torch.float32), stored[name].dequantize(torch.float32))


@pytest.mark.parametrize("path", supported(), ids=lambda path: path.name)
def test_packed_models_compute_what_plain_ones_do(path: Path) -> None:
    ids = read_reference(path).input_ids
    with torch.no_grad():
        found, expected = (model(ids).logits for model in (qload.load(path), load(path)))
    if relative_error(found, expected) >= TOLERANCE:
        check_moved(path, ids, found, expected)


def check_moved(path: Path, ids: Tensor, found: Tensor, expected: Tensor) -> None:
    """The dtype alone moves both, as inputs that are quantized then fall to other codes: in float32 they are alike."""
    with torch.no_grad():
        wide = qload.load(path, dtype=torch.float32)(ids).logits
        exact = qload.load(path, dtype=torch.float32, kernels=())(ids).logits
    assert relative_error(wide, exact) < 1e-5
    assert relative_error(found, expected) < 2 * relative_error(expected, exact)


def gptq(**section: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, **section}


def compressed(bits: int = 8, form: str = "int-quantized", **group: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": "channel", **group.pop("weights", {})}
    groups = {"all": {"targets": ["Linear"], "weights": weights, **group}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def activations(**args: Any) -> dict[str, Any]:
    return {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, **args}


def hqq(**weight: Any) -> dict[str, Any]:
    params = {"nbits": 4, "group_size": 64, "axis": 1, **weight}
    return {"quant_method": "hqq", "quant_config": {"weight_quant_params": params}}


ORDERED = {"strategy": "group", "group_size": 32, "actorder": "group"}
FLOATS = {"type": "float", "symmetric": False}
BY_FOUR = {"strategy": "group", "group_size": 32}
STATIC = {"strategy": "tensor", "dynamic": False, "symmetric": False}


def make_layer(section: dict[str, Any], **changed: Tensor) -> Layer:
    """A layer of random tensors; some are changed."""
    quantization = make_quantization(section)
    geometry = single(64, 128)
    treatment = quantization.treat(ModuleInfo(("layer",), classes=("Linear", "Module")))
    layer = Layer(geometry, (Source("layer"),), Site(quantization, "layer"), treatment, column)
    tensors = make_tensors(quantization, treatment, geometry, layer.sources)
    tensors |= {f"layer.{name}": tensor for name, tensor in changed.items()}
    qload.load_tensors(layer, tensors, quantization, kernels=())
    return layer


def ask(layer: Layer) -> Weight | str:
    (piece,) = layer.pieces()
    answer: Weight | str = layer.hooks.runtime["qload_weight"](piece)
    return answer


SECTIONS = {
    **{f"gptq {bits}": gptq(bits=bits) for bits in (2, 3, 4, 8)},
    **{f"gptq {bits} ordered": gptq(bits=bits, desc_act=True) for bits in (2, 3, 4, 8)},
    "gptq by row": gptq(group_size=-1),
    "gptq, the last group short": gptq(group_size=48),
    **{f"awq {version}": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": version}
       for version in ("gemm", "gemv", "gemv_fast")},
    **{f"packed {bits}": compressed(bits, "pack-quantized") for bits in range(1, 9)},
    **{f"packed {bits} asymmetric groups": compressed(bits, "pack-quantized", weights=BY_FOUR | {"symmetric": False})
       for bits in (3, 4, 8)},
    **{f"packed {bits} ordered": compressed(bits, "pack-quantized", weights=ORDERED) for bits in (3, 4, 8)},
    "packed by tensor": compressed(4, "pack-quantized", weights={"strategy": "tensor", "symmetric": False}),
    "int8 by tensor": compressed(weights={"strategy": "tensor"}),
    "int8 by blocks": compressed(weights={"strategy": "block", "block_structure": [16, 32]}),
    "int8 asymmetric": compressed(weights={"symmetric": False}),
    "int8 ordered": compressed(weights=ORDERED),
    "int4 in bytes that hold more": compressed(4),
    "int8, tokens": compressed(input_activations=activations()),
    "int8, tokens, asymmetric": compressed(input_activations=activations(symmetric=False)),
    "int8, groups": compressed(input_activations=activations(strategy="group", group_size=32)),
    "int8, the tensor": compressed(input_activations=activations(strategy="tensor")),
    "int8, stored": compressed(input_activations=activations(**STATIC | {"symmetric": True})),
    "int8, stored, asymmetric": compressed(input_activations=activations(**STATIC)),
    "int8 ordered, tokens": compressed(weights=ORDERED, input_activations=activations()),
    **{f"hqq {bits}": hqq(nbits=bits) for bits in (1, 2, 3, 4, 8)},
    "hqq by row": hqq(group_size=None),
    **{f"quanto {kind}": {"quant_method": "quanto", "weights": kind} for kind in ("int8", "int4", "int2", "float8")},
}  # fmt: skip


@pytest.mark.parametrize("name", SECTIONS)
def test_every_scheme_has_a_form(name: str) -> None:
    layer = make_layer(SECTIONS[name])
    assert not isinstance(ask(layer), str)
    assert list(list_faults(layer)) == []


@pytest.mark.parametrize("name", ["gptq 4", "gptq 4 ordered", "awq gemm"])
def test_words_are_given_as_they_are_stored(name: str) -> None:
    layer = make_layer(SECTIONS[name])
    weight = ask(layer)
    assert isinstance(weight, qload.torch.kernels.IntegerWeight)
    assert weight.is_worded
    assert torch.equal(weight.pair().dequantize(), weight.dequantize())
    stored = layer.own_tensor("qweight")
    assert stored is not None
    assert weight.inputs.order is not None or weight.values.data_ptr() == stored.data_ptr()


@pytest.mark.parametrize("name", ["awq gemv_fast", "packed 4 ordered", "hqq 4"])
def test_four_bits_are_given_in_pairs(name: str) -> None:
    weight = ask(make_layer(SECTIONS[name]))
    assert isinstance(weight, qload.torch.kernels.IntegerWeight)
    assert weight.is_paired


UNEVEN = torch.arange(128, dtype=torch.int32) // 40
REASONS = {
    "groups of unlike sizes": (gptq(desc_act=True), {"g_idx": UNEVEN}, "ordered by activations"),
    "outputs": (compressed(output_activations=activations()), {}, "outputs are quantized"),
    "zero-points of floats": (compressed(form="float-quantized", weights=FLOATS), {}, "zero-points"),
    "order and groups": (
        compressed(weights=ORDERED, input_activations=activations(**BY_FOUR)), {}, "quantized in groups"),
    "marlin-24": (compressed(4, "marlin-24"), {}, "zeros are left out"),
    "columns of scales": (hqq(axis=0), {}, "column by column"),
    "groups across rows": (hqq(group_size=256), {}, "run over the ends of rows"),
    "quanto's outputs": ({"quant_method": "quanto", "weights": "int8", "activations": "int8"}, {}, "outputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_what_has_no_form_says_why(name: str) -> None:
    section, changed, reason = REASONS[name]
    answer = ask(make_layer(section, **changed))
    assert isinstance(answer, str)
    assert reason in answer


def test_a_last_group_that_is_short_may_be_ordered() -> None:
    torch.manual_seed(0)
    index = (torch.arange(128) // 48)[torch.randperm(128)].to(torch.int32)
    layer = make_layer(gptq(group_size=48, desc_act=True), g_idx=index)
    assert not isinstance(ask(layer), str)
    assert list(list_faults(layer)) == []


def test_inputs_are_not_rounded_where_activations_are_left_alone() -> None:
    layer = make_layer(SECTIONS["int8, tokens"])
    layer.quantize_activations = False
    weight = ask(layer)
    assert not isinstance(weight, str)
    assert weight.inputs.rounding is None


def test_a_weight_that_is_not_the_dequantized_one_is_found() -> None:
    layer = make_layer(SECTIONS["gptq 4"])
    hook = layer.hooks.runtime["qload_weight"]
    layer.hooks = replace(layer.hooks, dequantize=lambda piece: hook(piece).dequantize() + 1)
    assert "is not the dequantized one" in next(list_faults(layer))


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.name)
def test_strips_with_biases_answer_as_dequantized_weights_do(path: Path) -> None:
    striped = dict(qload.load(path, kernels=["dequantize by strips"]).named_modules())
    for layer in list_layers(load(path)):
        kernels = striped[layer.name].packed if layer.name in striped else None
        is_one = layer.local.experts is None and layer.geometry.kind is Kind.LINEAR and not layer.apart
        if is_one and "bias" in layer.declared and kernels is not None:
            x = torch.randn(3, layer.local.in_features).to(layer.dtype)
            with torch.inference_mode():
                answer, expected = striped[layer.name].compute(x), layer.compute(x)
            error = (answer.double() - expected.double()).abs()
            assert bool((error <= 2 * torch.finfo(x.dtype).eps * expected.double().abs().max()).all())
