"""The contract kit: every scheme of every installed method passes it, and broken ones do not."""

import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from samples import make_quantization
from torch import Tensor

from qload import CapabilityError, CheckpointError, Quantization, Registry
from qload.calls import PluginWarning
from qload.catalogue import Tier, error
from qload.declare import ParameterSpec, channel_scale, index, packed, tensor_scale
from qload.findings import Finding, report
from qload.geometry import Kind, single
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo
from qload.layout import in_, out, part
from qload.plan import Source
from qload.registry import UNQUANTIZED, Origin
from qload.testing import ContractError, check_method
from qload.testing.tensors import make_tensors
from qload.torch import Layer, ParallelLMHead, Site, VocabParallelEmbedding
from qload.torch.kernels import Inputs, IntegerWeight
from qload.torch.kernels.roundings import DynamicRounding
from qload.torch.loading.modules import load_tensors

GEOMETRY = single(64, 128)


def compressed(form: str, inputs: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    groups = {"g": {"targets": ["Linear", "Embedding"], "weights": weights, "input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def torchao(name: str, **fields: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": name, "_data": fields}}}


def granularity(name: str, **fields: int) -> dict[str, Any]:
    return {"_type": name, "_data": fields}


def quark(config: dict[str, Any], **export: Any) -> dict[str, Any]:
    return {"quant_method": "quark", "global_quant_config": config, "export": export}


def spec(dtype: str, qscheme: str, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "qscheme": qscheme, "is_dynamic": False, "symmetric": False, **more}


