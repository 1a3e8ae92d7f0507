"""The contract kit: every scheme of every installed method passes it, and broken ones do not."""

import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from samples import make_quantization
from torch import Tensor

from qload import CapabilityError, Registry
from qload.declare import ParameterSpec, channel_scale, index, packed, tensor_scale
from qload.geometry import Kind
from qload.hookspecs import Capabilities, Claim, MethodInfo, ModuleInfo
from qload.layout import in_, out, part
from qload.registry import UNQUANTIZED, Origin
from qload.testing import ContractError, check_method
from qload.torch import ParallelLMHead, Site, VocabParallelEmbedding


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"g": {"targets": ["Linear", "Embedding"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


SECTIONS: list[dict[str, Any]] = [
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
    {"quant_method": "fp8"},
    *({"quant_method": "qqq", "group_size": group} for group in (-1, 128)),
    *(
        {"quant_method": "fp8", "weight_block_size": [64, 128], **more}
        for more in ({}, {"weight_scale_semantics": "inverse"})
    ),
]


@pytest.mark.parametrize("section", SECTIONS, ids=str)
def test_every_scheme_keeps_the_contract(section: dict[str, Any], registry: Registry) -> None:
    check_method(make_quantization(section, registry))


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
    check_method(make_quantization({"quant_method": "rows"}, Registry(origins)))


def test_a_small_method_keeps_it(registry: Registry) -> None:
    check(plugin(), registry)


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
            {"qload_method_info": lambda: MethodInfo("rows", None, Capabilities(embedding=True, kv_cache=True))},
            "it declares weights for an attention: values",
        ),
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
