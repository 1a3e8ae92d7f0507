"""Experts: however they are divided over ranks, together they are each token's weighted sum of dense ones."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import stacks
import torch
from samples import DATA
from stacks import COUNT, HIDDEN, NAMES, gate
from strangers import make_rows, registry_with
from torch import Tensor
from torch.nn import functional as F

import qload
from qload import Quantization, Registry
from qload.declare import bias, weight
from qload.geometry import Geometry, Kind, Part, Sharding, column, expert_parallel, row
from qload.layout import in_, out
from qload.plan import Source
from qload.quantization import Treatment, unquantized
from qload.testing import check_method
from qload.testing.tensors import make_tensors
from qload.torch import ExpertLinear, Experts, Layer, Site, apply_one_by_one, make_experts
from qload.torch.layers import SortedExperts
from qload.torch.layers.routing import Routing
from qload.torch.parallel import Group

INNER = 8
by_columns, whole_ones = (partial(make, inner=INNER) for make in (stacks.by_columns, stacks.whole_ones))
IDS = torch.tensor([[0, 3], [1, 2], [3, 1], [0, 2], [2, 3]])


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
        experts = make(Site(quantization, "moe", Group(rank, size)))
        report = qload.load_tensors(experts, stored, quantization)
        assert report.bytes_dense == sum(tensor.nbytes for tensor in stored.values()) // size
        found += experts.compute(hidden, IDS, weights)
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


def apply_at_once(layer: Experts, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
    """Rows of int8 and their scales, of all pairs of a token and one of its experts that this rank has."""
    up, down = layer.gate_up_proj, layer.down_proj
    local = expert_ids - up.shard.experts.start
    tokens, places = torch.where((local >= 0) & (local < (up.local.experts or 0)))
    chosen = local[tokens, places]

    def compute(stack: ExpertLinear, inputs: Tensor) -> Tensor:
        values, scale = (stack.get_parameter(name)[chosen] for name in ("values", "row_scale"))
        return torch.einsum("nri,ni->nr", values.to(x.dtype), inputs) * scale

    made = compute(down, layer.gate(compute(up, x[tokens])))
    return torch.zeros_like(x).index_add(0, tokens, made * expert_weights[tokens, places, None])


@pytest.mark.parametrize("make", [by_columns, whole_ones])
@pytest.mark.parametrize("size", [1, 2])
def test_experts_computed_at_once_are_those_computed_one_by_one(make: Callable[[Site], Experts], size: int) -> None:
    quantization = rows(qload_apply_experts=apply_at_once)
    check_method(quantization)
    hidden, weights = torch.randn(5, HIDDEN), torch.rand(5, 2)
    stored = dict(make_stored(quantization, make(Site(quantization, "moe"))))
    for rank in range(size):
        experts = make(Site(quantization, "moe", Group(rank, size)))
        qload.load_tensors(experts, stored, quantization)
        expected = apply_one_by_one(experts, hidden, IDS, weights)
        assert expected.abs().max() > 0
        assert torch.allclose(experts.compute(hidden, IDS, weights), expected, atol=1e-4)


def make_stored(quantization: Quantization, experts: Experts) -> Iterator[tuple[str, Tensor]]:
    for layer in (experts.gate_up_proj, experts.down_proj):
        yield from make_tensors(quantization, layer.treatment, layer.geometry, layer.sources).items()


def test_a_method_that_has_only_one_of_the_two_layers_computes_neither_at_once() -> None:
    """The other is left unquantized: what the hook would find there is not its own."""
    method = rows(qload_apply_experts=lambda layer, x, expert_ids, expert_weights: x).method
    quantization = Quantization(method, Registry.discover().method("unquantized"))
    site, plain = Site(quantization, "moe"), Treatment(quantization.unquantized, None)
    made = make_experts(COUNT, HIDDEN, INNER, site, gate=gate)
    sources = made.down_proj.sources
    down = ExpertLinear(
        COUNT, INNER, [Part("", HIDDEN)], site.at("down"), sources=sources, sharding=row, treatment=plain
    )
    experts = Experts(made.gate_up_proj, down, gate)
    qload.load_tensors(experts, dict(make_stored(quantization, experts)), quantization)
    hidden, weights = torch.randn(5, HIDDEN), torch.rand(5, 2)
    assert torch.equal(experts(hidden, IDS, weights), apply_one_by_one(experts, hidden, IDS, weights))
    assert not torch.equal(experts(hidden, IDS, weights), hidden)


@pytest.mark.parametrize("make", [column, expert_parallel])
def test_interleaved_experts_with_biases_are_cut_as_others_are(make: Sharding) -> None:
    """Rows of both projections in turns, in one tensor; the second layer's bias is added by one rank."""
    quantization = unquantized(Registry.discover())
    stored = {
        "up.weight": torch.randn(COUNT, 2 * INNER, HIDDEN),
        "up.bias": torch.randn(COUNT, 2 * INNER),
        "down.weight": torch.randn(COUNT, HIDDEN, INNER),
        "down.bias": torch.randn(COUNT, HIDDEN),
    }

    def build(rank: int, size: int) -> Experts:
        site, parts = Site(quantization, "", Group(rank, size)), [Part("gate", INNER), Part("up", INNER)]
        other = row if make is column else make
        up = ExpertLinear(
            COUNT, HIDDEN, parts, site.at("up"), sources=(Source("up", parts=2),), sharding=make,
            bias=True, interleaved=True,
        )  # fmt: skip
        down = ExpertLinear(
            COUNT, INNER, [Part("", HIDDEN)], site.at("down"), sources=(Source("down"),), sharding=other, bias=True
        )
        experts = Experts(up, down, lambda fused: F.silu(fused[..., ::2]) * fused[..., 1::2])
        report = qload.load_tensors(experts, stored, quantization)
        assert (
            report.bytes_read <= sum(tensor.nbytes for tensor in stored.values()) // size + stored["down.bias"].nbytes
        )
        return experts

    hidden, weights = torch.randn(5, HIDDEN), torch.rand(5, 2)
    expected = torch.zeros(5, HIDDEN)
    for token, chosen in enumerate(IDS.tolist()):
        for place, e in enumerate(chosen):
            fused = stored["up.weight"][e] @ hidden[token] + stored["up.bias"][e]
            made = stored["down.weight"][e] @ (F.silu(fused[::2]) * fused[1::2]) + stored["down.bias"][e]
            expected[token] += weights[token, place] * made
    for size in (1, 2, 4):
        found = torch.stack([build(rank, size).compute(hidden, IDS, weights) for rank in range(size)]).sum(0)
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("kernels", "visits"), [((), [3, 3, 1]), (None, [7])])
def test_sorted_tokens_go_to_each_expert_in_equal_shares(kernels: tuple[()] | None, visits: list[int]) -> None:
    """Those of zeros are left out, for nothing comes of them, one by one and at once."""
    quantization, asked = unquantized(Registry.discover()), list[int]()
    made = make_experts(COUNT, HIDDEN, INNER, Site(quantization, "moe"), gate=gate)

    def count(fused: Tensor) -> Tensor:
        asked.append(len(fused))
        return gate(fused)

    experts = SortedExperts(made.gate_up_proj, made.down_proj, count)
    stored = dict(make_stored(quantization, experts))
    qload.load_tensors(experts, stored, quantization, kernels=kernels)
    experts.requires_grad_(False)
    x = torch.randn(COUNT, 3, HIDDEN)
    x[1] = x[3, :2] = 0
    found = experts(x.reshape(-1, HIDDEN)).reshape(x.shape)
    for e in range(COUNT):
        up = torch.cat([stored[f"moe.{e}.{name}.weight"] for name in NAMES[:2]])
        assert torch.allclose(found[e], gate(x[e] @ up.T) @ stored[f"moe.{e}.down_proj.weight"].T, atol=1e-4)
    assert asked == visits


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


