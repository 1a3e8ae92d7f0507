"""What tests of kernels for GPUs share: weights to multiply by, and a GPU that is not there."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from qload.torch.kernels import Case, IntegerWeight, Kernel, Weight

CUDA = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cuda: str = "12.9") -> None:
    """Let kernels that ask find a GPU of that capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", None)


def make_int4(rows: int, columns: int, group: int, dtype: torch.dtype = torch.bfloat16) -> IntegerWeight:
    """Random values in pairs, with scales and zero-points of each group."""
    values = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8)
    scale = torch.rand(rows, columns // group).mul(0.1).add(0.01).to(dtype)
    return IntegerWeight(values, 4, columns, scale, torch.randint(0, 16, tuple(scale.shape), dtype=torch.uint8), group)


def pack(kernel: type[Kernel], weight: Weight, dtype: torch.dtype, device: str = "cpu") -> Kernel:
    """The weight packed by a kernel wherever it may be, so that what is no operator's can be held on the host."""
    return kernel([weight.to(torch.device(device))], Case(torch.device(device), dtype))


def pretend_there(kernel: Kernel, mode: FakeTensorMode) -> Kernel:
    """The kernel with its tensors on a GPU that is not there."""
    for name, buffer in list(kernel.named_buffers()):
        setattr(kernel, name, FakeTensor(mode, buffer.to("meta"), CUDA))
    return kernel


def is_same(first: Weight, second: Weight, dtype: torch.dtype = torch.float32) -> bool:
    """Whether two weights are the same, bit by bit, made dense."""
    left, right = first.dequantize(), second.dequantize()
    return left.dtype == right.dtype and torch.equal(left.to(dtype), right.to(dtype))


def measure(y: Tensor, expected: Tensor) -> float:
    """The error, relative to the norm."""
    return float((y.float() - expected.float()).norm() / expected.float().norm())
