"""Whether a method gives kernels the weight that it dequantizes to itself."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qload.hookspecs import LayerPiece
from qload.torch.activations import keep
from qload.torch.arithmetic import unpack
from qload.torch.floats import decode_e2m1
from qload.torch.kernels import Rounding, Weight
from qload.torch.layers import Layer

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_weights(layer: Layer) -> Iterator[str]:
    """What of the forms that the method gives of a loaded layer's pieces is not what its other hooks say."""
    hook = layer.hooks.runtime.get("qload_weight")
    if hook is None or not layer.computes:
        return
    for piece in layer.pieces(None if layer.local.experts is None else 0):
        weight: Weight | str = hook(piece)
        if isinstance(weight, str):
            continue
        if not is_same(weight.dequantize(), layer.hooks.dequantize(piece)):
            yield "the weight for kernels is not the dequantized one, bit by bit"
        if weight.inputs.rounding is not None:
            yield from _check_rounding(weight.inputs.rounding, weight.inputs.scale, piece)


def is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of floats have the same shape, dtype and bits."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    code = _BITS[first.itemsize]
    return torch.equal(first.contiguous().view(code), second.contiguous().view(code))


def _check_rounding(rounding: Rounding, scale: Tensor | None, piece: LayerPiece) -> Iterator[str]:
    """Codes times their scales are what is computed with where there are no codes."""
    x = torch.randn(3, piece.in_features, generator=torch.Generator().manual_seed(4))
    x *= torch.linspace(1, 3, piece.in_features)
    fake = rounding.fake(x, scale, keep)
    codes, scales = rounding(x, scale, keep)
    if codes.dtype != rounding.dtype:
        yield f"the codes of inputs are {codes.dtype}, and are said to be {rounding.dtype}"
    values = decode_e2m1(unpack(codes, 4, x.shape[1]), x.dtype) if codes.dtype == torch.uint8 else codes.to(x.dtype)
    spread = scales.float() if scales.dim() < 2 else _spread(scales.float(), rounding.group, x.shape[1])
    if not torch.allclose(values * spread, fake, rtol=1e-5, atol=1e-6 * float(fake.abs().max())):
        yield "the codes of inputs times their scales are not what it rounds inputs to"


def _spread(scales: Tensor, group: int | None, columns: int) -> Tensor:
    return scales.repeat_interleave(group or columns, -1)[:, :columns]
