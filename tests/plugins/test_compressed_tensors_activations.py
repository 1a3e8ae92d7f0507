"""compressed-tensors: layers with quantized activations, held against the package's own forward."""

from typing import Any

import pytest
import torch
from compressed_tensors.compressors import compress_module, decompress_module
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStatus
from compressed_tensors.quantization.lifecycle import initialize_module_for_quantization
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from samples import make_quantization
from torch import Tensor, nn

import qload
from qload import Registry
from qload.errors import ShardError
from qload.geometry import Part, single
from qload.hookspecs import ModuleInfo
from qload.torch import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear, Site, VocabParallelEmbedding
from qload.torch.layers.linear import Linear
from qload.torch.parallel import Group

IN, OUT = 256, 64


def tile(weight: Tensor, args: QuantizationArgs) -> Tensor:
    """[rows of scales, columns of scales, values of each]."""
    rows, columns = weight.shape
    tall, wide = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "block": tuple(args.block_structure or (1, 1)),
    }.get(args.strategy, (1, args.group_size or columns))
    padded = nn.functional.pad(weight, (0, -columns % wide, 0, -rows % tall))
    tiles: Tensor = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, tall)).transpose(1, 2).flatten(2)
    return tiles


def quantize(module: nn.Linear | nn.Embedding, scheme: QuantizationScheme) -> None:
    """What a calibration leaves behind: scales of weights that fit, and of activations that are given."""
    initialize_module_for_quantization(module, scheme, force_zero_point=False)
    args = scheme.weights
    tiles, known = tile(module.weight.data, args), None
    if args.strategy == "tensor_group":
        known = generate_gparam(module.weight.min(), module.weight.max())
        module.weight_global_scale.data = known
    scale, zero = calculate_qparams(tiles.amin(-1), tiles.amax(-1), args, global_scale=known)
    module.weight_scale.data = scale.reshape(module.weight_scale.shape).to(module.weight_scale.dtype)
    if not args.symmetric:
        module.weight_zero_point.data = zero.reshape(module.weight_zero_point.shape)
    for name in ("input", "output"):
        for kind, value in (("scale", 0.02), ("global_scale", 300.0), ("zero_point", -7)):
            parameter = getattr(module, f"{name}_{kind}", None)
            if parameter is not None:
                parameter.data = torch.full_like(parameter.data.float(), value).to(parameter.dtype)
    module.quantization_status = QuantizationStatus.FROZEN
    compress_module(module)


def section(scheme: QuantizationScheme, form: str | None = None) -> dict[str, Any]:
    """The config as the package writes it."""
    group = scheme.model_dump(mode="json")
    return {"quant_method": "compressed-tensors", "format": form or group["format"], "config_groups": {"g": group}}


def stored(module: nn.Module, name: str = "m") -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in module.state_dict().items()}


def check_layer(scheme: QuantizationScheme, dtype: torch.dtype, registry: Registry, bias: bool = True) -> Linear:
    torch.manual_seed(0)
    module = nn.Linear(IN, OUT, bias=bias, dtype=dtype)
    quantize(module, scheme)
    quantization = make_quantization(section(scheme), registry)
    layer = ReplicatedLinear(IN, OUT, Site(quantization, "m", dtype=dtype), bias=bias)
    qload.load_tensors(layer, stored(module), quantization, kernels=())
    decompress_module(module)
    expected = module.weight.data
    assert torch.equal(layer.dequantize().to(expected.dtype), expected)
    module.weight.data = layer.dequantize().to(dtype)
    x = torch.randn(2, 5, IN, dtype=dtype) * torch.tensor([0.01, 1, 30, 1e-6, 0]).to(dtype)[:, None]
    with torch.no_grad():
        found, wanted = layer(x), module(x)
    # Asymmetric floats of a token of zeros are not a number there.
    defined = wanted.isfinite()
    assert torch.equal(found[defined], wanted[defined])
    assert bool(found.isfinite().all())
    assert bool(defined[:, :4].all())
    if scheme.input_activations is not None or scheme.output_activations is not None:
        layer.quantize_activations = False
        assert torch.equal(layer(x), nn.functional.linear(x, module.weight, module.bias))
        layer.quantize_activations = True
    return layer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", sorted(PRESET_SCHEMES.keys() - {"UNQUANTIZED"}))