QUARK_FP8 = spec("fp8_e4m3", "per_tensor")
QUARK: list[dict[str, Any]] = [
    *(
        quark({"weight": spec(dtype, "per_group", group_size=16)}, pack_method=order)
        for dtype, order in (("int2", "order"), ("uint2", "order"), ("int3", "order"), ("int4", "reorder"))
    ),
    quark({"weight": spec("uint4", "per_group", group_size=16)}, pack_method="order"),
    quark({"weight": spec("uint8", "per_group", group_size=16, zero_point_type="float32")}),
    *(
        quark({"weight": spec(dtype, "per_channel", ch_axis=axis)})
        for dtype, axis in (("uint4", 0), ("int4", 1), ("uint8", 1), ("fp8_e5m2", 0))
    ),
    *(quark({"weight": spec(dtype, "per_tensor")}) for dtype in ("int4", "int8")),
    *(
        quark({"weight": spec(dtype, "per_group", group_size=32, scale_format=form)})
        for dtype, form in (("fp4", "e8m0"), ("fp4", "e5m3"), ("fp6_e2m3", "e8m0"), ("fp8_e4m3", "float32"))
    ),
    quark({"weight": {"dtype": "mx", "mx_element_dtype": "fp6_e3m2", "group_size": 32}}),
    quark({"weight": spec("fp8_e4m3", "per_block", block_size=[64, 128])}),
    quark({"weight": [spec("fp4", "per_group", group_size=16), {**QUARK_FP8, "is_scale_quant": True}]}),
    quark({"weight": [QUARK_FP8, spec("int4", "per_channel", ch_axis=0)]}),
]
BITNET: list[dict[str, Any]] = [
    {"quant_method": "bitnet", **mode}
    for mode in (
        {},
        {"linear_class": "autobitlinear"},
        {"linear_class": "autobitlinear", "quantization_mode": "online"},
    )
]
SECTIONS: list[dict[str, Any]] = [
    *QUARK,
    *BITNET,
    *(
        {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered}
        for bits in (2, 3, 4, 8)
        for group in (-1, 32)
        for ordered in (False, True)
    ),
    *({"quant_method": "awq", "group_size": group} for group in (-1, 64)),
    *(
        compressed("pack-quantized", num_bits=bits, symmetric=symmetric, **extent)
        for bits in (3, 4, 8)
        for symmetric in (True, False)
        for extent in (
            {"strategy": "channel"},
            {"strategy": "tensor"},
            {"strategy": "group", "group_size": 32},
            {"strategy": "group", "group_size": 32, "actorder": "group"},
        )
    ),
    compressed("int-quantized", num_bits=8, strategy="channel"),
    compressed("int-quantized", num_bits=8, strategy="tensor"),
    *(
        compressed("int-quantized", {"num_bits": 8, "dynamic": True, **inputs}, num_bits=8, strategy="channel")
        for inputs in (
            {"strategy": "token", "symmetric": False},
            {"strategy": "tensor", "type": "float"},
            {"strategy": "group", "group_size": 96},
        )
    ),
    *(
        quark({"weight": QUARK_FP8, "input_tensors": spec(dtype, extent, **{**more, "is_dynamic": True})})
        for dtype, extent, more in (
            ("fp8_e4m3", "per_channel", {"ch_axis": 0}),
            ("fp8_e5m2", "per_tensor", {}),
            ("fp8_e4m3", "per_group", {"group_size": 48}),
        )
    ),
    {"quant_method": "fp8", "activation_scheme": "dynamic"},
    compressed("float-quantized", type="float", strategy="block", block_structure=[64, 128]),
    compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
    compressed("mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32),
    compressed("mxfp6-pack-quantized", num_bits=6, type="float", strategy="group", group_size=32),
    compressed("mxfp8-quantized", num_bits=8, type="float", strategy="group", group_size=32),
    *(
        compressed("marlin-24", num_bits=bits, **extent)
        for bits in (4, 8)
        for extent in ({"strategy": "channel"}, {"strategy": "group", "group_size": 128})
    ),
    *(
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": form, "targets": ["Linear", "Embedding"]}}
        for form in ("sparse-24-bitmask", "sparse-bitmask")
    ),
    *(
        {**compressed(kind, num_bits=8, type=type_, strategy="channel"), "sparsity_config": sparsity}
        for kind, type_ in (("int-quantized", "int"), ("float-quantized", "float"))
        for sparsity in (
            {"format": "sparse-24-bitmask", "targets": ["Linear"]},
            {"format": "sparse-bitmask", "targets": ["Linear"]},
        )
    ),
    *({"quant_method": "awq", "group_size": 64, "version": version} for version in ("gemv", "gemv_fast")),
    *(
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind, **more}
        for kind in ("nf4", "fp4")
        for more in (
            {},
            {"bnb_4bit_use_double_quant": True},
            {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "bfloat16"},
            {"bnb_4bit_quant_storage": "float32"},
        )
    ),
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"quant_method": "fp8"},
    *({"quant_method": "qqq", "group_size": group} for group in (-1, 128)),
    *(
        {"quant_method": "modelopt", "quant_algo": algorithm}
        for algorithm in (
            "FP8",
            "FP8_PER_CHANNEL_PER_TOKEN",
            "FP8_PB_WO",
            "W8A16",
            "W8A8_SQ_PER_CHANNEL",
            "W4A16_AWQ",
            "W4A8_AWQ",
            "NVFP4",
            "W4A8_NVFP4_FP8",
            "W4A8_MXFP4_FP8",
            "MXFP4",
            "MXFP8",
        )
    ),
    {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 32, "kv_cache_quant_algo": "FP8"},
    *(
        {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": {"nbits": bits, "group_size": group, "axis": axis}},
        }
        for bits, group in ((1, 64), (3, 64), (3, None), (4, 64), (4, 1024), (8, 64), (8, 1024))
        for axis in (0, 1)
    ),
    *(
        {"quant_method": "quanto", "weights": weights, "activations": activations}
        for weights in ("int8", "int2")
        for activations in (None, "int8")
    ),
    *(
        {"quant_method": "gguf", "bits": bits, "format": form}
        for bits, form in ((1, "q_0"), (1, "q_0_g128"), (4, "q_0"), (4, "q_k_m"), (5, "q_k_s"), (6, "q_k"), (8, "q_0"))
    ),
    {"quant_method": "mxfp4"},
    *(
        {"quant_method": "fp8", "weight_block_size": [64, 128], **more}
        for more in ({}, {"weight_scale_semantics": "inverse"})
    ),
    *(
        torchao("Int8WeightOnlyConfig", granularity=extent)
        for extent in (
            granularity("PerRow", dim=-1),
            granularity("PerRow", dim=0),
            granularity("PerTensor"),
            granularity("PerGroup", group_size=32),
        )
    ),
    torchao("Int8DynamicActivationInt8WeightConfig", act_mapping_type="ASYMMETRIC"),
    torchao("Int8StaticActivationInt8WeightConfig", granularity=granularity("PerTensor")),
    torchao("IntxWeightOnlyConfig", weight_dtype="int3", granularity=granularity("PerGroup", group_size=32)),
    torchao("Int8DynamicActivationIntxWeightConfig", weight_dtype="int4"),
    torchao("Int4WeightOnlyConfig", group_size=64),
    torchao("Float8DynamicActivationInt4WeightConfig", int4_packing_format="plain"),
    torchao("Float8WeightOnlyConfig"),
    torchao("Float8DynamicActivationFloat8WeightConfig"),
    torchao("Float8WeightOnlyConfig", granularity={"_type": "PerBlock", "_data": {"block_size": [64, 32]}}),
    torchao("MXDynamicActivationMXWeightConfig"),
    torchao("MXDynamicActivationMXWeightConfig", weight_dtype="fp6_e2m3", activation_dtype="fp6_e2m3"),
    torchao("MXDynamicActivationMXWeightConfig", weight_dtype="float4_e2m1fn_x2"),
    torchao("NVFP4WeightOnlyConfig"),
    torchao("NVFP4DynamicActivationNVFP4WeightConfig", step="convert"),
]


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_every_scheme_keeps_the_contract(section: dict[str, Any], registry: Registry) -> None:
    check_method(make_quantization(section, registry))


