"""What headers alone say of a model: what its modules are, how large, and which are no layers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from samples import make_quantization
from strangers import make_rows, registry_with

from qload import Registry
from qload.checkpoint import Checkpoint, TensorEntry
from qload.geometry import Kind
from qload.hookspecs import Capabilities, MethodInfo, ModuleInfo
from qload.outline import outline
from qload.plan import find_faults
from qload.quantization import unquantized
from qload.resolution import resolve


class Config(BaseModel):
    """Any config at all."""


def headers(config: dict[str, Any], **tensors: tuple[str, tuple[int, ...]]) -> Checkpoint:
    entries = {name: TensorEntry(name, dtype, shape, "f", 0, 1) for name, (dtype, shape) in tensors.items()}
    return Checkpoint(Path("none"), config, entries)


@pytest.mark.parametrize(
    ("config", "size"), [({"hidden_size": 100}, 100), ({"text_config": {"hidden_size": 100}}, 100), ({}, 104)]
)
def test_a_size_that_packing_leaves_open_is_the_configs(config: dict[str, Any], size: int, registry: Registry) -> None:
    """13 words of 8 values hold 97 to 104; without a word of the config they are taken to be full."""
    stored = {"a.qweight": ("I32", (13, 64)), "a.qzeros": ("I32", (1, 8)), "a.scales": ("F16", (1, 64))}
    checkpoint = headers({**config, "num_layers": 7}, **stored)
    quantization = make_quantization({"quant_method": "gptq", "bits": 4, "group_size": -1}, registry)
    (target,) = outline(checkpoint, quantization).targets
    assert (target.geometry.in_features, target.geometry.out_features) == (size, 64)


@pytest.mark.parametrize("bias", [True, False])
def test_a_flat_weight_says_how_many_elements_there_are(bias: bool, registry: Registry) -> None:
    """And no more: rows are the bias's, or else one; how many there are in a block is a matter of both numbers."""
    state = "a.weight.quant_state.bitsandbytes__nf4"
    stored = {"a.weight": ("BF16", (1536, 1)), "a.weight.absmax": ("F32", (48,)), "a.weight.quant_map": ("F32", (16,))}
    stored |= {state: ("U8", (90,)), **({"a.bias": ("F32", (24,))} if bias else {})}
    checkpoint = headers({"quantization_config": {"load_in_4bit": True}}, **stored)
    quantization = resolve(checkpoint, registry)
    drawn = outline(checkpoint, quantization)
    (target,) = drawn.targets
    assert (target.geometry.out_features, target.geometry.in_features) == ((24, 256) if bias else (1, 6144))
    assert str(target.treatment.scheme) == "nf4 block 128 as BF16"
    assert find_faults(checkpoint, quantization, drawn.targets, drawn.plain) == ()


def test_a_mask_of_bytes_is_no_quantized_layer(registry: Registry) -> None:
    """GPT-2's checkpoints store one for each layer; a matrix of bytes is what quantizing leaves."""
    plain = unquantized(registry)
    mask = headers({}, **{"h.0.attn.bias": ("U8", (1, 1, 8, 8)), "h.0.attn.ids": ("I32", (8,))})
    drawn = outline(mask, plain)
    assert find_faults(mask, plain, drawn.targets, drawn.plain) == drawn.findings == ()
    matrix = headers({}, **{"h.0.attn.c_proj.q": ("U8", (8, 8))})
    drawn = outline(matrix, plain)
    assert [each.code for each in find_faults(matrix, plain, drawn.targets, drawn.plain)] == ["QL101"]


def test_a_lone_weight_in_a_quantized_dtype_is_found(registry: Registry) -> None:
    """Its scales are missing, without which a method that goes by what is stored takes the module for a plain one."""
    quantization = make_quantization({"quant_method": "fp8", "weight_block_size": [128, 128]}, registry)
    stored = {"a.weight": ("F8_E4M3", (8, 8)), "b.weight": ("BF16", (8, 8)), "b.mask": ("U8", (8,))}
    checkpoint = headers({}, **stored)
    drawn = outline(checkpoint, quantization)
    found = find_faults(checkpoint, quantization, drawn.targets, drawn.plain)
    assert [(each.code, each.where) for each in found] == [("QL308", "a.weight")]


