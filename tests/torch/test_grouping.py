"""Experts that are computed at once give what each gives alone, whatever the operator leaves in rows of nobody."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import stacks
import torch
from gpus import pretend_gpu
from grouped import be_strict
from samples import DATA
from stacks import COUNT, HIDDEN, NAMES, gate
from strangers import make_rows, registry_with
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

import qload
from qload import Quantization, Registry
from qload.geometry import Part, column, row
from qload.plan import Source
from qload.quantization import unquantized
from qload.torch import ExpertLinear, Experts, Site, make_experts
from qload.torch.kernels import Groups
from qload.torch.kernels.trials import Trials
from qload.torch.layers import SortedExperts
from qload.torch.layers.routing import Routing
from qload.torch.parallel import Group

INNER = 32
by_columns, whole_ones = (partial(make, inner=INNER) for make in (stacks.by_columns, stacks.whole_ones))
IDS = torch.tensor([[0, 3], [3, 0], [3, 1], [0, 1], [1, 3]])
"""Nobody chose the third."""
BF16 = torch.bfloat16


def interleaved(site: Site) -> Experts:
    """With biases, of which one rank adds the second layer's, and rows of both projections in turns."""
    parts = [Part("gate", INNER), Part("up", INNER)]
    up = ExpertLinear(
        COUNT, HIDDEN, parts, site.at("up"), sources=(Source("moe.up", parts=2),), sharding=column,
        bias=True, interleaved=True,
    )  # fmt: skip
    down = ExpertLinear(
        COUNT, INNER, [Part("", HIDDEN)], site.at("down"), sources=(Source("moe.down"),), sharding=row, bias=True
    )
    return Experts(up, down, lambda fused: F.silu(fused[..., ::2]) * fused[..., 1::2])


Make = Callable[[Site], Experts]
makes = pytest.mark.parametrize("make", [by_columns, whole_ones, interleaved])
sizes = pytest.mark.parametrize("size", [1, 2, 4])


def load_experts(
    make: Make = by_columns, rank: int = 0, size: int = 1, dtype: torch.dtype = BF16, **options: Any
) -> Experts:
    torch.manual_seed(0)
    stored = {
        f"moe.{expert}.{name}.weight": torch.randn(*((HIDDEN, INNER) if name == "down_proj" else (INNER, HIDDEN)))
        for expert in range(COUNT)
        for name in NAMES
    } | {
        "moe.up.weight": torch.randn(COUNT, 2 * INNER, HIDDEN),
        "moe.up.bias": torch.randn(COUNT, 2 * INNER),
        "moe.down.weight": torch.randn(COUNT, HIDDEN, INNER),
        "moe.down.bias": torch.randn(COUNT, HIDDEN),
    }
    quantization = unquantized(Registry.discover())
    experts = make(Site(quantization, "moe", Group(rank, size), dtype))
    wanted = {source.prefix for layer in (experts.gate_up_proj, experts.down_proj) for source in layer.sources}
    kept = {name: each.to(BF16).to(dtype) for name, each in stored.items() if name.rpartition(".")[0] in wanted}
    qload.load_tensors(experts, kept, quantization, **options)
    return experts.requires_grad_(False)


def route(experts: Experts, ids: Tensor, weights: Tensor) -> Routing:
    shard, count = experts.gate_up_proj.shard.experts, experts.gate_up_proj.local.experts or 0
    return Routing(ids, weights, shard.start, count, count == COUNT)