def find_codes(quantization: Quantization) -> dict[str, int]:
    """The scales of a linear layer that are stored as codes, and of each the code that is no number."""
    specs = quantization.declare(quantization.treat(ModuleInfo(("layer",))), GEOMETRY)
    return {spec.name: spec.bounds[1] for spec in specs if spec.kind.is_scale and spec.bounds is not None}


def test_codes_that_are_no_numbers_are_found_in_every_method_that_has_them(registry: Registry) -> None:
    """As scales are that are not finite, by the declaration alone; a scale that was not written is one of them."""
    seen = set()
    for section in SECTIONS:
        quantization = make_quantization(section, registry)
        treatment, source = quantization.treat(ModuleInfo(("layer",))), Source("layer")
        for name, code in find_codes(quantization).items():
            layer = Layer(GEOMETRY, (source,), Site(quantization, "layer"), treatment)
            layer.allocate("cpu")
            assert set(layer.get_parameter(name).flatten().tolist()) == {code}
            tensors = make_tensors(quantization, treatment, GEOMETRY, (source,))
            load_tensors(layer, tensors, quantization)
            stored = f"layer.{layer.declared[name].stored_as}"
            tensors[stored].view(-1)[-1] = code
            with pytest.raises(CheckpointError) as caught:
                load_tensors(layer, tensors, quantization)
            (finding,) = caught.value.findings
            assert isinstance(finding, Finding)
            assert (finding.code, finding.where, finding.file) == ("QL501", stored, "memory")
            seen.add(quantization.method.name)
    assert len(seen) > 3


def plugin(**changes: Any) -> types.SimpleNamespace:
    """A method of int8 rows, in one object, that keeps the contract unless it is changed."""

    def embedding(layer: Any, ids: Tensor) -> Tensor:
        values: Tensor = layer.values[ids] * layer.row_scale[ids, None]
        return values

    hooks: dict[str, Any] = {
        "qload_method_info": lambda: MethodInfo("rows", None, Capabilities(embedding="qload_embedding" in hooks)),
        "qload_scheme_for": lambda: "rows",
        "qload_create_weights": lambda: (
            packed("values", out(), in_(), dtypes=("I8",)),
            channel_scale("row_scale", out(), dtypes=("F32",)),
        ),
        "qload_dequantize": lambda layer: layer.values * layer.row_scale[:, None],
        "qload_embedding": embedding,
    }
    hooks |= changes
    hooks = {name: hook for name, hook in hooks.items() if hook is not None}
    return types.SimpleNamespace(**hooks)


def check(made: types.SimpleNamespace, registry: Registry) -> None:
    origins = [*registry.origins(UNQUANTIZED), Origin("rows", "rows", "dist", "1", lambda: made)]
    with warnings.catch_warnings():
        # A method is asked for a claim on its own checkpoint, too, and passed over where that fails.
        warnings.simplefilter("ignore", PluginWarning)
        quantization = make_quantization({"quant_method": "rows"}, Registry(origins))
    check_method(quantization)


def test_a_small_method_keeps_it(registry: Registry) -> None:
    check(plugin(), registry)


