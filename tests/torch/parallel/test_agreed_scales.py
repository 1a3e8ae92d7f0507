"""Quantized inputs of which each rank has a share: their scales, and so the outputs, are those of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import copy_checkpoint, edit_config
from jobs.activations import (
    EXPERTS,
    HIDDEN,
    ROWS,
    compute_experts,
    compute_rows,
    differentiate_rows,
    make_layers,
    round_heads,
)
from jobs.transformers_models import compute_each_in_float64, compute_in_float64
from safetensors.torch import load, save
from samples import DATA, make_quantization, relative_error, samples
from torch import Tensor
from worlds import World

import qload
from qload.errors import ParallelError, ShardError
from qload.geometry import single
from qload.hookspecs import ModuleInfo
from qload.plan import Source
from qload.testing.tensors import make_tensors
from qload.torch import RowParallelLinear, Site
from qload.torch.parallel import Group

Worlds = Callable[[int], World]

IDS = torch.arange(2, 18)[None]

CHECKPOINTS = {
    *("ct-qwen2-tied-w8a8", "hf-bitnet-packed", "torchao-int8dyn-int8w"),
    *("bnb-int8", "ct-fp8-dynamic", "ct-fp8-kvcache", "ct-mixed-fp8-w4", "ct-sparse24-fp8-dynamic"),
    *("ct-w8a8-int8-dynamic", "gptqmodel-qqq", "quark-ptpc-fp8"),
}
"""Those whose inputs have scales by token; the first are in tests/data."""


def compressed(**inputs: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"dynamic": True, **inputs}}
    return {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"g": group}}


def quark(dtype: str, qscheme: str, **inputs: Any) -> dict[str, Any]:
    weight = {"dtype": "int8", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": True}
    given = {"dtype": dtype, "qscheme": qscheme, "is_dynamic": True, "symmetric": True, **inputs}
    return {"quant_method": "quark", "global_quant_config": {"weight": weight, "input_tensors": given}, "export": {}}


def torchao(name: str, **fields: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": name, "_data": fields}}}


TOKENS = compressed(num_bits=8, strategy="token")
BITNET = {"quant_method": "bitnet"}
SECTIONS: dict[str, dict[str, Any]] = {
    "by token": TOKENS,
    "by token, asymmetric": compressed(num_bits=8, strategy="token", symmetric=False),
    "by tensor": compressed(num_bits=8, type="float", strategy="tensor"),
    "by tensor, asymmetric": compressed(num_bits=8, strategy="tensor", symmetric=False),
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "qqq": {"quant_method": "qqq", "group_size": -1},
    "bitlinear": BITNET,
    "autobitlinear": {**BITNET, "linear_class": "autobitlinear"},
    "llm.int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
    "quark by token": quark("int8", "per_channel", ch_axis=0),
    "quark by tensor": quark("fp8_e4m3", "per_tensor"),
    "quark e5m2": quark("fp8_e5m2", "per_channel", ch_axis=0),
    "torchao int8": torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao int8, asymmetric": torchao("Int8DynamicActivationInt8WeightConfig", act_mapping_type="ASYMMETRIC"),
    "torchao intx": torchao("Int8DynamicActivationIntxWeightConfig", weight_dtype="int4"),
    "torchao fp8": torchao("Float8DynamicActivationFloat8WeightConfig"),
    "torchao nvfp4": torchao("NVFP4DynamicActivationNVFP4WeightConfig", use_dynamic_per_tensor_scale=True),
}


def make_stored(section: dict[str, Any], columns: int) -> bytes:
    """The tensors of a layer, as a file: a pickle of some dtypes cannot be read."""
    quantization = make_quantization(section)
    treatment = quantization.treat(ModuleInfo(("layer",), classes=("Linear",)))
    return save(make_tensors(quantization, treatment, single(ROWS, columns), (Source("layer"),)))


def make_inputs(columns: int = 512) -> Tensor:
    """Tokens whose features grow from rank to rank, one with an outlier, and one of zeros."""
    x = torch.randn(5, columns, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 2, columns)
    x[1, 300], x[2] = 30, 0
    return x


@pytest.mark.parametrize("path", [path for path in samples() if path.name in CHECKPOINTS], ids=lambda path: path.name)
def test_logits_of_all_sizes_are_those_of_one_process(path: Path, worlds: Worlds) -> None:
    """In float64: in float32 the order in which sums are taken puts some value on another side of a rounding's edge.

    On four ranks that happens in float64, too: the greatest of a token's values lies on such an edge.
    """
    expected = compute_in_float64(Group(), path, IDS)
    for found in worlds(2).run(compute_in_float64, path, IDS):
        assert relative_error(found.logits, expected.logits) < 1e-5
        assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS.keys())
def test_rows_are_what_one_process_computes(section: dict[str, Any], worlds: Worlds) -> None:
    tensors, x = make_stored(section, 512), make_inputs()
    expected, _ = compute_rows(Group(), section, tensors, x)
    for found, own in worlds(2).run(compute_rows, section, tensors, x):
        assert relative_error(found, expected) < 1e-6
        assert relative_error(own, expected) > 1e-4


@pytest.mark.parametrize("by_experts", [False, True])
def test_experts_agree_where_each_is_divided_and_are_alone_where_they_are_whole(
    by_experts: bool, worlds: Worlds
) -> None:
    """Those that no token chose are computed nowhere; all that one did are on the first rank, where they are whole."""
    single_rank = make_layers(Group(), TOKENS, by_experts)
    tensors: dict[str, Tensor] = {}
    for layer in (single_rank.gate_up_proj, single_rank.down_proj):
        tensors |= make_tensors(make_quantization(TOKENS), layer.treatment, layer.geometry, layer.sources)
    generator = torch.Generator().manual_seed(1)
    hidden, weights = torch.randn(6, HIDDEN, generator=generator), torch.rand(6, 2, generator=generator)
    ids = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [1, 0], [0, 1]])
    assert int(ids.max()) < EXPERTS // 2
    expected, _ = compute_experts(Group(), TOKENS, save(tensors), (hidden, ids, weights), by_experts)
    for found, asked in worlds(2).run(compute_experts, TOKENS, save(tensors), (hidden, ids, weights), by_experts):
        assert relative_error(found, expected) < 1e-6
        assert asked == (0 if by_experts else 2)


@pytest.mark.parametrize("strategy", ["token", "tensor"])
def test_caches_of_divided_heads_round_as_those_of_all(strategy: str, worlds: Worlds) -> None:
    args = {"num_bits": 8, "type": "float", "strategy": strategy, "dynamic": True}
    section = {**TOKENS, "kv_cache_scheme": args}
    keys, values = torch.randn(2, 2, 4, 6, 8, generator=torch.Generator().manual_seed(2))
    keys[:, 2:] *= 3
    expected = round_heads(Group(), section, keys, values)
    assert not torch.equal(expected[0], keys)
    for rank, found in enumerate(worlds(2).run(round_heads, section, keys, values)):
        for each, whole in zip(found, expected, strict=True):
            assert torch.equal(each, whole.chunk(2, 1)[rank])


def test_models_whose_caches_have_scales_of_their_own(tmp_path: Path, worlds: Worlds) -> None:
    """Each rank attends with its own heads, and rounds them with a scale of all.

    With four bits one prompt in four has a value on an edge of rounding, by some processors' order of summation: by
    0.003 at most. Where each rank has a scale of its own, all prompts are 0.012 apart at least.
    """
    path = copy_checkpoint(DATA / "ct-qwen2-tied-w8a8", tmp_path / "model")
    scheme = {"num_bits": 4, "type": "float", "strategy": "tensor", "dynamic": True}
    edit_config(path, lambda config: config["quantization_config"].update(kv_cache_scheme=scheme))
    prompts = torch.randint(2, 60, (6, 1, 16), generator=torch.Generator().manual_seed(0)).unbind()
    expected = compute_each_in_float64(Group(), path, prompts)
    plain = compute_each_in_float64(Group(), DATA / "ct-qwen2-tied-w8a8", prompts)
    assert min(map(relative_error, expected, plain)) > 1e-2
    for found in worlds(2).run(compute_each_in_float64, path, prompts):
        errors = list(map(relative_error, found, expected))
        assert min(errors) < 1e-5
        assert max(errors) < 6e-3


@pytest.mark.parametrize(
    "section",
    [
        compressed(num_bits=8, strategy="group", group_size=48),
        quark("fp8_e4m3", "per_group", group_size=48),
    ],
    ids=["compressed-tensors", "quark"],
)
def test_no_rank_has_some_of_a_group_of_inputs(section: dict[str, Any]) -> None:
    quantization = make_quantization(section)
    assert RowParallelLinear(192, ROWS, Site(quantization, "layer", Group(1, 4))).in_features == 48
    with pytest.raises(ShardError, match="split a unit of the axis in"):
        RowParallelLinear(192, ROWS, Site(quantization, "layer", Group(0, 8)))


def test_gradients_go_where_the_greatest_is(worlds: Worlds) -> None:
    tensors, x = make_stored(TOKENS, 64), make_inputs(512)[:, :64]
    expected = differentiate_rows(Group(), TOKENS, tensors, x)
    assert expected.abs().max() > 0
    for found in worlds(2).run(differentiate_rows, TOKENS, tensors, x):
        assert relative_error(found, expected) < 1e-5


def test_a_scale_is_never_found_by_one_rank_of_several_alone() -> None:
    """One without a way to ask the others says so, and computes on whatever has no scale of its own."""
    quantization = make_quantization(TOKENS)
    layer = RowParallelLinear(64, ROWS, Site(quantization, "layer", Group(1, 2)))
    qload.load_tensors(layer, load(make_stored(TOKENS, 64)), quantization)
    with pytest.raises(ParallelError, match="rank 1 of 2: the ranks have no process group"):
        layer.compute(torch.ones(3, 32))
    layer.quantize_activations = False
    assert layer.compute(torch.ones(3, 32)).shape == (3, ROWS)


def test_one_rank_compiles_whole() -> None:
    quantization = make_quantization(TOKENS)
    layer = RowParallelLinear(64, ROWS, Site(quantization, "layer"))
    qload.load_tensors(layer, load(make_stored(TOKENS, 64)), quantization)
    x = make_inputs(512)[:, :64]
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))