def measure(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def make_inputs(tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(tokens, HIDDEN).to(BF16), IDS.repeat(-(-tokens // 5), 1)[:tokens], torch.rand(tokens, 2)


@makes
@sizes
@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_experts_at_once_are_experts_one_by_one(
    monkeypatch: pytest.MonkeyPatch, make: Make, size: int, tokens: int
) -> None:
    """On each rank; and all ranks together are near the experts in float64, as near as one by one are."""
    called = be_strict(monkeypatch)
    hidden, ids, weights = make_inputs(tokens)
    sums = torch.zeros(2, tokens, HIDDEN, dtype=torch.float64)
    for rank in range(size):
        experts = load_experts(make, rank, size)
        called.clear()
        routing = route(experts, ids, weights)
        found, expected = routing.visit_groups(experts.visit_groups, hidden), routing.visit(experts.visit, hidden)
        assert called == ["grouped_mm"] * 2
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert not expected.any() or measure(found, expected) < 1e-2
        assert expected.any() or not found.any()
        sums += torch.stack([found, expected]).double()
    whole = load_experts(make, dtype=torch.float64)
    exact = route(whole, ids, weights.double()).visit(whole.visit, hidden.double())
    assert measure(sums[0], exact) < max(1e-2, 1.5 * measure(sums[1], exact))


def test_an_operator_that_computes_otherwise_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        return multiply(x, weight, offs=offs.roll(1))

    def lack(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        raise RuntimeError(f"no kernel image is available for {x.shape}, {weight.shape}, {offs.shape}")

    multiply = torch._grouped_mm
    assert load_experts().gate_up_proj.path.name == "grouped_mm"
    for broken in (mistake, lack):
        monkeypatch.setattr(torch, "_grouped_mm", broken)
        experts = load_experts()
        assert {layer.path.name for layer in (experts.gate_up_proj, experts.down_proj)} == {"linear"}


def test_numbers_of_no_expert_give_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    be_strict(monkeypatch)
    experts, (hidden, ids, weights) = load_experts(), make_inputs()
    ids = ids.clone()
    ids[0, 0], ids[2] = -1, COUNT
    routing = route(experts, ids, weights)
    found, expected = routing.visit_groups(experts.visit_groups, hidden), routing.visit(experts.visit, hidden)
    assert not found[2].any()
    assert measure(found, expected) < 1e-2


def test_one_row_may_lie_anyhow(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls it contiguous, whatever its stride."""
    be_strict(monkeypatch)
    experts, (hidden, ids, weights) = load_experts(), make_inputs(1)
    plain = experts.gate
    experts.gate = lambda fused: torch.as_strided(plain(fused), (1, INNER), (1, 1))
    routing = route(experts, ids[:, :1], weights[:, :1])
    found, expected = routing.visit_groups(experts.visit_groups, hidden), routing.visit(experts.visit, hidden)
    assert measure(found, expected) < 1e-2


@sizes
def test_a_rank_multiplies_what_is_for_its_own_experts_and_no_more(size: int) -> None:
    """Rows in the order of experts, of which the others come last, and within each in that of tokens."""
    hidden, ids, weights = make_inputs()
    seen = list[int]()
    for rank in range(size):
        experts = load_experts(whole_ones, rank, size)
        own = experts.gate_up_proj.shard.experts
        tokens = [token for expert in range(own.start, own.stop) for token in (ids == expert).nonzero()[:, 0].tolist()]

        def visit(x: Tensor, groups: Groups, experts: Experts = experts, tokens: list[int] = tokens) -> Tensor:
            seen.append(int(groups.ends[-1]))
            assert torch.equal(x[: seen[-1]], hidden[torch.tensor(tokens, dtype=torch.int64)])
            return experts.visit_groups(x, groups)

        route(experts, ids, weights).visit_groups(visit, hidden)
    assert (len(seen), sum(seen)) == (size, ids.numel())


@makes
def test_no_tokens_come_to_nothing(monkeypatch: pytest.MonkeyPatch, make: Make) -> None:
    be_strict(monkeypatch)
    experts, (hidden, ids, weights) = load_experts(make), make_inputs()
    assert route(experts, ids[:0], weights[:0]).visit_groups(experts.visit_groups, hidden[:0]).shape == (0, HIDDEN)


@pytest.mark.parametrize("make", [by_columns, whole_ones])
@sizes
def test_sorted_tokens_are_computed_at_once_and_those_of_zeros_are_left_out(
    monkeypatch: pytest.MonkeyPatch, make: Make, size: int
) -> None:
    be_strict(monkeypatch)
    hidden = torch.randn(COUNT * 3, HIDDEN).to(BF16)
    hidden[2:7] = 0
    found = torch.zeros(COUNT * 3, HIDDEN)
    for rank in range(size):
        part = load_experts(make, rank, size)
        found += SortedExperts(part.gate_up_proj, part.down_proj, gate)._visit_sorted(hidden, COUNT)
    whole = load_experts(make)
    expected = SortedExperts(whole.gate_up_proj, whole.down_proj, gate)(hidden)
    assert measure(found, expected) < 1e-2
    assert not found[2:7].any()


@makes
def test_nothing_asks_what_a_device_has(make: Make) -> None:
    """On the meta device there is nothing to look at."""
    experts, routed = load_experts(make).to("meta"), [each.to("meta") for each in make_inputs()]
    found = route(experts, *routed[1:]).visit_groups(experts.visit_groups, routed[0])
    assert (found.shape, found.device.type) == ((5, HIDDEN), "meta")


class Recorder:
    """A compiler that leaves graphs as they are, and counts the products in them."""

    def __init__(self) -> None:
        self.graphs = list[list[str]]()

    def __call__(self, module: torch.fx.GraphModule, _: Any) -> Any:
        self.graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module.forward

    def count(self) -> list[int]:
        """How many grouped products each graph has."""
        return [sum("_grouped_mm" in target for target in graph) for graph in self.graphs]


def compile_whole(experts: nn.Module) -> tuple[Callable[..., Tensor], Recorder]:
    torch._dynamo.reset()
    recorder = Recorder()
    compiled: Callable[..., Tensor] = torch.compile(experts, fullgraph=True, backend=recorder)
    return compiled, recorder


@makes
def test_compiled_experts_are_two_products_whatever_the_number_of_tokens(make: Make) -> None:
    experts = load_experts(make)
    compiled, recorder = compile_whole(experts)
    with torch.inference_mode():
        for tokens in (1, 2, 7, 40):
            routed = make_inputs(tokens)
            assert measure(compiled(*routed), experts(*routed)) < 1e-2
    assert recorder.count() == [2, 2]


def test_compiled_experts_in_a_dtype_that_the_operator_lacks_are_computed_as_before() -> None:
    experts = load_experts(dtype=torch.float32)
    compiled, recorder = compile_whole(experts)
    hidden, ids, weights = make_inputs()
    with torch.inference_mode():
        assert measure(compiled(hidden.float(), ids, weights), experts(hidden.float(), ids, weights)) < 1e-5
    assert recorder.count() == [0]


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
def test_on_a_cpu_few_tokens_are_computed_at_once(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """8 pairs of a token and an expert for each expert; of more, one expert's after another's."""
    experts, plain, visited = load_experts(dtype=dtype), load_experts(dtype=dtype, kernels=()), list[int]()
    visit = Experts.visit_groups

    def count(self: Experts, x: Tensor, groups: Groups) -> Tensor:
        visited.append(len(x))
        return visit(self, x, groups)

    monkeypatch.setattr(Experts, "visit_groups", count)
    for tokens in (1, 16, 17):
        hidden, ids, weights = make_inputs(tokens)
        assert measure(experts(hidden.to(dtype), ids, weights), plain(hidden.to(dtype), ids, weights)) < 1e-2
    assert visited == [2, 32]


def test_without_kernels_no_operator_is_chosen() -> None:
    experts = load_experts(kernels=())
    compiled, recorder = compile_whole(experts)
    with torch.inference_mode():
        compiled(*make_inputs())
    assert recorder.count() == [0]


@pytest.mark.parametrize("trained", ["hidden", "weights", "experts"])
def test_gradients_flow_through_compiled_experts_as_through_others(trained: str) -> None:
    experts, (hidden, ids, weights) = load_experts(), make_inputs()
    compiled, recorder = compile_whole(experts)
    gradients = list[Tensor]()
    for forward in (experts, compiled):
        leaves = {
            "hidden": hidden.clone(),
            "weights": weights.clone(),
            "experts": experts.down_proj.get_parameter("weight"),
        }
        leaf = leaves[trained].requires_grad_()
        y = forward(leaves["hidden"], ids, leaves["weights"])
        gradients += torch.autograd.grad(y.float().square().sum(), leaf)
    assert measure(gradients[1], gradients[0]) < 1e-2
    assert recorder.count() == [0]


def test_a_mixture_of_which_one_layer_has_no_operator_has_none() -> None:
    """Its second layer is not quantized, and could."""
    quantization = Quantization(registry_with(make_rows()).method("rows"), Registry.discover().method("unquantized"))
    quantized = make_experts(COUNT, HIDDEN, INNER, Site(quantization, "moe", dtype=BF16), gate=gate).gate_up_proj
    experts = load_experts()
    down = experts.down_proj
    assert down.grouped == experts.gate_up_proj.grouped == down.path.name == "grouped_mm"
    Experts(quantized, down, gate)
    assert (down.grouped, quantized.grouped, down.path.name) == ("", "", "linear")


@pytest.mark.parametrize(("capability", "path"), [((9, 0), "grouped_mm"), ((8, 0), "linear")])
def test_reports_say_what_experts_are_computed_with(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], path: str
) -> None:
    model = qload.load(DATA / "base-qwen3moe", dtype="bfloat16")
    experts = next(module for module in model.modules() if isinstance(module, Experts))
    assert set(qload.report(model).paths) == {"linear", "grouped_mm"}
    assert set(qload.report(qload.load(DATA / "base-qwen3moe", kernels=())).paths) == {"linear"}
    pretend_gpu(monkeypatch, capability)
    # Nothing can be tried where there is nothing.
    monkeypatch.setattr(Trials, "once", lambda self, key, run: None)
    mode = FakeTensorMode()
    layers = (experts.gate_up_proj, experts.down_proj)
    for layer in layers:
        there = FakeTensor(mode, layer.get_parameter("weight").to("meta"), torch.device("cuda"))
        layer._parameters["weight"] = nn.Parameter(there, requires_grad=False)
        layer.settle_groups()
    for layer in layers:
        assert layer.path.name == path
