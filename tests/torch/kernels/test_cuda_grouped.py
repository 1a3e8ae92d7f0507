"""Scaled products of groups: as each expert gives alone, and as torch's checks and a strict operator want them."""

import platform
from dataclasses import replace

import pytest
import torch
from gpus import CUDA, measure, needs_gpu, pretend_gpu, pretend_there
from grouped import be_strict
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from qload import Registry
from qload.geometry import Part, Sharding, column, expert_parallel, row
from qload.plan import Source
from qload.quantization import unquantized
from qload.torch import ExpertLinear, Experts, Site
from qload.torch.activations import keep
from qload.torch.kernels import Case, FloatWeight, Inputs, Kernel, Table
from qload.torch.kernels.float8 import Float8
from qload.torch.kernels.grouped import refuse_grouped
from qload.torch.kernels.groups import Groups, sort_rows
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding
from qload.torch.kernels.trials import Trials
from qload.torch.kernels.upcast import Upcast
from qload.torch.layers.packing import Packed
from qload.torch.layers.routing import Routing
from qload.torch.parallel import Group

COUNT, COLUMNS, ROWS = 4, 64, 32
BY_TOKEN, BY_TENSOR = (DynamicRounding(8, is_float=True, group=None, by_tensor=each) for each in (False, True))
STATIC = StaticRounding(8, is_float=True)
EXPERTS = torch.tensor([3, 0, 4, 3, 1, 0, 4, 3, 1, 1])
"""Nobody is for the third; and two are for none."""


def make_weights(
    rows: int, columns: int, *, by_row: bool, inputs: Inputs, count: int = COUNT, seed: int = 0
) -> list[FloatWeight]:
    """One for each expert, whose inputs have each a stored scale of their own, where they have any."""
    torch.manual_seed(seed)
    block = (1, columns) if by_row else (rows, columns)
    return [
        FloatWeight(
            torch.randn(rows, columns).to(torch.float8_e4m3fn),
            "e4m3fn",
            columns,
            torch.rand(rows if by_row else 1, 1) + 0.5,
            block,
            inputs=inputs if inputs.scale is None else replace(inputs, scale=inputs.scale * (number + 1)),
        )
        for number in range(count)
    ]


def make_kernel(weights: list[FloatWeight], device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Float8:
    place = torch.device(device)
    return Float8((each.to(place) for each in weights), Case(place, dtype, len(weights)))


def make_groups(device: str = "cpu") -> tuple[Tensor, Groups]:
    return sort_rows(EXPERTS.to(device), COUNT)


def expect(weights: list[FloatWeight], x: Tensor, groups: Groups) -> Tensor:
    """In float64, row by row: the products of dense weights and of inputs as they are rounded."""
    pairs = [(row, weights[number]) for row, number in zip(x.split(1), groups.experts.tolist(), strict=True)]
    return torch.cat([
        weight.inputs.round(row, keep).double() @ weight.dequantize().double().T for row, weight in pairs
    ])  # fmt: skip


SCALE = torch.tensor(0.002)
"""So small that the greatest code, and with it the expert's own scale, shows."""
ways = pytest.mark.parametrize(
    ("by_row", "inputs"),
    [
        (True, Inputs(rounding=BY_TOKEN)),
        (False, Inputs(rounding=BY_TOKEN)),
        (True, Inputs(rounding=STATIC, scale=SCALE)),
        (False, Inputs(rounding=STATIC, scale=SCALE.reshape(1).bfloat16())),
    ],
    ids=["row by token", "tensor by token", "row by stored", "tensor by stored"],
)


@ways
def test_rows_are_multiplied_by_their_own_experts(
    monkeypatch: pytest.MonkeyPatch, by_row: bool, inputs: Inputs
) -> None:
    called = be_strict(monkeypatch)
    weights = make_weights(ROWS, COLUMNS, by_row=by_row, inputs=inputs)
    kernel, (order, groups) = make_kernel(weights), make_groups()
    x = torch.randn(len(order), COLUMNS).to(torch.bfloat16)
    y = kernel.multiply_groups(x, groups, keep)
    ends = int(groups.ends[-1])
    assert (ends, tuple(y.shape), y.dtype) == (8, (10, ROWS), torch.bfloat16)
    alone = torch.cat([kernel(each, number) for each, number in zip(x.split(1), groups.experts.tolist(), strict=True)])
    assert measure(y[:ends], alone[:ends]) < 5e-3
    assert measure(y[:ends], expect(weights, x, groups)[:ends]) < 5e-3
    assert called == ["scaled_grouped_mm"]


@ways
def test_torch_takes_groups_for_cuda(by_row: bool, inputs: Inputs) -> None:
    mode, weights = FakeTensorMode(), make_weights(ROWS, COLUMNS, by_row=by_row, inputs=inputs)
    there = pretend_there(make_kernel(weights), mode)
    with mode:
        _, groups = sort_rows(torch.empty(10, dtype=torch.int64, device=CUDA), COUNT)
        y = there.multiply_groups(torch.empty(10, COLUMNS, dtype=torch.bfloat16, device=CUDA), groups, keep)
    assert (tuple(y.shape), y.dtype, y.device.type) == ((10, ROWS), torch.bfloat16, "cuda")


NO_HOPPER = "it needs compute capability 9.0, and this GPU has 8.9"
BLACKWELL = "it ends with compute capability 9.9, and this GPU has 10.0"
OTHER = "inputs have other scales than one for each token"
ARRANGED = "inputs are arranged for each expert, or not rounded"
TWO = Inputs(rounding=STATIC, scale=torch.ones(COLUMNS))


@pytest.mark.parametrize(
    ("inputs", "dtype", "capability", "reason"),
    [
        (Inputs(rounding=BY_TOKEN), torch.bfloat16, (9, 0), None),
        (Inputs(rounding=STATIC, scale=SCALE), torch.bfloat16, (9, 0), None),
        (Inputs(rounding=BY_TOKEN), torch.bfloat16, (8, 9), NO_HOPPER),
        (Inputs(rounding=BY_TOKEN), torch.bfloat16, (10, 0), BLACKWELL),
        (Inputs(rounding=BY_TOKEN), torch.float16, (9, 0), "it gives bfloat16, not float16"),
        (Inputs(rounding=BY_TENSOR), torch.bfloat16, (9, 0), OTHER),
        (TWO, torch.bfloat16, (9, 0), OTHER),
        (Inputs(factor=torch.ones(COLUMNS), rounding=BY_TOKEN), torch.bfloat16, (9, 0), ARRANGED),
    ],
)
def test_what_the_operator_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    inputs: Inputs,
    dtype: torch.dtype,
    capability: tuple[int, int],
    reason: str | None,
) -> None:
    pretend_gpu(monkeypatch, capability)
    kernel = make_kernel(make_weights(ROWS, COLUMNS, by_row=True, inputs=inputs))
    assert kernel.refuse_groups(dtype) == reason


