"""Scaled products of eight-bit floats: torch's own on CPUs for the numbers, its checks for CUDA for all else."""

from dataclasses import replace

import pytest
import torch
from gpus import CUDA, is_same, measure, needs_gpu, pack, pretend_gpu, pretend_there
from operators import Demands
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qload.torch.activations import keep
from qload.torch.kernels import Case, FloatWeight, Inputs, IntegerWeight, Weight, choose_kernel
from qload.torch.kernels.float8 import BlockFloat8, Float8, multiply_blocks, multiply_scaled
from qload.torch.kernels.gpus import takes_scales_of_rows
from qload.torch.kernels.roundings import DynamicRounding, StaticRounding
from qload.torch.kernels.upcast import Upcast

E4M3 = torch.float8_e4m3fn
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])


def round_by(group: int | None = None, *, by_tensor: bool = False) -> DynamicRounding:
    """To E4M3 by tokens, groups of their features, or all at once."""
    return DynamicRounding(8, is_float=True, group=group, by_tensor=by_tensor)


def make_float8(
    rows: int,
    columns: int,
    block: tuple[int, int],
    rounding: DynamicRounding | None,
    dtype: torch.dtype = torch.float32,
) -> FloatWeight:
    scale = torch.rand(-(-rows // block[0]), -(-columns // block[1])).add(0.5).to(dtype)
    values = torch.randn(rows, columns).to(E4M3)
    return FloatWeight(values, "e4m3", columns, scale, block, inputs=Inputs(rounding=rounding))


def expect(weight: Weight, x: Tensor) -> Tensor:
    """The product of the dense weight, in float32, and of inputs as they are rounded."""
    return weight.inputs.round(x, keep).float() @ weight.dequantize().float().T.to(x.device)


ways = pytest.mark.parametrize(
    ("block", "rounding"),
    [
        ((32, 64), round_by(by_tensor=True)),
        ((32, 64), round_by()),
        ((1, 64), round_by(by_tensor=True)),
        ((1, 64), round_by()),
    ],
    ids=["tensor by tensor", "tensor by token", "row by tensor", "row by token"],
)


@ways
@dtypes
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_products_are_those_of_the_dense_weight(
    block: tuple[int, int], rounding: DynamicRounding, dtype: torch.dtype, tokens: int
) -> None:
    weight, x = make_float8(32, 64, block, rounding), torch.randn(tokens, 64).to(dtype)
    y = pack(Float8, weight, dtype)(x)
    assert (tuple(y.shape), y.dtype) == ((tokens, 32), dtype)
    if tokens:
        assert measure(y, expect(weight, x)) < 1e-2


layouts = pytest.mark.parametrize("lies", ["by rows", "by columns", "among others"])


def draw(tokens: int, columns: int, dtype: torch.dtype, lies: str) -> Tensor:
    """Random inputs, by rows or not: of one token, what lies by columns has odd strides and counts as contiguous."""
    if lies == "by columns":
        return torch.randn(columns, tokens).to(dtype).T
    return torch.randn(tokens, 2, columns).to(dtype)[:, 1] if lies == "among others" else torch.randn(tokens, columns)


@ways
@dtypes
@layouts
@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("tokens", [1, 5, 16])
def test_the_operator_is_given_what_it_demands(
    block: tuple[int, int], rounding: DynamicRounding, dtype: torch.dtype, tokens: int, lies: str, by_rows: bool
) -> None:
    weight, x = make_float8(32, 64, block, rounding), draw(tokens, 64, dtype, lies).to(dtype)
    kernel = pack(Float8, weight, dtype)
    setattr(kernel, "_by_rows", by_rows)  # noqa: B010
    with Demands() as demands:
        y = kernel(x)
    assert (demands.calls, y.dtype) == ({"aten::_scaled_mm": 1}, dtype)
    assert measure(y, expect(weight, x)) < 1e-2


@pytest.mark.parametrize("by_rows", [True, False])
def test_one_token_of_odd_strides_is_laid_by_rows(by_rows: bool) -> None:
    codes, values = torch.randn(1, 64).to(E4M3).as_strided((1, 64), (1, 1)), torch.randn(32, 64).to(E4M3)
    with Demands():
        y = multiply_scaled(codes, torch.ones(1, 1), values, torch.ones(1, 32), torch.bfloat16, by_rows=by_rows)
    assert measure(y, codes.float() @ values.float().T) < 1e-2


@pytest.mark.parametrize("block", [(32, 64), (1, 64)])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_stored_scales_are_given_as_it_demands(block: tuple[int, int], shape: tuple[int, ...]) -> None:
    inputs = Inputs(rounding=StaticRounding(8, is_float=True), scale=torch.full(shape, 0.01, dtype=torch.bfloat16))
    weight, x = replace(make_float8(32, 64, block, None), inputs=inputs), torch.randn(3, 64).bfloat16()
    with Demands():
        assert measure(pack(Float8, weight, torch.bfloat16)(x), expect(weight, x)) < 1e-2


@layouts
@dtypes
@pytest.mark.parametrize("tokens", [1, 5, 16])
@pytest.mark.parametrize("columns", [128, 512, 640])
def test_blocks_are_given_as_the_operator_demands(tokens: int, columns: int, dtype: torch.dtype, lies: str) -> None:
    weight = make_float8(256, columns, (128, 128), round_by(128))
    kernel, x = pack(BlockFloat8, weight, dtype), draw(tokens, columns, dtype, lies).to(dtype)
    with Demands() as demands:
        y = kernel(x)
    assert (demands.calls, y.dtype) == ({"aten::_scaled_mm_v2": 1}, dtype)
    assert measure(y, expect(weight, x)) < 1e-2


@pytest.mark.parametrize("kernel", [Float8, BlockFloat8])
def test_no_tokens_are_given_to_no_operator(kernel: type[Float8 | BlockFloat8]) -> None:
    weight = make_float8(
        128, 128, (1, 128) if kernel is Float8 else (128, 128), round_by(None if kernel is Float8 else 128)
    )
    with Demands() as demands:
        assert pack(kernel, weight, torch.bfloat16)(torch.randn(0, 128).bfloat16()).shape == (0, 128)
    assert not demands.calls


@pytest.mark.parametrize(
    ("capability", "expected"), [((8, 9), False), ((9, 0), True), ((10, 3), True), ((12, 0), False)]
)
def test_scales_of_rows_are_given_where_torch_is_known_to_take_them(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    pretend_gpu(monkeypatch, capability)
    assert takes_scales_of_rows(CUDA) is expected
    monkeypatch.setattr("sys.platform", "win32")
    assert not takes_scales_of_rows(CUDA)


@ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu])
def test_a_packed_weight_comes_back_as_it_was(
    block: tuple[int, int], rounding: DynamicRounding, dtype: torch.dtype
) -> None:
    weight = make_float8(32, 64, block, rounding, dtype)
    assert is_same(pack(Float8, weight, torch.bfloat16).unpack(), weight)


@pytest.mark.parametrize("columns", [128, 512, 640])
def test_a_weight_in_blocks_comes_back_as_it_was(columns: int) -> None:
    weight = make_float8(256, columns, (128, 128), round_by(128))
    kernel = pack(BlockFloat8, weight, torch.bfloat16)
    assert is_same(kernel.unpack(), weight)
    assert kernel.get_buffer("scale").shape[1] % 4 == 0


@pytest.mark.parametrize("tokens", [4, 8, 300])
@pytest.mark.parametrize("columns", [128, 512, 640])
def test_torch_takes_blocks_for_cuda(tokens: int, columns: int) -> None:
    mode = FakeTensorMode()
    weight = make_float8(256, columns, (128, 128), round_by(128))
    there = pretend_there(pack(BlockFloat8, weight, torch.bfloat16), mode)
    with mode:
        codes = torch.empty(tokens, columns, dtype=E4M3, device=CUDA)
        scale = torch.empty(tokens, columns // 128, device=CUDA)
        held = there.get_buffer("values"), there.get_buffer("scale")
        y = multiply_blocks(codes, scale, *held, torch.bfloat16)
    assert (tuple(y.shape), y.dtype, y.device.type) == ((tokens, 256), torch.bfloat16, "cuda")


@ways
@dtypes
def test_torch_takes_rows_for_cuda(block: tuple[int, int], rounding: DynamicRounding, dtype: torch.dtype) -> None:
    mode = FakeTensorMode()
    there = pretend_there(pack(Float8, make_float8(32, 64, block, rounding), dtype), mode)
    with mode:
        y = there(torch.empty(2, 3, 64, dtype=dtype, device=CUDA))
    assert (tuple(y.shape), y.dtype, y.device.type) == ((2, 3, 32), dtype, "cuda")


MORE = "has more scales than one for each output feature"
NO_ADA = "it needs compute capability 8.9, and this GPU has 8.6"
NO_CUDA = "it needs CUDA 12.9, and torch is built with 12.8"
BLACKWELL = "it ends with compute capability 9.9, and this GPU has 10.0"
ROWS = "24 output and 64 input features are no multiples of 16"
BLOCK_ROWS = "192 output and 128 input features are no multiples of 128"
DIVIDED = replace(make_float8(32, 64, (1, 64), round_by()), divides=True)
TOKENS, BLOCKS = round_by(), round_by(128)


@pytest.mark.parametrize(
    ("weight", "capability", "cuda", "chosen", "reason"),
    [
        (make_float8(32, 64, (1, 64), TOKENS), (8, 9), "12.8", Float8, ""),
        (make_float8(32, 64, (1, 64), TOKENS), (8, 6), "12.8", None, NO_ADA),
        (make_float8(24, 64, (1, 64), TOKENS), (9, 0), "12.8", None, ROWS),
        (make_float8(32, 64, (1, 32), TOKENS), (9, 0), "12.8", None, MORE),
        (make_float8(32, 64, (16, 64), TOKENS), (9, 0), "12.8", None, MORE),
        (DIVIDED, (9, 0), "12.8", None, "its scales are not what sums are times"),
        (make_float8(128, 128, (128, 128), BLOCKS), (9, 0), "12.9", BlockFloat8, ""),
        (make_float8(128, 128, (128, 128), BLOCKS), (9, 0), "12.8", None, NO_CUDA),
        (make_float8(128, 128, (128, 128), BLOCKS), (10, 0), "13.0", None, BLACKWELL),
        (make_float8(192, 128, (128, 128), BLOCKS), (9, 0), "12.9", None, BLOCK_ROWS),
        (make_float8(32, 64, (1, 64), None), (8, 0), "12.8", Upcast, ""),
        (make_float8(32, 64, (1, 32), None), (8, 0), "12.8", None, MORE),
    ],
)  # fmt: skip
def test_a_kernel_is_chosen_or_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch, weight: Weight, capability: tuple[int, int], cuda: str, chosen: object, reason: str
) -> None:
    pretend_gpu(monkeypatch, capability, cuda)
    choice = choose_kernel((Float8, BlockFloat8, Upcast), weight, Case(CUDA, torch.bfloat16))
    assert choice.kernel is chosen
    assert reason in choice.reason


SIGNED = torch.randint(-128, 128, (32, 64), dtype=torch.int8)
BYTES: list[Weight] = [
    IntegerWeight(SIGNED, 8, 64, torch.rand(32, 1), 0, 64),
    IntegerWeight(SIGNED, 8, 64, torch.rand(1, 1).bfloat16(), 0, 64),
    IntegerWeight(SIGNED.view(torch.uint8), 8, 64, torch.rand(32, 1), 128, 64),
    make_float8(32, 64, (1, 64), None),
    make_float8(32, 64, (32, 64), None, torch.bfloat16),
    replace(make_float8(32, 64, (1, 64), None), divides=True),
]


@pytest.mark.parametrize("weight", BYTES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_are_multiplied_as_they_are(weight: Weight, dtype: torch.dtype) -> None:
    case = Case(CUDA, dtype)
    assert Upcast.serves(weight, case)
    assert Upcast.refuse(weight, case) is None
    kernel, x = pack(Upcast, weight, dtype), torch.randn(5, 64).to(dtype)
    assert is_same(kernel.unpack(), weight)
    assert measure(kernel(x), expect(weight, x)) < (1e-5 if {dtype, weight.scale.dtype} == {torch.float32} else 2e-2)


def test_bytes_are_not_multiplied_in_float16() -> None:
    assert Upcast.refuse(BYTES[0], Case(CUDA, torch.float16)) == "sums that are not scaled yet may be beyond float16"
    uneven = IntegerWeight(SIGNED, 8, 64, torch.rand(32, 1), 3, 64)
    assert Upcast.refuse(uneven, Case(CUDA, torch.float32)) == "its zero-points are not all in the middle"


@needs_gpu
@ways
@dtypes
@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_a_gpu_multiplies_rows(
    block: tuple[int, int], rounding: DynamicRounding, dtype: torch.dtype, tokens: int
) -> None:
    weight = make_float8(32, 64, block, rounding)
    _check_on_gpu(Float8, weight, dtype, tokens)


@needs_gpu
@dtypes
@pytest.mark.parametrize("tokens", [1, 16, 300])
@pytest.mark.parametrize("columns", [128, 512, 640])
def test_a_gpu_multiplies_blocks(columns: int, dtype: torch.dtype, tokens: int) -> None:
    _check_on_gpu(BlockFloat8, make_float8(256, columns, (128, 128), round_by(128)), dtype, tokens)


@needs_gpu
@pytest.mark.parametrize("weight", BYTES)
def test_a_gpu_multiplies_bytes(weight: Weight) -> None:
    _check_on_gpu(Upcast, weight, torch.bfloat16, 16)


def _check_on_gpu(kernel: type[Float8 | BlockFloat8 | Upcast], weight: Weight, dtype: torch.dtype, tokens: int) -> None:
    reason = kernel.refuse(weight, Case(CUDA, dtype))
    if reason is not None:
        pytest.skip(reason)
    packed, x = pack(kernel, weight, dtype, "cuda"), torch.randn(tokens, weight.columns, device=CUDA).to(dtype)
    assert is_same(packed.unpack(), weight.to(CUDA))
    assert measure(packed(x), expect(weight, x.cpu()).to(CUDA)) < 2e-2
