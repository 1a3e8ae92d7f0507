"""Scaled products of small floats in groups, given to a stand-in that reads scales by cuBLAS's own formula."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gpus import CUDA, is_same, measure, needs_gpu, pack, pretend_gpu, pretend_there
from operators import Demands, read_tiles
from samples import supported
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import qload
from qload.torch.activations import keep
from qload.torch.kernels import Case, FloatWeight, Inputs, Kernel, Rounding, choose_kernel
from qload.torch.kernels.dense import Dequantized
from qload.torch.kernels.float4 import Float4, Grouped, PowerFloat4, PowerFloat8
from qload.torch.kernels.operands import count_tiled, tile_scales, untile_scales
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding
from qload.torch.kernels.upcast import Upcast

E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
TABLE = (Float4, PowerFloat8, PowerFloat4, Upcast)
WORDS = ("nvfp4", "mxfp4", "mxfp8")
"""In the names of checkpoints that are of such floats."""
FOURS = ("ct-nvfp4", "ct-qwen3moe-nvfp4", "modelopt-nvfp4")
POWERS = ("autoround-mxfp4", "modelopt-mxfp4", "quark-mxfp4")
ROUNDED = dict.fromkeys(FOURS, Float4) | dict.fromkeys(POWERS, PowerFloat4)
"""Those whose inputs are rounded, too, and what multiplies by them."""
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
sizes = pytest.mark.parametrize(("rows", "columns"), [(16, 32), (48, 96), (144, 640)])


def round_to(bits: int, group: int, scale_dtype: torch.dtype | None) -> DynamicRounding:
    return DynamicRounding(bits, is_float=True, group=group, scale_dtype=scale_dtype)


def make_fours(
    rows: int,
    columns: int,
    *,
    over: bool | None = False,
    scale: float | None = 3.0,
    dtype: torch.dtype = torch.bfloat16,
) -> FloatWeight:
    """E2M1 in groups of 16; `over` says what the scale of all does, None that there is none, as of inputs `scale`."""
    values = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    steps = torch.rand(rows, columns // 16).add(0.1).to(E4M3)
    inputs = Inputs(rounding=round_to(4, 16, E4M3), scale=None if scale is None else torch.tensor(scale))
    whole = None if over is None else torch.tensor(0.37)
    return FloatWeight(values, "e2m1", columns, steps, (1, 16), whole, inputs=inputs, dtype=dtype, over=bool(over))


def make_powers(rows: int, columns: int, bits: int) -> FloatWeight:
    """E2M1 or E4M3 in groups of 32, with powers of two for scales, from the least on."""
    steps = torch.randint(110, 127, (rows, columns // 32), dtype=torch.uint8)
    steps[0, 0] = 0
    inputs = Inputs(rounding=round_to(bits, 32, E8M0))
    if bits == 8:
        return FloatWeight(
            torch.randn(rows, columns).to(E4M3), "e4m3fn", columns, steps.view(E8M0), (1, 32), inputs=inputs
        )
    values = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    return FloatWeight(values, "e2m1", columns, steps.view(E8M0), (1, 32), inputs=inputs)


Make = Callable[[int, int], FloatWeight]
MAKES: dict[str, tuple[type[Grouped], Make]] = {
    "fours": (Float4, make_fours),
    "fours over a number": (Float4, lambda rows, columns: make_fours(rows, columns, over=True)),
    "fours alone": (Float4, lambda rows, columns: make_fours(rows, columns, over=None, scale=None)),
    "fours with a number": (Float4, lambda rows, columns: make_fours(rows, columns, scale=None)),
    "fours with a number of inputs": (Float4, lambda rows, columns: make_fours(rows, columns, over=None)),
    "fours in float32": (Float4, lambda rows, columns: make_fours(rows, columns, over=None, dtype=torch.float32)),
    "eights and powers": (PowerFloat8, lambda rows, columns: make_powers(rows, columns, 8)),
    "fours and powers": (PowerFloat4, lambda rows, columns: make_powers(rows, columns, 4)),
}
kinds = pytest.mark.parametrize(("kernel", "make"), MAKES.values(), ids=MAKES.keys())


def expect(weight: FloatWeight, x: Tensor) -> Tensor:
    """The product of the dense weight and of inputs as they are rounded, in float64."""
    return weight.inputs.round(x, keep).double() @ weight.dequantize().double().T


def bound(kernel: type[Grouped], dtype: torch.dtype) -> float:
    """The error of sums that are rounded once, and of inputs, whose reference is; in float32 there is none."""
    return 1e-5 if dtype == torch.float32 and kernel is not PowerFloat4 else 5e-3


@pytest.fixture
def blackwell(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (10, 0), "13.0")
    monkeypatch.setattr(torch.__config__, "show", lambda: "CXX_FLAGS= -DUSE_MSLK")


@kinds
@sizes
@dtypes
@pytest.mark.parametrize("tokens", [1, 5, 130])
def test_the_operator_is_given_what_it_demands(
    kernel: type[Grouped], make: Make, rows: int, columns: int, dtype: torch.dtype, tokens: int
) -> None:
    weight, x = make(rows, columns), torch.randn(columns, tokens).to(dtype).T
    with Demands() as demands:
        y = pack(kernel, weight, dtype)(x)
    assert list(demands.calls.values()) == [1]
    assert y.dtype == dtype
    assert measure(y, expect(weight, x)) < bound(kernel, dtype)


@kinds
def test_no_tokens_are_given_to_no_operator(kernel: type[Grouped], make: Make) -> None:
    with Demands() as demands:
        assert pack(kernel, make(16, 32), torch.bfloat16)(torch.randn(0, 32).bfloat16()).shape == (0, 16)
    assert not demands.calls


@kinds
def test_inputs_that_are_not_rounded_are_given_to_no_operator(kernel: type[Grouped], make: Make) -> None:
    weight, x = make(16, 32), torch.randn(3, 32)
    with Demands() as demands:
        y = pack(kernel, weight, torch.float32)(x, rounds=False)
    assert not demands.calls
    assert measure(y, x.double() @ weight.dequantize().double().T) < 1e-5


@kinds
@sizes
def test_a_packed_weight_comes_back_as_it_was(kernel: type[Grouped], make: Make, rows: int, columns: int) -> None:
    weight = make(rows, columns)
    back = pack(kernel, weight, torch.bfloat16).unpack()
    assert isinstance(back, FloatWeight)
    assert torch.equal(back.values.view(torch.uint8), weight.values.view(torch.uint8))
    assert torch.equal(back.scale.view(torch.uint8), weight.scale.view(torch.uint8))
    assert is_same(back, weight)
    plain = ("element", "columns", "block", "divides", "dtype", "over")
    assert [getattr(back, name) for name in plain] == [getattr(weight, name) for name in plain]


@kinds
def test_experts_are_packed_and_multiplied_one_by_one(kernel: type[Grouped], make: Make) -> None:
    weights, x = [make(48, 96) for _ in range(3)], torch.randn(5, 96)
    packed = kernel(iter(weights), Case(torch.device("cpu"), torch.float32, experts=3))
    for number, weight in enumerate(weights):
        assert is_same(packed.unpack(number), weight)
        for expert in (number, torch.tensor(number)):
            with Demands():
                assert measure(packed(x, expert), expect(weight, x)) < bound(kernel, torch.float32)


@kinds
def test_values_that_begin_at_16_bytes_are_not_copied(kernel: type[Grouped], make: Make) -> None:
    weight = make(16, 64)
    assert pack(kernel, weight, torch.bfloat16).get_buffer("values").data_ptr() == weight.values.data_ptr()
    moved = torch.empty(weight.values.numel() + 1, dtype=torch.uint8)[1:].view(weight.values.dtype)
    odd = replace(weight, values=moved.view(weight.values.shape).copy_(weight.values))
    copied = pack(kernel, odd, torch.bfloat16)
    assert copied.get_buffer("values").data_ptr() != odd.values.data_ptr()
    assert is_same(copied.unpack(), weight)


@pytest.mark.parametrize("dtype", [E4M3, E8M0, torch.uint8])
@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (16, 3), (128, 4), (130, 9), (300, 20)])
def test_scales_are_where_cublas_reads_them(rows: int, groups: int, dtype: torch.dtype) -> None:
    scale = torch.randint(0, 127, (rows, groups), dtype=torch.uint8).view(dtype)
    tiled = tile_scales(scale)
    assert (tiled.dtype, tuple(tiled.shape)) == (dtype, (count_tiled(rows, groups),))
    assert torch.equal(read_tiles(tiled, rows, groups), scale.double() if dtype != E8M0 else scale.float().double())
    assert int(tiled.view(torch.uint8).bool().sum()) == int(scale.view(torch.uint8).bool().sum())
    assert torch.equal(untile_scales(tiled, rows, groups).view(torch.uint8), scale.view(torch.uint8))


@pytest.mark.parametrize(("kernel", "make"), [MAKES["fours"], MAKES["eights and powers"]], ids=["fours", "eights"])
@pytest.mark.parametrize("tokens", [1, 130])
def test_torch_takes_them_for_cuda(kernel: type[Grouped], make: Make, tokens: int) -> None:
    mode = FakeTensorMode()
    there = pretend_there(pack(kernel, make(48, 96), torch.bfloat16), mode)
    assert isinstance(there, Grouped)
    with mode:
        codes = torch.empty(tokens, there.get_buffer("values").shape[1], dtype=kernel.codes, device=CUDA)
        scale = torch.empty(tokens, 96 // kernel.group, device=CUDA)
        held = {name: each for name, each in there.named_buffers() if not name.startswith("input")}
        y = there.multiply_codes(codes, scale, held, there.inputs(), torch.bfloat16)
    assert (tuple(y.shape), y.dtype, y.device.type) == ((tokens, 48), torch.bfloat16, "cuda")


@kinds
def test_torch_declares_what_is_made_of_whole_layers(kernel: type[Grouped], make: Make) -> None:
    with FakeTensorMode():
        y = pack(kernel, make(48, 96), torch.bfloat16)(torch.empty(3, 5, 96).bfloat16())
    assert (tuple(y.shape), y.dtype) == ((3, 5, 48), torch.bfloat16)


def test_compilers_take_powers_and_fours_for_dense() -> None:
    weight, x = make_powers(16, 64, 4), torch.randn(3, 64)
    kernel = pack(PowerFloat4, weight, torch.float32)
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    assert measure(compiled(x), expect(weight, x)) < 1e-5


TOKENS, STATIC, HALF = round_to(4, 16, None), StaticRounding(4, is_float=True), torch.tensor(2).bfloat16()
NO_FLOAT = "the scale of its inputs is not one of float32"
NO_FLOAT4 = "scaled_mm_1x16: its inputs have no scale of float8_e4m3fn for every 16 features"


def with_inputs(weight: FloatWeight, rounding: Rounding | None, scale: Tensor | None = None) -> FloatWeight:
    return replace(weight, inputs=Inputs(rounding=rounding, scale=scale))


CASES = [
    (make_fours(16, 64), (10, 0), "12.8", Float4, ""),
    (make_fours(16, 64, over=True), (12, 0), "13.0", Float4, ""),
    (make_fours(16, 64, over=None, scale=None, dtype=torch.float32), (10, 0), "13.0", Float4, ""),
    (make_fours(16, 64), (9, 0), "13.0", None, "it needs compute capability 10.0, and this GPU has 9.0"),
    (make_fours(16, 64), (10, 0), "12.6", None, "scaled_mm_1x16: it needs CUDA 12.8, and torch is built with 12.6"),
    (make_fours(24, 64), (10, 0), "13.0", None, "24 output and 64 input features are no multiples of 16 and 32"),
    (make_fours(16, 48), (10, 0), "13.0", None, "16 output and 48 input features are no multiples of 16 and 32"),
    (with_inputs(make_fours(16, 64), TOKENS), (10, 0), "13.0", None, NO_FLOAT4),
    (with_inputs(make_fours(16, 64), STATIC), (10, 0), "13.0", None, NO_FLOAT4),
    (with_inputs(make_fours(16, 64), round_to(4, 32, E4M3)), (10, 0), "13.0", None, NO_FLOAT4),
    (with_inputs(make_fours(16, 64), round_to(4, 16, E4M3), HALF), (10, 0), "13.0", None, NO_FLOAT),
    (with_inputs(make_fours(16, 64), None), (10, 0), "13.0", None, "no kernel multiplies by e2m1 in groups of 16"),
    (replace(make_fours(16, 64), divides=True), (10, 0), "13.0", None, "its scales divide"),
    (make_powers(16, 64, 8), (10, 0), "12.8", PowerFloat8, ""),
    (make_powers(16, 64, 8), (12, 1), "13.0", PowerFloat8, ""),
    (replace(make_powers(16, 64, 8), whole=torch.tensor(2.0)), (10, 0), "13.0", None, "are times another"),
    (make_powers(16, 64, 4), (10, 3), "13.0", PowerFloat4, ""),
    (make_powers(16, 64, 4), (12, 0), "13.0", None, "it ends with compute capability 10.9, and this GPU has 12.0"),
]  # fmt: skip


@pytest.mark.usefixtures("blackwell")
@pytest.mark.parametrize(("weight", "capability", "cuda", "chosen", "reason"), CASES)
def test_a_kernel_is_chosen_or_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch,
    weight: FloatWeight,
    capability: tuple[int, int],
    cuda: str,
    chosen: object,
    reason: str,
) -> None:
    pretend_gpu(monkeypatch, capability, cuda)
    choice = choose_kernel(TABLE, weight, Case(CUDA, torch.bfloat16))
    assert choice.kernel is chosen
    assert reason in choice.reason


def test_powers_and_fours_need_a_build_with_kernels_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (10, 0), "13.0")
    case = Case(CUDA, torch.bfloat16)
    assert PowerFloat4.refuse(make_powers(16, 64, 4), case) == "torch is built without MSLK"


@pytest.mark.usefixtures("blackwell")
@pytest.mark.parametrize(
    "path", [path for path in supported() if any(word in path.name for word in WORDS)], ids=lambda path: path.name
)
def test_layers_of_checkpoints_whose_inputs_are_rounded_are_multiplied_as_they_are(path: Path) -> None:
    expected = ROUNDED.get(path.name)
    found: dict[type[Kernel] | None, int] = {}
    for weight in list_weights(qload.load(path)):
        choice = choose_kernel(TABLE, weight, Case(CUDA, torch.bfloat16))
        found[choice.kernel] = found.get(choice.kernel, 0) + 1
        if choice.kernel is None or not issubclass(choice.kernel, Grouped):
            continue
        packed = pack(choice.kernel, weight, torch.float32)
        assert is_same(packed.unpack(), replace(weight, inputs=packed.inputs()))
        x = torch.randn(7, weight.columns)
        with Demands() as demands:
            y = packed(x)
        assert list(demands.calls.values()) == [1]
        assert measure(y, expect(weight, x)) < bound(choice.kernel, torch.float32)
    assert set(found) == {expected}


def list_weights(model: torch.nn.Module) -> Iterator[FloatWeight]:
    """The weight of each layer; of stacks, that of the first expert."""
    for module in model.modules():
        if isinstance(module, Kernel):
            weight = module.unpack(None if module.experts is None else 0)
            assert isinstance(module, Dequantized)
            assert isinstance(weight, FloatWeight)
            yield weight


@needs_gpu
@kinds
@sizes
@dtypes
@pytest.mark.parametrize("tokens", [1, 5, 130])
def test_a_gpu_multiplies_groups(
    kernel: type[Grouped], make: Make, rows: int, columns: int, dtype: torch.dtype, tokens: int
) -> None:
    weight, x = make(rows, columns), torch.randn(tokens, columns).to(dtype)
    reason = kernel.refuse(weight, Case(CUDA, dtype))
    if reason is not None:
        pytest.skip(reason)
    packed = pack(kernel, weight, dtype, "cuda")
    assert is_same(packed.unpack(), weight.to(CUDA))
    assert measure(packed(x.to(CUDA)).cpu(), expect(weight, x)) < 1e-2