def test_a_layer_of_one_weight_has_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (9, 0))
    weight = make_weights(ROWS, COLUMNS, by_row=True, inputs=Inputs(rounding=BY_TOKEN), count=1)[0]
    assert Float8([weight], Case(torch.device("cpu"), torch.bfloat16)).refuse_groups(torch.bfloat16) is not None


def test_other_kernels_multiply_by_one_expert_at_a_time() -> None:
    weight = replace(make_weights(ROWS, COLUMNS, by_row=True, inputs=Inputs(), count=1)[0], inputs=Inputs())
    kernel: Kernel = Upcast([weight, weight], Case(torch.device("cpu"), torch.bfloat16, 2))
    assert kernel.refuse_groups(torch.bfloat16) == "it multiplies by one expert at a time"
    with pytest.raises(NotImplementedError, match="upcast_mm multiplies by one expert at a time"):
        kernel.multiply_groups(torch.ones(1, COLUMNS), make_groups()[1], keep)


def make_mixture(sharding: Sharding, other: Sharding, rank: int, size: int, device: str = "cpu") -> Experts:
    """Experts with biases, of whose weights each rank's kernels have its share."""
    site = Site(unquantized(Registry.discover()), "moe", Group(rank, size), torch.bfloat16)
    up = ExpertLinear(
        COUNT, COLUMNS, [Part("gate", 64), Part("up", 64)], site.at("up"), sources=(Source("up", parts=2),),
        sharding=sharding, bias=True,
    )  # fmt: skip
    down = ExpertLinear(
        COUNT, 64, [Part("", COLUMNS)], site.at("down"), sources=(Source("down"),), sharding=other, bias=True
    )
    experts = Experts(up, down, lambda fused: F.silu(fused[..., : fused.shape[-1] // 2]) * fused.chunk(2, -1)[1])
    for seed, layer in enumerate((up, down)):
        local, shard, inputs = layer.local, layer.shard, Inputs(rounding=BY_TOKEN)
        weights = make_weights(local.out_features, local.in_features, by_row=True, inputs=inputs, seed=seed + 2 * rank)
        own = weights[shard.experts.start : shard.experts.start + (local.experts or 0)]
        layer.packed = Packed([make_kernel(own, device)], Table((Float8,)))
        torch.manual_seed(seed)
        layer.allocate(device)
        layer.set_tensor("bias", torch.randn(local.experts or 0, local.out_features).to(torch.bfloat16).to(device))
        layer.set_tensor("weight", None)
        layer._trials = Trials()
        layer.settle_groups()
    return experts


@pytest.mark.parametrize("shardings", [(column, row), (expert_parallel, expert_parallel)])
@pytest.mark.parametrize("size", [1, 2])
def test_mixtures_compute_codes_at_once_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, shardings: tuple[Sharding, Sharding], size: int
) -> None:
    called = be_strict(monkeypatch)
    pretend_gpu(monkeypatch, (9, 0))
    ids = torch.tensor([[0, 3], [3, 0], [3, 1], [0, 1], [1, 3]])
    hidden, weights = torch.randn(5, COLUMNS).to(torch.bfloat16), torch.rand(5, 2)
    for rank in range(size):
        experts = make_mixture(*shardings, rank, size)
        for layer in (experts.gate_up_proj, experts.down_proj):
            monkeypatch.setattr(type(layer), "agree", lambda _, greatest: greatest)
            assert layer.grouped == "scaled_grouped_mm"
        called.clear()
        shard, count = experts.gate_up_proj.shard.experts, experts.gate_up_proj.local.experts or 0
        routing = Routing(ids, weights, shard.start, count, count == COUNT)
        found, expected = routing.visit_groups(experts.visit_groups, hidden), routing.visit(experts.visit, hidden)
        assert measure(found, expected) < 2e-2
        assert called == ["scaled_grouped_mm"] * 2
        if not rank:
            experts.gate_up_proj.quantize_activations = False
            assert not experts.gate_up_proj.can_group(hidden)


def test_nothing_is_grouped_on_windows_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    with FakeTensorMode():
        weight = torch.empty(4, 16, 24, dtype=torch.bfloat16, device="cuda")
    assert refuse_grouped(weight) == "torch does not build it for Windows"


@pytest.mark.parametrize(
    ("shape", "dtype", "device", "capability", "reason"),
    [
        ((4, 16, 24), torch.bfloat16, "cuda", (9, 0), None),
        ((4, 16, 24), torch.bfloat16, "cuda", (10, 0), None),
        ((4, 16, 24), torch.bfloat16, "cpu", (8, 0), None),
        ((4, 16, 24), torch.bfloat16, "cuda", (8, 0), "it needs compute capability 9.0, and this GPU has 8.0"),
        ((4, 16, 24), torch.bfloat16, "cuda", (12, 0), "it ends with compute capability 10.9, and this GPU has 12.0"),
        ((4, 16, 24), torch.float16, "cuda", (9, 0), "it does not multiply float16"),
        ((4, 16, 24), torch.float32, "cuda", (9, 0), "it does not multiply float32"),
        ((4, 16, 20), torch.float32, "cpu", (9, 0), None),
        ((4, 16, 24), torch.float64, "cpu", (9, 0), "it does not multiply float64"),
        ((4, 16, 20), torch.bfloat16, "cuda", (9, 0), "16 output and 20 input features are no multiples of 8"),
        ((4, 20, 16), torch.bfloat16, "cpu", (9, 0), "20 output and 16 input features are no multiples of 8"),
        ((0, 16, 24), torch.bfloat16, "cuda", (9, 0), "it multiplies by 1 to 1023 experts, not 0"),
        ((1024, 8, 8), torch.bfloat16, "cuda", (9, 0), "it multiplies by 1 to 1023 experts, not 1024"),
        ((4, 16, 24), torch.bfloat16, "meta", (9, 0), "it is not for meta"),
    ],
)  # fmt: skip
def test_weights_that_the_operator_cannot_take_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    capability: tuple[int, int],
    reason: str | None,
) -> None:
    pretend_gpu(monkeypatch, capability)
    with FakeTensorMode():
        refused = refuse_grouped(torch.empty(shape, dtype=dtype, device=device))
    assert refused is None if reason is None else reason in (refused or "")


@needs_gpu
@ways
def test_a_gpu_multiplies_groups(by_row: bool, inputs: Inputs) -> None:
    weights = make_weights(ROWS, COLUMNS, by_row=by_row, inputs=inputs)
    kernel, (order, groups) = make_kernel(weights, "cuda"), make_groups("cuda")
    if (reason := kernel.refuse_groups(torch.bfloat16)) is not None:
        pytest.skip(reason)
    x = torch.randn(len(order), COLUMNS).to(torch.bfloat16)
    y = kernel.multiply_groups(x.to(CUDA), groups, keep).cpu()
    assert measure(y[:8], expect(weights, x, groups)[:8]) < 2e-2


@needs_gpu
@pytest.mark.parametrize("is_captured", [False, True])
def test_a_gpu_computes_a_mixture_without_being_waited_for(is_captured: bool) -> None:
    """Also in a graph, which then computes for other experts than it was captured with."""
    experts = make_mixture(column, row, 0, 1, "cuda")
    if not experts.gate_up_proj.grouped:
        pytest.skip("the GPU has no grouped product")
    hidden, weights = torch.randn(300, COLUMNS, device=CUDA).bfloat16(), torch.rand(300, 2, device=CUDA)
    ids, others = (torch.rand(300, COUNT, device=CUDA).topk(2)[1] for _ in range(2))
    with torch.inference_mode():
        routing = Routing(others, weights, 0, COUNT, is_whole=True)
        expected = routing._visit_chosen(experts.visit, hidden)
        found = experts(hidden, ids, weights)
        if is_captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = experts(hidden, ids, weights)
            ids.copy_(others)
            graph.replay()
        else:
            torch.cuda.set_sync_debug_mode("error")
            try:
                found = experts(hidden, others, weights)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert measure(found, expected) < 2e-2
