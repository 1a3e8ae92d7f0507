"""torch's grouped products as GPUs have them, on the host: they ask for as much, and leave as much as it was."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

_MOST = 1024


def be_strict(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put strict stand-ins in place of the operators; the names of those that were called."""
    called = list[str]()

    def multiply(x: Tensor, weight: Tensor, *, offs: Tensor) -> Tensor:
        called.append("grouped_mm")
        assert x.dtype == weight.dtype == torch.bfloat16
        return _multiply(x, weight, offs)

    def multiply_scaled(
        x: Tensor, weight: Tensor, scale: Tensor, factors: Tensor, *, offs: Tensor, out_dtype: torch.dtype
    ) -> Tensor:
        called.append("scaled_grouped_mm")
        assert x.dtype == weight.dtype == torch.float8_e4m3fn
        assert out_dtype == torch.bfloat16
        assert x.stride(1) == 1
        assert weight.stride(1) == 1
        assert all(size % 16 == 0 for size in (x.shape[1], *weight.shape[1:]))
        assert scale.dtype == factors.dtype == torch.float32
        assert tuple(scale.shape) == (len(x),)
        assert scale.is_contiguous()
        assert tuple(factors.shape) == (len(weight), weight.shape[2])
        assert factors.stride(1) == 1
        return _multiply(x, weight, offs, scale, factors)

    monkeypatch.setattr(torch, "_grouped_mm", multiply)
    monkeypatch.setattr(torch, "_scaled_grouped_mm", multiply_scaled)
    return called


def _multiply(
    x: Tensor, weight: Tensor, ends: Tensor, scale: Tensor | None = None, factors: Tensor | None = None
) -> Tensor:
    """What GroupedMMUtils.h asks for; and rows that no group has are not written, which here are no numbers."""
    assert (x.dim(), weight.dim(), ends.dim()) == (2, 3, 1)
    assert x.shape[1] == weight.shape[1]
    assert ends.dtype == torch.int32
    assert 0 < len(ends) == len(weight) < _MOST
    assert len(x), "what no tokens come to was not settled"
    for each in (x, weight):
        assert each.data_ptr() % 16 == 0
        strides = sorted(each.stride()[-2:])
        assert strides[0] == 1
        assert strides[1] * each.itemsize % 16 == 0
        assert strides[1] >= each.shape[-1 if each.stride(-1) == 1 else -2]
    y = torch.full((len(x), weight.shape[2]), torch.nan, dtype=torch.float64)
    bounds = [0, *ends.tolist()]
    assert bounds == sorted(bounds)
    assert bounds[-1] <= len(x)
    for expert, (start, stop) in enumerate(pairwise(bounds)):
        y[start:stop] = x[start:stop].double() @ weight[expert].double()
        if scale is not None and factors is not None:
            y[start:stop] *= scale[start:stop, None].double() * factors[expert].double()
    return y.to(torch.bfloat16)