def test_a_module_that_a_method_refuses_is_refused_and_nothing_more() -> None:
    """Beside one that it quantizes, and one that it leaves alone though it is stored quantized."""

    def choose(module: ModuleInfo) -> str | None:
        if module.name == "h.0.fc":
            raise ValueError("no such bits")
        return "by row" if module.name == "h.1.fc" else None

    registry = registry_with(make_rows(qload_scheme_for=choose))
    quantization = make_quantization({"quant_method": "rows"}, registry)
    quantization = replace(quantization, config=Config())
    stored = {
        f"h.{n}.fc.{leaf}": what
        for n in range(3)
        for leaf, what in (("values", ("I8", (8, 8))), ("row_scale", ("F32", (8,))))
    }
    checkpoint = headers({}, **stored)
    drawn = outline(checkpoint, quantization)
    assert [(each.code, each.where) for each in drawn.findings] == [("QL104", "h.0.fc")]
    found = find_faults(checkpoint, quantization, drawn.targets, drawn.plain)
    assert [(each.code, each.where) for each in found] == [("QL202", "h.2.fc")]


def test_a_method_is_asked_about_modules_as_they_seem_to_be() -> None:
    asked: dict[str, ModuleInfo] = {}

    def ask(module: ModuleInfo) -> None:
        asked[module.name] = module

    info = MethodInfo("rows", None, Capabilities(embedding=True, kv_cache="loaded"))
    registry = registry_with(make_rows(qload_scheme_for=ask, qload_method_info=lambda: info))
    quantization = make_quantization({"quant_method": "rows"}, registry)
    outline(
        headers(
            {},
            **{
                "model.embed_tokens.weight": ("F16", (8, 8)),
                "model.layers.0.self_attn.k_scale": ("F16", (1,)),
                "model.layers.0.mlp.up_proj.weight": ("F16", (8, 8)),
                "model.norm.weight": ("F16", (8,)),
                "lm_head.weight": ("F16", (8, 8)),
            },
        ),
        quantization,
    )
    assert {name: (module.kind, module.classes, set(module.stored)) for name, module in asked.items()} == {
        "model.embed_tokens": (Kind.EMBEDDING, ("Embedding",), {"weight"}),
        "model.layers.0.self_attn": (Kind.KV_CACHE, (), {"k_scale"}),
        "model.layers.0.mlp.up_proj": (Kind.LINEAR, ("Linear",), {"weight"}),
        "model.norm": (Kind.LINEAR, (), {"weight"}),
        "lm_head": (Kind.LM_HEAD, ("Linear",), {"weight"}),
    }


def test_a_plain_matrix_is_a_layer_and_what_does_not_fit_beside_it_makes_it_none(registry: Registry) -> None:
    stored = {"a.up_proj.weight": ("BF16", (8, 4)), "a.up_proj.bias": ("BF16", (8,)), "a.norm.weight": ("BF16", (8,))}
    stored |= {"b.up_proj.weight": ("BF16", (8, 4)), "b.up_proj.bias": ("BF16", (4,)), "b.ids": ("I64", (8, 4))}
    drawn = outline(headers({}, **stored), unquantized(registry))
    (target,) = drawn.targets
    geometry = target.geometry
    assert (target.name, geometry.out_features, geometry.in_features, geometry.bias) == ("a.up_proj", 8, 4, True)
    assert target.treatment.scheme is None
    left = {tensor.stored_as for tensor in drawn.plain}
    assert left == {"a.norm.weight", "b.up_proj.weight", "b.up_proj.bias", "b.ids"}
