"""Experts: however they are divided over ranks, together they are each token's weighted sum of dense ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from samples import DATA
from strangers import make_rows, registry_with
from torch import Tensor
from torch.nn import functional as F

import qload
from qload import Quantization, Registry
from qload.declare import bias, weight
from qload.geometry import Geometry, Kind, Part, expert_parallel
from qload.layout import in_, out
from qload.plan import Source
from qload.quantization import Treatment, unquantized
from qload.torch import ExpertLinear, Experts, Layer, Site, make_experts
from qload.torch.layers.experts import expert_sources

COUNT, HIDDEN, INNER = 4, 16, 8
NAMES = ("gate_proj", "up_proj", "down_proj")
IDS = torch.tensor([[0, 3], [1, 2], [3, 1], [0, 2], [2, 3]])


def gate(fused: Tensor) -> Tensor:
    first, second = fused.chunk(2, -1)
    return F.silu(first) * second


def by_columns(site: Site) -> Experts:
    return make_experts(COUNT, HIDDEN, INNER, site, gate=gate)


def whole_ones(site: Site) -> Experts:
    """Each rank has some of the experts, whole."""

    def stack(in_features: int, names: tuple[str, ...], rows: int) -> ExpertLinear:
        parts, sources = [Part(name, rows) for name in names], expert_sources(site, COUNT, names)
        return ExpertLinear(COUNT, in_features, parts, site.at(names[0]), sources=sources, sharding=expert_parallel)

    return Experts(stack(HIDDEN, NAMES[:2], INNER), stack(INNER, NAMES[2:], HIDDEN), gate)


@pytest.mark.parametrize("make", [by_columns, whole_ones])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_all_ranks_together_are_the_dense_experts(make: Callable[[Site], Experts], size: int) -> None:
    stored = {
        f"moe.{expert}.{name}.weight": torch.randn(*((HIDDEN, INNER) if name == "down_proj" else (INNER, HIDDEN)))
        for expert in range(COUNT)
        for name in NAMES
    }
    hidden, weights = torch.randn(5, HIDDEN), torch.rand(5, 2)
    expected = torch.zeros(5, HIDDEN)
    for token, chosen in enumerate(IDS.tolist()):
        for place, expert in enumerate(chosen):
            first, second, down = (stored[f"moe.{expert}.{name}.weight"] for name in NAMES)
            dense = down @ (F.silu(first @ hidden[token]) * (second @ hidden[token]))
            expected[token] += weights[token, place] * dense
    quantization = unquantized(Registry.discover())
    found = torch.zeros(5, HIDDEN)
    for rank in range(size):
        experts = make(Site(quantization, "moe", rank, size))
        report = qload.load_tensors(experts, stored, quantization)
        assert report.bytes_dense == sum(tensor.nbytes for tensor in stored.values()) // size
        found += experts(hidden, IDS, weights)
    assert torch.allclose(found, expected, atol=1e-4)


def test_experts_of_fused_parts_with_scales_of_their_own_are_cut_into_both() -> None:
    site = Site(qload.read_quantization(DATA / "ct-fp8-static"), "model.layers.0.mlp.experts")
    stack = make_experts(4, 256, 128, site, gate=gate).gate_up_proj
    for spec in stack.declared.values():
        tensor = getattr(stack, spec.name)
        stack.set_tensor(spec.name, torch.arange(tensor.numel()).reshape(tensor.shape).to(tensor.dtype))
    pieces = stack.pieces(2)
    assert [(piece.weight_quantized.shape, piece.weight_scale.item()) for piece in pieces] == [
        ((128, 256), 4),
        ((128, 256), 5),
    ]


def rows(**hooks: Any) -> Quantization:
    return Quantization(method := registry_with(make_rows(**hooks)).method("rows"), method)


def test_a_method_may_compute_all_experts_at_once() -> None:
    def apply_experts(layer: Experts, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        assert layer.down_proj.local.experts == COUNT
        return x * expert_weights.sum(-1, keepdim=True) + expert_ids.sum(-1, keepdim=True)

    experts = by_columns(Site(rows(qload_apply_experts=apply_experts), "moe"))
    hidden, weights = torch.randn(5, HIDDEN), torch.rand(5, 2)
    expected = hidden * weights.sum(-1, keepdim=True) + IDS.sum(-1, keepdim=True)
    assert torch.equal(experts(hidden, IDS, weights), expected)


def test_each_expert_has_its_own_bias() -> None:
    dense = rows(
        qload_create_weights=lambda: (weight("weight", out(), in_()), bias()),
        qload_dequantize=lambda layer: layer.weight,
    )
    geometry = Geometry(2, (Part("", 3),), experts=2, kind=Kind.EXPERTS, bias=True)
    layer = Layer(geometry, (Source("a"),), Site(dense, "a"), Treatment(dense.method, "dense"))
    layer.set_tensor("weight", torch.zeros(2, 3, 2))
    layer.set_tensor("bias", torch.arange(6.0).reshape(2, 3))
    assert layer.compute(torch.ones(1, 2), 1).tolist() == [[3.0, 4.0, 5.0]]
