"""compressed-tensors: its config held against the package's models, its tensors against the package's compressors."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs as TheirArgs
from compressed_tensors.quantization import QuantizationConfig as TheirConfig
from compressed_tensors.quantization import QuantizationScheme as TheirScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.utils.match import is_match, match_targets
from pydantic import ValidationError
from qload_compressed_tensors.config import (
    CompressedTensorsConfig,
    QuantizationArgs,
    QuantizationGroup,
    Strategy,
)
from samples import make_quantization, read_config, samples
from torch import Tensor, nn

import qload
from qload import Registry
from qload.errors import CheckpointError
from qload.geometry import Kind, Part, single
from qload.hookspecs import ModuleInfo
from qload.torch import ReplicatedLinear, Site, VocabParallelEmbedding
from qload.torch.activations import fake_quantize, fake_quantize_dynamic
from qload.torch.layers.linear import Linear
from qload.torch.ordering import settle_group_index

CONFIGS = [
    config["quantization_config"]
    for config in map(read_config, (path for path in samples() if path.name.startswith(("ct-", "autoround-llmc"))))
    if "config_groups" in config["quantization_config"]
]


@pytest.mark.parametrize(("ours", "theirs"), [(QuantizationArgs, TheirArgs), (QuantizationGroup, TheirScheme)])
def test_the_fields_are_the_packages(ours: Any, theirs: Any) -> None:
    assert set(ours.model_fields) == set(theirs.model_fields)


def test_the_configs_fields_are_among_ours() -> None:
    ours = set(CompressedTensorsConfig.model_fields)
    assert set(TheirConfig.model_fields) <= ours


def test_defaults_are_the_packages() -> None:
    ours, theirs = QuantizationArgs(), TheirArgs()
    for name in ("num_bits", "type", "symmetric", "group_size", "block_structure", "dynamic", "actorder"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.effective_strategy == theirs.strategy


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["format"])
def test_real_configs_read_as_the_package_reads_them(config: dict[str, Any]) -> None:
    if "group" in {args["actorder"] for g in config["config_groups"].values() if (args := g["weights"])}:
        return  # the package has stopped reading these
    ours, theirs = CompressedTensorsConfig.model_validate(config), TheirConfig.model_validate(config)
    assert ours.ignore == theirs.ignore
    for name, group in theirs.config_groups.items():
        mine = ours.config_groups[name]
        assert (mine.targets, mine.format) == (group.targets, group.format)
        for part in ("weights", "input_activations"):
            assert summarise(getattr(mine, part)) == summarise(getattr(group, part))


def summarise(args: Any) -> tuple[Any, ...] | None:
    if args is None:
        return None
    strategy = args.effective_strategy if isinstance(args, QuantizationArgs) else args.strategy
    block = list(args.block_structure) if args.block_structure else None
    return (
        args.num_bits,
        args.type,
        args.symmetric,
        str(Strategy(strategy)),
        args.group_size,
        block,
        args.dynamic,
    )


@pytest.mark.parametrize(
    "args",
    [
        {"group_size": 128},
        {"group_size": -1},
        {"strategy": "GROUP", "group_size": 32, "type": "INT"},
        {"strategy": "block", "block_structure": "128x64"},
        {"strategy": "block", "block_structure": [128, 64]},
        {},
    ],
)
def test_what_is_left_out_is_implied_as_in_the_package(args: dict[str, Any]) -> None:
    assert summarise(QuantizationArgs.model_validate(args)) == summarise(TheirArgs.model_validate(args))


@pytest.mark.parametrize(
    "args",
    [
        {"strategy": "group"},
        {"strategy": "group", "group_size": 0},
        {"strategy": "block"},
        {"block_structure": [1, 1], "strategy": "channel"},
        {"type": "complex"},
        {"strategy": "galaxy"},
        {"num_bits": "four"},
        {"unheard_of": 1},
    ],
)
def test_what_the_package_refuses_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TheirArgs.model_validate(args)
    with pytest.raises(ValidationError):
        QuantizationArgs.model_validate(args)


@pytest.mark.parametrize("name", ["lm_head", "model.layers.0.mlp.up_proj", "model.layers.10.mlp.up_proj", "a.gate"])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Embedding])
def test_modules_match_as_in_the_package(name: str, kind: type[nn.Module]) -> None:
    targets = [
        ["Linear"],
        ["re:.*up_proj$", "Linear"],
        ["model.layers.0.mlp.up_proj", "re:.*0.*", "Linear"],
        ["Embedding", "re:.*1\\..*"],
        ["re:model\\.layers\\.1"],
    ]
    ignores = [[], ["lm_head"], ["re:.*gate$"], ["Linear"], ["re:.*Linear", "re:Emb"]]
    module = kind(4, 4)
    classes = tuple(base.__name__ for base in kind.__mro__)
    for chosen, ignored in itertools.product(targets, ignores):
        groups = {str(n): {"targets": [target]} for n, target in enumerate(chosen)}
        config = CompressedTensorsConfig.model_validate({"config_groups": groups, "ignore": ignored})
        assert config.ignores([name], classes) == is_match(name, module, ignored)
        matched = match_targets(name, module, chosen)
        group = config.group_for([name], classes)
        assert (group.targets if group else []) == matched[:1]


WEIGHTS: list[dict[str, Any]] = [
    *({"num_bits": b, "symmetric": s, **extent} for b in (2, 3, 4, 5, 7, 8) for s in (True, False) for extent in (
        {"strategy": "group", "group_size": 32}, {"strategy": "channel"}, {"strategy": "tensor"})),
    {"num_bits": 8, "type": "float", "strategy": "channel"},
    {"num_bits": 8, "type": "float", "strategy": "tensor"},
    {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 64},
    {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 48]},
    {"num_bits": 8, "type": "int", "strategy": "block", "block_structure": [128, 128]},
]  # fmt: skip


def cases() -> Iterator[Any]:
    for args in WEIGHTS:
        floating, blocks = args.get("type") == "float", args["strategy"] == "block"
        formats = ["float-quantized"] if floating else ["naive-quantized"] if blocks else ["pack-quantized"]
        if not floating and not blocks and args["num_bits"] == 8:
            formats.append("int-quantized")
        for form in formats:
            yield pytest.param(form, args, id=f"{form}-{args['num_bits']}-{args['strategy']}-{args.get('symmetric')}")


def compress(form: str, args: dict[str, Any], weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the package stores for a weight, and what it makes of that again."""
    parsed = TheirArgs.model_validate(args)
    scheme = TheirScheme(targets=["Linear"], weights=parsed)
    scale, zero = find_scales(weight, parsed)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"]