def give_rows(zero: int = 0, **inputs: Any) -> Callable[[Any], IntegerWeight]:
    """What the small method gives kernels, right unless it is told otherwise."""

    def weight(layer: Any) -> IntegerWeight:
        columns, scale = layer.in_features, layer.row_scale[:, None]
        return IntegerWeight(layer.values, 8, columns, scale, zero, columns, Inputs(**inputs))

    return weight


@pytest.mark.parametrize("weight", [give_rows(), lambda layer: "its rows are no groups"])
def test_so_does_one_that_gives_kernels_its_weight_or_says_why_not(weight: Any, registry: Registry) -> None:
    check(plugin(qload_weight=weight), registry)


@pytest.mark.parametrize(
    ("weight", "fault"),
    [
        (give_rows(zero=1), "the weight that kernels are given is not the dequantized one"),
        (give_rows(rounding=DynamicRounding(4, is_float=False)), "what is done to a kernel's inputs is not what"),
        (lambda layer: layer.values, "qload_weight returns Tensor, not a weight or a reason"),
        (lambda layer: "", "gives no weight, and no reason"),
    ],
)
def test_one_that_gives_kernels_something_else_does_not(weight: Any, fault: str, registry: Registry) -> None:
    with pytest.raises(ContractError, match=fault):
        check(plugin(qload_weight=weight), registry)


RULE = error("ROW001", Tier.HEADERS, "odd", failure="It fails.", cure="Mend it.")


def find_nothing() -> list[Finding]:
    return []


def test_a_method_with_rules_of_its_own_keeps_it(registry: Registry) -> None:
    check(plugin(qload_rules=lambda: [RULE], qload_check=lambda tensors: []), registry)


def round_inputs(layer: Any, x: Tensor, size: Tensor) -> Tensor:
    if layer.quantize_activations:
        x = (x / size * 127).round() * size / 127
    y: Tensor = x @ (layer.values * layer.row_scale[:, None]).T
    return y


def round_alone(layer: Any, x: Tensor) -> Tensor:
    """With the greatest value of those that this rank has."""
    return round_inputs(layer, x, x.abs().amax(-1, keepdim=True))


def round_together(layer: Any, x: Tensor) -> Tensor:
    return round_inputs(layer, x, layer.agree(x.abs().amax(-1, keepdim=True)))


def round_at_odds(layer: Any, x: Tensor) -> Tensor:
    """Ranks whose values are small find no need to ask."""
    size = x.abs().amax(-1, keepdim=True)
    return round_inputs(layer, x, layer.agree(size) if size.max() > 7 else size)


def test_a_method_that_agrees_on_scales_of_inputs_keeps_it(registry: Registry) -> None:
    check(plugin(qload_apply=lambda layer, x, bias: round_together(layer, x)), registry)


def count_up() -> Callable[[], str]:
    calls = iter(range(10_000))
    return lambda: f"scheme {next(calls)}"


def count_specs() -> Callable[[], Sequence[ParameterSpec]]:
    calls = iter(range(10_000))

    def create() -> Sequence[ParameterSpec]:
        names = ("row_scale", "scale_of_rows")
        scale = channel_scale("row_scale", out(), dtypes=("F32",), stored_as=names[next(calls) % 2])
        return (packed("values", out(), in_(), dtypes=("I8",)), scale)

    return create


def grow(layer: Any) -> Tensor:
    """A weight that is right for one size alone."""
    weight: Tensor = layer.values * layer.row_scale[:, None]
    return weight if layer.out_features == 256 else weight[:1]


def local_scheme() -> object:
    return lambda: None


