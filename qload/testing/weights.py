"""What a method gives kernels, held against what its other hooks compute."""

import pickle
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.torch import Layer
from qload.torch.activations import keep
from qload.torch.floats import decode_e2m1
from qload.torch.kernels import CodebookWeight, FloatWeight, Inputs, IntegerWeight, Rounding, Weight
from qload.torch.pieces import Piece

_CLOSE = 1e-4
"""The tolerance of sums, relative to the greatest."""


def check_weight(layer: Layer, piece: Piece) -> Iterator[str]:
    """What is wrong with the weight that a method gives kernels for a piece of a layer; nothing if it gives none.

    It is the dequantized one bit by bit; with what is done to inputs it computes what the method computes; and codes
    times their scales are the inputs that the method rounds.
    """
    hook = layer.hooks.runtime.get("qload_weight")
    if hook is None:
        return
    piece.agree = keep
    weight = hook(piece)
    if isinstance(weight, str):
        if not weight.strip():
            yield "qload_weight gives no weight, and no reason"
        return
    if not isinstance(weight, IntegerWeight | FloatWeight | CodebookWeight):
        yield f"qload_weight returns {type(weight).__name__}, not a weight or a reason"
        return
    found, expected = weight.dequantize(), layer.hooks.dequantize(piece)
    if not _is_same(found, expected):
        yield "the weight that kernels are given is not the dequantized one"
        return
    yield from _check_product(layer, piece, weight)
    if weight.inputs.rounding is not None:
        yield from _check_rounding(weight.inputs, weight.inputs.rounding, weight.columns)


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Bit by bit: zeros have their signs."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(*(each.contiguous().view(torch.uint8) for each in (first, second)))


def _check_product(layer: Layer, piece: Piece, weight: Weight) -> Iterator[str]:
    x = _make_inputs(weight.columns)
    expected = layer.hooks.apply(piece, x, None)
    rounded = weight.inputs.round(weight.inputs.arrange(x), keep)
    found = F.linear(rounded, replace(weight, inputs=Inputs()).dequantize().to(x.dtype))
    close = max(_CLOSE, torch.finfo(weight.scale.dtype).eps) if weight.scale.itemsize > 1 else _CLOSE
    if not torch.allclose(found, expected, rtol=close, atol=close * float(expected.abs().max())):
        yield "what is done to a kernel's inputs is not what the method does to its own"


def _check_rounding(inputs: Inputs, rounding: Rounding, columns: int) -> Iterator[str]:
    x = inputs.arrange(_make_inputs(columns))
    codes, scales = rounding(x, inputs.scale, keep)
    if codes.dtype != rounding.dtype:
        yield f"the codes of inputs are {codes.dtype}, not {rounding.dtype}"
        return
    found, expected = _multiply(codes, scales, rounding.group), rounding.fake(x, inputs.scale, keep)
    if not torch.allclose(found, expected, rtol=_CLOSE, atol=0):
        yield "the codes of inputs times their scales are not the inputs as they are rounded"
    if pickle.loads(pickle.dumps(rounding)) != rounding:
        yield "the rounding of inputs is another one once it has been pickled"


def _multiply(codes: Tensor, scales: Tensor, group: int | None) -> Tensor:
    """The products, rounded to the scales' dtype where that is of 16 bits."""
    if codes.dtype == torch.uint8:
        codes = decode_e2m1(torch.stack((codes & 15, codes >> 4), -1).flatten(-2), torch.float32)
    spread = scales.repeat_interleave(group, -1)[..., : codes.shape[-1]] if group is not None else scales
    product = codes.to(torch.float32) * spread.to(torch.float32)
    return product.to(scales.dtype).to(torch.float32) if scales.itemsize > 1 else product


def _make_inputs(columns: int) -> Tensor:
    """Tokens of unlike sizes, one of them nothing."""
    sizes = torch.tensor([[1.0], [0.0], [30.0]])
    return torch.randn(3, columns, generator=torch.Generator().manual_seed(4)) * sizes