def find_scales(weight: Tensor, args: TheirArgs) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    if args.strategy == "tensor":
        low, high = weight.min().reshape(1), weight.max().reshape(1)
    elif args.strategy == "channel":
        low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    elif args.strategy == "group":
        grouped = weight.unflatten(1, (-1, args.group_size))
        low, high = grouped.amin(-1), grouped.amax(-1)
    else:
        tall, wide = args.block_structure
        padded = nn.functional.pad(weight, (0, -columns % wide, 0, -rows % tall))
        blocks = padded.unflatten(1, (-1, wide)).unflatten(0, (-1, tall))
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    scale, zero = calculate_qparams(low, high, args)
    return scale, zero


def quantization_of(form: str, args: dict[str, Any], registry: Registry) -> qload.Quantization:
    groups = {"group_0": {"targets": ["Linear", "Embedding"], "weights": args}}
    section = {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}
    return make_quantization(section, registry)


@pytest.mark.parametrize(("form", "args"), list(cases()))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [(64, 128), (72, 96), (200, 320)])
def test_what_the_package_stores_is_what_we_read(
    form: str, args: dict[str, Any], dtype: torch.dtype, size: tuple[int, int], registry: Registry
) -> None:
    if args["strategy"] == "group" and size[1] % args["group_size"]:
        return  # the package stores no short groups
    torch.manual_seed(0)
    stored, expected = compress(form, args, torch.randn(size, dtype=dtype))
    quantization = quantization_of(form, args, registry)
    layer = ReplicatedLinear(size[1], size[0], Site(quantization, "m"))
    qload.load_tensors(layer, {f"m.{name}": tensor for name, tensor in stored.items()}, quantization, kernels=())
    found = qload.dequantize(layer)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    table = VocabParallelEmbedding(*size, Site(quantization, "m", dtype=dtype), multiple=1)
    qload.load_tensors(table, {f"m.{name}": tensor for name, tensor in stored.items()}, quantization, kernels=())
    ids = torch.tensor([0, size[0] - 1, 33, 7, 8, 8])
    assert torch.equal(table(ids), expected[ids])