def load_experts(make: Callable[[Site], Experts], rank: int = 0, size: int = 1) -> Experts:
    quantization = unquantized(Registry.discover())
    torch.manual_seed(0)
    stored = dict(make_stored(quantization, make(Site(quantization, "moe"))))
    experts = make(Site(quantization, "moe", Group(rank, size)))
    qload.load_tensors(experts, stored, quantization)
    return experts


WAYS = [Routing._visit_pairs, Routing._visit_all]


@pytest.mark.parametrize("way", WAYS, ids=["pairs", "all"])
@pytest.mark.parametrize("make", [by_columns, whole_ones])
@pytest.mark.parametrize("size", [1, 2])
def test_without_looking_at_what_was_chosen_the_same_comes_out(way: Any, make: Any, size: int) -> None:
    """A token's experts are two, whose sum has one order; those of other ranks add nothing, whatever they are."""
    hidden, weights = torch.randn(5, HIDDEN), torch.rand(5, 2)
    for rank in range(size):
        experts = load_experts(make, rank, size)
        shard, count = experts.gate_up_proj.shard.experts, experts.gate_up_proj.local.experts or 0
        routing = Routing(IDS, weights, shard.start, count, count == COUNT)
        assert torch.allclose(
            way(routing, experts.visit, hidden), routing._visit_chosen(experts.visit, hidden), atol=1e-5
        )


def test_no_tokens_come_to_nothing_in_every_way() -> None:
    experts = load_experts(by_columns)
    routing = Routing(IDS[:0], torch.rand(0, 2), 0, COUNT, True)
    for way in (*WAYS, Routing._visit_chosen):
        assert way(routing, experts.visit, torch.randn(0, HIDDEN)).shape == (0, HIDDEN)


@pytest.mark.parametrize("make", [by_columns, whole_ones])
@pytest.mark.parametrize("size", [1, 2])
def test_sorted_tokens_are_computed_alike_without_looking_which_are_zeros(make: Any, size: int) -> None:
    hidden = torch.randn(COUNT * 3, HIDDEN)
    hidden[2:7] = 0
    parts = [load_experts(make, rank, size) for rank in range(size)]
    found = [SortedExperts(each.gate_up_proj, each.down_proj, gate)._visit_blocks(hidden, COUNT) for each in parts]
    whole = load_experts(make)
    expected = SortedExperts(whole.gate_up_proj, whole.down_proj, gate)(hidden)
    assert torch.allclose(torch.stack(found).sum(0), expected, atol=1e-5)
