"""Products of integers of eight bits, as torch's operator for CUDA demands to be given them."""

import pytest
import torch
from gpus import CUDA, measure, needs_gpu, pack, pretend_gpu
from operators import Demands
from torch import Tensor

from qload.torch.activations import keep
from qload.torch.kernels import Case, Inputs, IntegerWeight, int8_dynamic
from qload.torch.kernels.int8_dynamic import Int8Dynamic
from qload.torch.kernels.roundings import DynamicRounding


def make_int8(rows: int, columns: int) -> IntegerWeight:
    values = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    inputs = Inputs(rounding=DynamicRounding(8, is_float=False))
    return IntegerWeight(values, 8, columns, torch.rand(rows, 1).add(0.5), 0, columns, inputs)


def expect(weight: IntegerWeight, x: Tensor) -> Tensor:
    """The product of the dense weight, in float32, and of inputs as they are rounded."""
    return weight.inputs.round(x, keep).float() @ weight.dequantize().float().T


@pytest.mark.parametrize("tokens", [0, 1, 16, 17, 31, 40])
@pytest.mark.parametrize("lies", ["by rows", "by columns"])
def test_the_operator_is_given_what_it_demands(tokens: int, lies: str, monkeypatch: pytest.MonkeyPatch) -> None:
    least = int8_dynamic._find_least(CUDA)
    monkeypatch.setattr(int8_dynamic, "_find_least", lambda device: least)
    weight = make_int8(24, 64)
    x = torch.randn(64, tokens).bfloat16().T if lies == "by columns" else torch.randn(tokens, 64).bfloat16()
    with Demands() as demands:
        y = pack(Int8Dynamic, weight, torch.bfloat16)(x)
    assert demands.calls == {"aten::_int_mm": 1}
    assert (tuple(y.shape), y.dtype) == ((tokens, 24), torch.bfloat16)
    if tokens:
        assert measure(y, expect(weight, x)) < 1e-2


def test_odd_features_are_not_given_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (8, 0))
    reason = Int8Dynamic.refuse(make_int8(20, 64), Case(CUDA, torch.bfloat16))
    assert reason == "20 x 64 features are no multiples of 8"


@needs_gpu
@pytest.mark.parametrize("tokens", [0, 1, 16, 17, 40, 300])
@pytest.mark.parametrize("lies", ["by rows", "by columns"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_gpu_multiplies_integers(tokens: int, lies: str, dtype: torch.dtype) -> None:
    weight = make_int8(64, 128)
    x = (
        torch.randn(128, tokens, device=CUDA).to(dtype).T
        if lies == "by columns"
        else torch.randn(tokens, 128).to(dtype)
    )
    y = pack(Int8Dynamic, weight, dtype, "cuda")(x.to(CUDA))
    assert y.shape == (tokens, 64)
    if tokens:
        assert measure(y.cpu(), expect(weight, x.cpu())) < 1e-2