def test_every_preset_of_the_package_computes_as_there(name: str, dtype: torch.dtype, registry: Registry) -> None:
    scheme = preset_name_to_scheme(name, ["Linear"])
    layer = check_layer(scheme, dtype, registry)
    inputs = scheme.input_activations
    assert ("inputs" in str(layer.scheme)) == (inputs is not None)


def test_a_group_without_quantizers_leaves_its_targets_alone(registry: Registry) -> None:
    quantization = make_quantization(section(preset_name_to_scheme("UNQUANTIZED", ["Linear"]), "dense"), registry)
    assert quantization.treat(ModuleInfo(("m",))).scheme is None


INPUTS: list[dict[str, Any]] = [
    *({"num_bits": bits, "strategy": "token", "dynamic": True, "symmetric": s} for bits in (4, 6, 8)
      for s in (True, False)),
    *({"num_bits": 8, "strategy": "tensor", "dynamic": True, "symmetric": s} for s in (True, False)),
    *({"num_bits": 8, "strategy": "group", "group_size": 64, "dynamic": True, "symmetric": s} for s in (True, False)),
    *({"num_bits": bits, "strategy": "tensor", "symmetric": s} for bits in (4, 8) for s in (True, False)),
    *({"num_bits": bits, "type": "float", "strategy": "token", "dynamic": True} for bits in (4, 6, 8)),
    *({"num_bits": bits, "type": "float", "strategy": "tensor"} for bits in (4, 6, 8)),
    {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": False},
    {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": False},
    {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "scale_dtype": "torch.float8_e4m3fn"},
    {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "scale_dtype": "torch.float16"},
    {"num_bits": 16, "strategy": "token", "dynamic": True},
    *({"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32, "dynamic": True,
       "scale_dtype": "torch.uint8"} for bits in (4, 6, 8)),
    {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": True,
     "scale_dtype": "torch.float8_e4m3fn"},
    {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "dynamic": "local",
     "scale_dtype": "torch.float8_e4m3fn"},
]  # fmt: skip


def describe(args: dict[str, Any]) -> str:
    return "-".join(str(value) for value in args.values())


@pytest.mark.parametrize("side", ["input_activations", "output_activations"])
@pytest.mark.parametrize("args", INPUTS, ids=describe)
def test_inputs_and_outputs_are_rounded_as_in_the_package(args: dict[str, Any], side: str, registry: Registry) -> None:
    weights = QuantizationArgs(num_bits=8, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, **{side: QuantizationArgs(**args)})
    for dtype in (torch.bfloat16, torch.float32):
        layer = check_layer(scheme.model_copy(deep=True), dtype, registry)
        assert f"{side.partition('_')[0]}s" in str(layer.scheme)


WEIGHTS: list[dict[str, Any]] = [
    *({"num_bits": bits, "strategy": "block", "block_structure": [48, 96], "symmetric": s} for bits in (4, 8)
      for s in (True, False)),
    {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
    {"num_bits": 6, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    *({"num_bits": 8, "type": "float", "symmetric": False, **extent} for extent in (
        {"strategy": "channel"}, {"strategy": "tensor"}, {"strategy": "group", "group_size": 64},
        {"strategy": "block", "block_structure": [48, 96]})),
    *({"num_bits": 8, "symmetric": False, **extent, "form": "int-quantized"} for extent in (
        {"strategy": "channel"}, {"strategy": "tensor"}, {"strategy": "group", "group_size": 64},
        {"strategy": "block", "block_structure": [48, 96]})),
    {"num_bits": 3, "strategy": "channel", "form": "naive-quantized"},
]  # fmt: skip


@pytest.mark.parametrize("args", WEIGHTS, ids=describe)
def test_rarer_weights_are_those_of_the_package(args: dict[str, Any], registry: Registry) -> None:
    args = dict(args)
    form = args.pop("form", None)
    scheme = QuantizationScheme(targets=["Linear", "Embedding"], weights=QuantizationArgs(**args), format=form)
    layer = check_layer(scheme, torch.bfloat16, registry)
    table = nn.Embedding(OUT, IN, dtype=torch.bfloat16)
    quantize(table, scheme)
    quantization = make_quantization(section(scheme), registry)
    ours = VocabParallelEmbedding(OUT, IN, Site(quantization, "m", dtype=torch.bfloat16), multiple=1)
    qload.load_tensors(ours, stored(table), quantization, kernels=())
    decompress_module(table)
    ids = torch.tensor([[0, 50], [OUT - 1, 47]])
    assert torch.equal(ours(ids), table.weight[ids].to(torch.bfloat16))
    assert layer.scheme == ours.scheme


def test_parts_of_a_fused_layer_round_their_outputs_with_their_bias(registry: Registry) -> None:
    torch.manual_seed(0)
    args = QuantizationArgs(num_bits=8, strategy="tensor", symmetric=False)
    weights = QuantizationArgs(num_bits=8, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, output_activations=args)
    modules = {name: nn.Linear(IN, OUT) for name in ("q", "k")}
    for module in modules.values():
        quantize(module, scheme)
    quantization = make_quantization(section(scheme), registry)
    layer = Linear(IN, [Part("q", OUT), Part("k", OUT)], Site(quantization, "qk"), bias=True)
    tensors = {key: value for name, module in modules.items() for key, value in stored(module, name).items()}
    qload.load_tensors(layer, tensors, quantization, kernels=())
    x = torch.randn(3, IN)
    for module in modules.values():
        decompress_module(module)
    with torch.no_grad():
        assert torch.equal(layer(x), torch.cat([module(x) for module in modules.values()], -1))


@pytest.mark.parametrize(("dynamic", "columns"), [(True, False), (False, True)])
def test_outputs_are_rounded_whole(dynamic: bool, columns: bool, registry: Registry) -> None:
    """A rank that has some of the input features has partial sums; one that has some rows, some of a token."""
    args = {"num_bits": 8, "strategy": "tensor", "dynamic": dynamic}
    weights = QuantizationArgs(num_bits=8, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, output_activations=QuantizationArgs(**args))
    quantization = make_quantization(section(scheme, "int-quantized"), registry)
    site = Site(quantization, "m", Group(0, 2))
    with pytest.raises(ShardError, match="split a unit of the axis in"):
        RowParallelLinear(IN, OUT, site)
    if columns:
        assert ColumnParallelLinear(IN, OUT, site).out_features == OUT // 2
    else:
        with pytest.raises(ShardError, match="split a unit of the axis out"):
            ColumnParallelLinear(IN, OUT, site)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({"strategy": "group", "group_size": 32}, "static inputs by group are not supported"),
        ({"strategy": "tensor_group", "group_size": 16}, "static inputs by tensor_group are not supported"),
        ({"strategy": "channel"}, "static inputs by channel are not supported"),
        ({"strategy": "attn_head"}, "static inputs by attn_head are not supported"),
        ({"strategy": "block", "block_structure": [8, 8]}, "static inputs by block are not supported"),
        ({"num_bits": 5, "type": "float", "strategy": "token", "dynamic": True}, "inputs of fp5 token are not"),
        ({"num_bits": 32, "strategy": "token", "dynamic": True}, "inputs of int32 token are not supported"),
        (
            {"num_bits": 4, "type": "float", "strategy": "token", "dynamic": True, "symmetric": False},
            "inputs of fp4 token asymmetric are not supported",
        ),
        (
            {"strategy": "token", "dynamic": True, "symmetric": False, "zp_dtype": "torch.uint8"},
            "with zero-points in uint8 are not supported",
        ),
        (
            {"type": "float", "strategy": "group", "group_size": 64, "dynamic": True, "scale_dtype": "torch.uint8"},
            "with scales in uint8 are not supported",
        ),
    ],
)
def test_inputs_that_cannot_be_computed_are_refused(args: dict[str, Any], reason: str, registry: Registry) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}, "input_activations": args}
    config = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"g": group}}
    with pytest.raises(ValueError, match=reason):
        make_quantization(config, registry).treat(ModuleInfo(("m",)))


def test_outputs_cost_nothing_more(registry: Registry) -> None:
    """What is not quantized is not declared."""
    quantization = make_quantization(section(preset_name_to_scheme("FP8", ["Linear"]), "float-quantized"), registry)
    specs = quantization.declare(quantization.treat(ModuleInfo(("m",))), single(OUT, IN))
    assert [spec.name for spec in specs if spec.name.startswith(("input", "output"))] == [
        "input_scale",
        "input_zero_point",
    ]