SMALL_FLOATS: dict[str, dict[str, Any]] = {
    "nvfp4-pack-quantized": {
        "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
        "scale_dtype": "torch.float8_e4m3fn"},
    "mxfp4-pack-quantized": {
        "num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    "mxfp8-quantized": {
        "num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
}  # fmt: skip


def compress_floats(form: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """As `compress`, in bfloat16, with a scale of scales where the format has one."""
    args = TheirArgs.model_validate(SMALL_FLOATS[form])
    scheme = TheirScheme(targets=["Linear"], weights=args)
    grouped = weight.unflatten(1, (-1, args.group_size))
    state = {"weight": weight}
    if form.startswith("nvfp4"):
        state["weight_global_scale"] = generate_gparam(weight.amin(), weight.amax()).reshape(1)
    low, high = grouped.amin(-1), grouped.amax(-1)
    state["weight_scale"], _ = calculate_qparams(low, high, args, state.get("weight_global_scale"))
    compressor = BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(state, scheme)
    return stored, compressor.decompress(stored, scheme)["weight"]


@pytest.mark.parametrize("form", SMALL_FLOATS)
@pytest.mark.parametrize("spread", [0.0, 6.0])
def test_small_floats_are_the_packages(form: str, spread: float, registry: Registry) -> None:
    """Rounded to bfloat16 at the end, as the package computes; with groups of very different sizes, and zeros."""
    torch.manual_seed(0)
    size = (64, 96)
    weight = torch.randn(size) * torch.exp(spread * (torch.randn(size[0], 1) - 2))
    weight[3] = 0
    stored, expected = compress_floats(form, weight.to(torch.bfloat16))
    quantization = quantization_of(form, SMALL_FLOATS[form], registry)
    tensors = {f"m.{name}": tensor for name, tensor in stored.items()}
    layer = ReplicatedLinear(size[1], size[0], Site(quantization, "m"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    assert torch.equal(qload.dequantize(layer, dtype=torch.bfloat16), expected)
    table = VocabParallelEmbedding(*size, Site(quantization, "m", dtype=torch.bfloat16), multiple=1)
    qload.load_tensors(table, tensors, quantization, kernels=())
    ids = torch.tensor([0, size[0] - 1, 3, 7, 8, 8])
    assert torch.equal(table(ids), expected[ids])


@pytest.mark.parametrize("args", [WEIGHTS[4], WEIGHTS[2], {"num_bits": 8, "symmetric": False, "strategy": "tensor"}])
def test_parts_with_short_last_words_are_fused(args: dict[str, Any], registry: Registry) -> None:
    """Parts of 20 and 12 rows: packed zero-points end in the middle of a word, and scales are by tensor."""
    torch.manual_seed(0)
    weights = [torch.randn(rows, 64) for rows in (20, 12)]
    compressed = [compress("pack-quantized", args, weight) for weight in weights]
    tensors = {
        f"{n}.{key}": value for n, (stored, _) in zip("ab", compressed, strict=True) for key, value in stored.items()
    }
    quantization = quantization_of("pack-quantized", args, registry)
    layer = Linear(64, [Part("a", 20), Part("b", 12)], Site(quantization, "ab"))
    qload.load_tensors(layer, tensors, quantization, kernels=())
    expected = torch.cat([weight for _, weight in compressed])
    assert torch.equal(qload.dequantize(layer), expected)
    x = torch.randn(3, 64)
    assert torch.allclose(layer(x), x @ expected.T, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "marlin-42"}, "format 'marlin-42' is not one of"),
        ({"format": "marlin-24"}, "int4 tensor cannot be stored as marlin-24"),
        (
            {"transform_config": {"config_groups": {"R3": {"apply": [{"targets": ["a"], "location": "k_cache"}]}}}},
            r"activations are transformed \(R3\)",
        ),
        ({"weights": {"num_bits": 4, "type": "float", "strategy": "channel"}}, "fp4 channel cannot be stored"),
        ({"weights": {"num_bits": 8, "strategy": "token", "dynamic": True}}, "not supported"),
        ({"weights": {"num_bits": 16}}, "cannot be stored"),
        ({"format": "nvfp4-pack-quantized"}, "int4 tensor cannot be stored as nvfp4-pack-quantized"),
        (
            {"format": "mxfp4-pack-quantized", "weights": {**SMALL_FLOATS["mxfp8-quantized"]}},
            "cannot be stored as mxfp4",
        ),
        (
            {"input_activations": {**SMALL_FLOATS["nvfp4-pack-quantized"]}},
            "static inputs by tensor_group are not supported",
        ),
        ({"input_activations": {"num_bits": 3, "type": "float"}}, "inputs of fp3 tensor are not supported"),
        ({"input_activations": {"num_bits": 8, "strategy": "channel"}}, "not supported"),
        ({"output_activations": {"num_bits": 8, "strategy": "channel"}}, "static outputs by channel are not"),
        ({"weights": None, "output_activations": {"num_bits": 8}}, "activations are quantized and weights are not"),
        ({"weights": None, "input_activations": {"num_bits": 8}}, "activations are quantized and weights are not"),
        (
            {
                "format": "naive-quantized",
                "weights": {"num_bits": 16, "strategy": "block", "block_structure": [64, 64], "symmetric": False},
            },
            "int16 block 64x64 asymmetric cannot be stored as naive-quantized",
        ),
        (
            {
                "format": "float-quantized",
                "weights": {"num_bits": 8, "type": "float"},
                "input_activations": {"num_bits": 8, "dynamic": True, "strategy": "token"},
            },
            "no kernel multiplies floats with integers",
        ),
    ],
)
def test_what_is_not_supported_is_refused_with_a_reason(
    change: dict[str, Any], reason: str, registry: Registry
) -> None:
    parts = ("weights", "input_activations", "output_activations")
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": 4},
        **{k: v for k, v in change.items() if k in parts},
    }
    section = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}}
    section |= {k: v for k, v in change.items() if k not in parts}
    with pytest.raises(ValueError, match=reason):
        make_quantization(section, registry).treat(ModuleInfo(("a",)))


