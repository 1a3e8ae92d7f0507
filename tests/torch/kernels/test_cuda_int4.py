"""The layout of torch's int4 kernel on CUDA, read as its threads read it; its products, where there is a GPU."""

import pytest
import torch
from gpus import CUDA, is_same, make_int4, measure, needs_gpu, pack, pretend_gpu
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qload.torch.kernels import Case, IntegerWeight, Weight
from qload.torch.kernels.int4_cuda import CudaInt4

sizes = pytest.mark.parametrize(
    ("rows", "columns", "group"), [(8, 32, 32), (16, 192, 64), (24, 256, 128), (8, 512, 256), (32, 384, 384)]
)


def read_as_threads_do(packed: Tensor) -> Tensor:
    """The values [rows, columns] that the tensor cores are handed.

    A word's h-th pair of operands is in bits 4 h and 4 h + 16 on; the first two pairs are of one tile, the others of
    the next. Of mma.m16n8k16's operand B, thread t holds column t / 4, and of its rows 2 (t mod 4) and the next one,
    and the same 8 further on. Source: the PTX ISA, 9.7.14, "Matrix Fragments for mma.m16n8k16"; ATen's
    native/cuda/int4mm.cu, convert_i4x8_to_bf16x2x4.
    """
    blocks, words, threads, loads = packed.shape
    found = torch.full((blocks * 8, words * loads * 32), -1)
    for block, word, thread, load in torch.cartesian_prod(*map(torch.arange, (blocks, words, threads, loads))).tolist():
        bits = int(packed[block, word, thread, load]) & 0xFFFFFFFF
        for pair in range(4):
            first = ((word * loads + load) * 2 + pair // 2) * 16 + (thread % 4) * 2 + pair % 2 * 8
            found[block * 8 + thread // 4, first] = bits >> 4 * pair & 15
            found[block * 8 + thread // 4, first + 1] = bits >> 4 * pair + 16 & 15
    return found


@sizes
def test_each_thread_finds_its_values(rows: int, columns: int, group: int) -> None:
    weight = make_int4(rows, columns, group)
    packed = pack(CudaInt4, weight, torch.bfloat16)
    assert torch.equal(read_as_threads_do(packed.get_buffer("values")), weight.spread().long())


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
