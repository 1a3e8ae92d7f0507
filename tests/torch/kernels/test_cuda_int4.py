"""The layout of torch's int4 kernel on CUDA, read as its threads read it; its products, where there is a GPU."""

import pytest
import torch
from gpus import CUDA, is_same, make_int4, measure, needs_gpu, pack, pretend_gpu
from operators import Demands, read_as_threads_do
from torch._subclasses.fake_tensor import FakeTensorMode

from qload.torch.kernels import Case, IntegerWeight, Weight
from qload.torch.kernels.int4_cuda import CudaInt4

sizes = pytest.mark.parametrize(
    ("rows", "columns", "group"), [(8, 32, 32), (16, 192, 64), (24, 256, 128), (8, 512, 256), (32, 384, 384)]
)


@sizes
def test_each_thread_finds_its_values(rows: int, columns: int, group: int) -> None:
    weight = make_int4(rows, columns, group)
    packed = pack(CudaInt4, weight, torch.bfloat16)
    assert torch.equal(read_as_threads_do(packed.get_buffer("values")), weight.spread().long())


@sizes
@pytest.mark.parametrize("tokens", [1, 5, 256])
def test_the_operator_is_given_what_it_demands(rows: int, columns: int, group: int, tokens: int) -> None:
    weight = make_int4(rows, columns, group)
    kernel, x = pack(CudaInt4, weight, torch.bfloat16), torch.randn(columns, tokens).bfloat16().T
    with Demands() as demands:
        y = kernel(x)
    assert demands.calls == {"aten::_weight_int4pack_mm": 1}
    assert measure(y, x.float() @ weight.dequantize().float().T) < 1e-2


@pytest.mark.parametrize("tokens", [0, 257])
def test_few_tokens_and_no_others_are_given_to_it(tokens: int) -> None:
    kernel = pack(CudaInt4, make_int4(8, 64, 32), torch.bfloat16)
    with Demands() as demands:
        assert kernel(torch.randn(tokens, 64).bfloat16()).shape == (tokens, 8)
    assert not demands.calls


@sizes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_packed_weight_comes_back_as_it_was(rows: int, columns: int, group: int, dtype: torch.dtype) -> None:
    weight = make_int4(rows, columns, group, dtype)
    assert is_same(pack(CudaInt4, weight, torch.bfloat16).unpack(), weight)


def test_values_in_twos_complement_come_back_as_they_were() -> None:
    values = torch.randint(-8, 8, (16, 64), dtype=torch.int8)
    weight = IntegerWeight(values, 4, 64, torch.rand(16, 2).bfloat16(), 0, 32)
    assert is_same(pack(CudaInt4, weight, torch.bfloat16).unpack(), weight)


@sizes
def test_torch_declares_the_same_shapes(rows: int, columns: int, group: int) -> None:
    weight = make_int4(rows, columns, group)
    values = pack(CudaInt4, weight, torch.bfloat16).get_buffer("values")
    tiles = values.shape[-1] * 2
    theirs = torch.ops.aten._convert_weight_to_int4pack(weight.values.to("meta"), tiles)
    assert (theirs.shape, theirs.dtype) == (values.shape, values.dtype)
    with FakeTensorMode():
        y = pack(CudaInt4, make_int4(rows, columns, group), torch.bfloat16)(torch.empty(3, 5, columns).bfloat16())
    assert (tuple(y.shape), y.dtype) == ((3, 5, rows), torch.bfloat16)


@pytest.mark.parametrize(
    ("weight", "dtype", "reason"),
    [
        (make_int4(8, 64, 32), torch.float16, "it multiplies bfloat16, and the layer computes in float16"),
        (make_int4(12, 64, 32), torch.bfloat16, "12 output features are no multiple of 8"),
        (make_int4(8 * 65536, 32, 32), torch.bfloat16, "524288 output features are more than 524280"),
        (make_int4(8, 64, 16), torch.bfloat16, "groups of 16 columns are no multiple of 32, 64, 128, 256"),
    ],
)
def test_it_says_what_it_cannot_multiply(
    monkeypatch: pytest.MonkeyPatch, weight: Weight, dtype: torch.dtype, reason: str
) -> None:
    pretend_gpu(monkeypatch, (8, 0))
    assert CudaInt4.refuse(weight, Case(CUDA, dtype)) == reason


def test_it_needs_tensor_cores_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, case = make_int4(8, 64, 32), Case(CUDA, torch.bfloat16)
    pretend_gpu(monkeypatch, (8, 0))
    assert CudaInt4.serves(weight, case)
    assert CudaInt4.refuse(weight, case) is None
    pretend_gpu(monkeypatch, (7, 5))
    assert CudaInt4.refuse(weight, case) == "it needs compute capability 8.0, and this GPU has 7.5"
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert CudaInt4.refuse(weight, case) == "it is written for NVIDIA's GPUs"


@needs_gpu
@sizes
@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_products_are_those_of_the_dense_weight(rows: int, columns: int, group: int, tokens: int) -> None:
    weight = make_int4(rows, columns, group)
    assert CudaInt4.refuse(weight, Case(CUDA, torch.bfloat16)) is None
    kernel = pack(CudaInt4, weight, torch.bfloat16, "cuda")
    assert is_same(kernel.unpack(), weight.to(CUDA))
    x = torch.randn(tokens, columns, dtype=torch.bfloat16, device=CUDA)
    expected = x.float() @ weight.dequantize().float().to(CUDA).T
    assert measure(kernel(x), expected) < 1e-2