def test_transforms_of_weights_are_in_the_weights_already(registry: Registry) -> None:
    places = [{"targets": ["a"], "location": where} for where in ("weight_input", "weight_output")]
    transforms = {"config_groups": {"R1": {"type": "hadamard", "apply": places}}}
    section = {"quant_method": "compressed-tensors", "config_groups": {}, "transform_config": transforms}
    assert make_quantization(section, registry).treat(ModuleInfo(("a",))).scheme is None


@pytest.mark.parametrize(
    ("written", "more", "expected"),
    [
        (None, {}, "pack-quantized"),
        ("mixed-precision", {}, "pack-quantized"),
        (None, {"input_activations": {"num_bits": 8}}, "int-quantized"),
        ("mixed-precision", {"weights": {"type": "float"}}, "float-quantized"),
    ],
)
def test_a_format_that_is_not_written_is_the_packages(
    written: str | None, more: dict[str, Any], expected: str, registry: Registry
) -> None:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8}, **more}
    section = {"quant_method": "compressed-tensors", "format": written, "config_groups": {"g": group}}
    scheme: Any = make_quantization(section, registry).treat(ModuleInfo(("a",))).scheme
    assert scheme.format == expected


def test_an_order_of_groups_needs_groups(registry: Registry) -> None:
    args = {"num_bits": 8, "type": "float", "strategy": "channel", "actorder": True}
    section = {"quant_method": "compressed-tensors", "config_groups": {"0": {"targets": ["Linear"], "weights": args}}}
    with pytest.raises(CheckpointError, match="actorder needs groups, and the strategy is channel"):
        make_quantization(section, registry)


@pytest.mark.parametrize(
    ("actorder", "ordered"), [("group", True), ("dynamic", True), ("static", False), ("weight", False)]
)
def test_only_an_order_of_groups_needs_an_index(actorder: str, ordered: bool, registry: Registry) -> None:
    args = {"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": actorder}
    layer = ReplicatedLinear(64, 32, Site(quantization_of("pack-quantized", args, registry), "a"))
    assert ("weight_g_idx" in layer.declared) == ordered
    if ordered:
        assert layer.declared["weight_g_idx"].bounds == (-1, 2)


@pytest.mark.parametrize("index", [[-1] * 64, [0] * 32 + [1] * 32, [1] * 32 + [0] * 32])
def test_an_index_below_zero_or_in_order_is_dropped(index: list[int], registry: Registry) -> None:
    args = {"num_bits": 4, "strategy": "group", "group_size": 32, "actorder": "group"}
    layer = ReplicatedLinear(64, 32, Site(quantization_of("pack-quantized", args, registry), "a"))
    layer.allocate("cpu")
    held = layer.get_parameter("weight_g_idx")
    layer.set_tensor("weight_g_idx", torch.tensor(index, dtype=held.dtype).view(held.shape))
    settle_group_index(layer, "weight_g_idx", 32, ordered=True)
    assert (layer.weight_g_idx is not None) == (index[0] == 1)


CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor"}