class Changing:
    """A value that no pickle keeps."""


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"qload_dequantize": lambda layer: (layer.values * layer.row_scale[:, None]).T}, "qload_dequantize returns"),
        ({"qload_dequantize": grow}, "192 x 384: dequantize gives.*192 x 384: embedding: IndexError"),
        ({"qload_dequantize": lambda layer: layer.values / torch.zeros(1)}, "not finite"),
        ({"qload_embedding": lambda layer, ids: layer.values[ids] * 1.0}, "rows that are looked up"),
        ({"qload_apply": lambda layer, x, bias: x @ layer.values.T.float()}, "computing differs"),
        ({"qload_apply": lambda layer, x, bias: round_alone(layer, x)}, "not rounded as one rank rounds them"),
        ({"qload_apply": lambda layer, x, bias: round_at_odds(layer, x)}, "that others do not ask for"),
        ({"qload_scheme_for": count_up()}, "differs from call to call"),
        (
            {"qload_dequantize": lambda layer: layer.values * layer.row_scale[0]},
            "shards of column are not the whole",
        ),
        (
            {"qload_dequantize": lambda layer: layer.values * layer.row_scale[:, None] * layer.in_features},
            "shards of row are not the whole",
        ),
        (
            {
                "qload_create_weights": lambda: (
                    packed("values", out(), in_(), dtypes=("I8",)),
                    tensor_scale("values"),
                )
            },
            "names a tensor twice",
        ),
        ({"qload_create_weights": count_specs()}, "the declaration differs from call to call"),
        (
            {
                "qload_create_weights": lambda: (
                    packed("values", out(), in_(), dtypes=("I8",)),
                    channel_scale("row_scale", out(), dtypes=("F32",)),
                    index("place", part(), in_(), bounds=(0, 1)),
                ),
                "qload_dequantize": lambda layer: layer.values * layer.row_scale[:, None] * layer.out_features,
            },
            "two parts in one tensor are not the tensor",
        ),
        ({"qload_scheme_for": lambda module: module.classes[0]}, "qload_scheme_for raises IndexError"),
        ({"qload_scheme_for": lambda module: {"bits": 8}}, "qload_scheme_for returns dict"),
        ({"qload_scheme_for": lambda: local_scheme()}, "the scheme cannot be pickled"),
        ({"qload_scheme_for": lambda: Changing()}, "the scheme is another one once it has been pickled"),
        ({"qload_create_weights": lambda: ["values"]}, "qload_create_weights returns str among"),
        ({"qload_claim": lambda config: config["model_type"]}, "qload_claim raises KeyError"),
        ({"qload_claim": lambda: Claim(1)}, "claims a checkpoint that says nothing"),
        (
            {"qload_method_info": lambda: MethodInfo("rows", None, Capabilities(embedding=True, kv_cache="loaded"))},
            "it declares weights for an attention: values",
        ),
        ({"qload_rules": lambda: [RULE]}, "it has one alone"),
        ({"qload_rules": lambda: [replace(RULE, needs_load=True)], "qload_check": find_nothing}, "it has one alone"),
        ({"qload_check": find_nothing}, "it has one alone"),
        ({"qload_rules": lambda: ["ROW001"], "qload_check": find_nothing}, "qload_rules returns str among"),
        ({"qload_rules": lambda: [RULE], "qload_check": lambda tensors: tensors["values"]}, "qload_check raises KeyE"),
        ({"qload_rules": lambda: [RULE], "qload_check": lambda: [report("QL201", "")]}, "qload_check finds 'QL201'"),
        ({"qload_rules": lambda: [error("ROW001", Tier.HEADERS, "odd")], "qload_check": find_nothing}, "says not why"),
    ],
)
def test_a_broken_method_does_not(changes: dict[str, Any], fault: str, registry: Registry) -> None:
    with pytest.raises(ContractError, match=fault):
        check(plugin(**changes), registry)


def test_an_embedding_refuses_at_construction_a_method_that_cannot_look_up(registry: Registry) -> None:
    """The class itself, and every subclass; a head does not need the hook."""
    made = plugin(qload_embedding=None, qload_method_info=lambda: MethodInfo("rows", None, Capabilities()))
    origins = [*registry.origins(UNQUANTIZED), Origin("rows", "rows", "dist", "1", lambda: made)]
    site = Site(make_quantization({"quant_method": "rows"}, Registry(origins)), "table")

    class Sub(VocabParallelEmbedding):
        pass

    for layer in (VocabParallelEmbedding, Sub):
        with pytest.raises(CapabilityError, match="has no qload_embedding hook") as caught:
            layer(64, 32, site)
        assert (caught.value.hook, caught.value.method) == ("qload_embedding", "rows")
    assert ParallelLMHead(64, 32, site).treatment.scheme == "rows"


def test_a_module_can_be_described(registry: Registry) -> None:
    section = compressed("pack-quantized", num_bits=4, strategy="channel")
    module = ModuleInfo(("model.embed_tokens",), Kind.EMBEDDING, ("Embedding",))
    check_method(make_quantization(section, registry), module=module)