@pytest.mark.parametrize(
    ("change", "label", "names"),
    [
        ({}, "static fp8 tensor", ["k_scale", "v_scale"]),
        ({"dynamic": True}, "dynamic fp8 tensor", []),
        ({"dynamic": True, "strategy": "token"}, "dynamic fp8 token", []),
        ({"strategy": "attn_head"}, "static fp8 attn_head", ["k_scale", "v_scale"]),
        ({"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "dynamic": "local"},
         "dynamic fp4 tensor_group 16", ["k_global_scale", "v_global_scale"]),
        ({"type": "int", "symmetric": False}, "static int8 tensor asymmetric",
         ["k_scale", "k_zero_point", "v_scale", "v_zero_point"]),
    ],
)  # fmt: skip
def test_a_cache_has_the_scales_that_are_not_found_anew(
    change: dict[str, Any], label: str, names: list[str], registry: Registry
) -> None:
    attention = ModuleInfo(("model.layers.0.self_attn",), Kind.KV_CACHE, ())
    section = {"quant_method": "compressed-tensors", "kv_cache_scheme": {**CACHE, **change}}
    quantization = make_quantization(section, registry)
    treatment = quantization.treat(attention)
    assert str(treatment.scheme) == f"kv cache {label}"
    specs = [spec for spec in quantization.declare(treatment, single(2, 1, kind=Kind.KV_CACHE)) if spec.required]
    assert [spec.name for spec in specs] == names
    assert quantization.treat(ModuleInfo(("a",))).scheme is None


@pytest.mark.parametrize(
    "change",
    [
        {"strategy": "channel"},
        {"strategy": "group", "group_size": 32},
        {"strategy": "tensor_group", "group_size": 16},
        {"strategy": "block", "block_structure": [8, 8]},
    ],
)
def test_a_cache_that_the_package_cannot_have_is_refused(change: dict[str, Any], registry: Registry) -> None:
    section = {"quant_method": "compressed-tensors", "kv_cache_scheme": {**CACHE, **change}}
    attention = ModuleInfo(("model.layers.0.self_attn",), Kind.KV_CACHE, ())
    with pytest.raises(ValueError, match="static keys and values by"):
        make_quantization(section, registry).treat(attention)


@pytest.mark.parametrize("target", ["LlamaAttention", "re:.*self_attn$"])
def test_queries_that_are_quantized_are_refused(target: str, registry: Registry) -> None:
    groups = {"g": {"targets": [target], "input_activations": {**CACHE, "dynamic": True}}}
    section = {"quant_method": "compressed-tensors", "config_groups": groups}
    attention = ModuleInfo(("model.layers.0.self_attn",), Kind.KV_CACHE, ("LlamaAttention", "Module"))
    with pytest.raises(ValueError, match="the queries of an attention are quantized"):
        make_quantization(section, registry).treat(attention)
    assert make_quantization({**section, "ignore": [target]}, registry).treat(attention).scheme is None


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ({"dynamic": True, "strategy": "token"}, {}),
        ({"dynamic": True, "strategy": "token", "symmetric": False}, {"symmetric": False}),
        ({"dynamic": True, "strategy": "tensor"}, {"by_tensor": True}),
        ({"dynamic": True, "strategy": "group", "group_size": 32}, {"group": 32}),
        ({"strategy": "tensor"}, None),
        ({"strategy": "tensor", "symmetric": False}, None),
    ],
)
def test_inputs_are_quantized_as_the_config_says(
    inputs: dict[str, Any], options: dict[str, Any] | None, registry: Registry
) -> None:
    torch.manual_seed(0)
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}, "input_activations": inputs}
    section = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"g": group}}
    quantization = make_quantization(section, registry)
    stored = {"m.weight": torch.randint(-9, 9, (32, 64), dtype=torch.int8), "m.weight_scale": torch.rand(32, 1)}
    x, zero = torch.randn(3, 64) + 1, None
    if options is None:
        stored["m.input_scale"] = torch.tensor([0.02])
        if not inputs.get("symmetric", True):
            zero = stored["m.input_zero_point"] = torch.tensor([-20], dtype=torch.int8)
        rounded = fake_quantize(x, torch.tensor(0.02), zero, 8, False)
    else:
        rounded = fake_quantize_dynamic(x, 8, False, **options)
    layer = ReplicatedLinear(64, 32, Site(quantization, "m"))
    qload.load_tensors(layer, stored, quantization, kernels=())
    weight = stored["m.weight"] * stored["m.weight_scale"]
    assert torch.allclose(layer(x), rounded @ weight.T, atol=1e-4)
    assert not torch.allclose(layer(x), x @ weight.T, atol=1e-4)
    for name in stored.keys() & {"m.input_scale", "m.input_zero_point"}:
        with pytest.raises(CheckpointError, match=f"QL201 {name}"):
            qload.load_tensors(
                layer, {key: each for key, each in stored.items() if key != name}, quantization, kernels=()
            )
