"""LLM.int8(): rows of int8, and inputs of int8 but for the features that are too great for it.

Source: bitsandbytes' `int8_vectorwise_dequant`, `int8_vectorwise_quant` and `int8_mixed_scaled_mm`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.hookspecs import LayerPiece
from qload.torch.activations import Agree, keep
from qload.torch.kernels import Inputs, IntegerWeight

GREATEST = 127


@dataclass(frozen=True, slots=True)
class Int8Rounding:
    """To int8 with a scale for each token, but for the features that reach the threshold, which are left as they are.

    Where there are such features, codes are what is made of x, float32, and no kernel multiplies these as they are.
    """

    threshold: float

    @property
    def dtype(self) -> torch.dtype:
        return torch.int8 if self.threshold == 0 else torch.float32

    @property
    def group(self) -> None:
        return None

    @property
    def is_static(self) -> bool:
        return False

    def __call__(self, x: Tensor, scale: Tensor | None, agree: Agree) -> tuple[Tensor, Tensor]:
        if self.threshold:
            return self.fake(x, scale, agree).float(), torch.ones(len(x), 1, device=x.device)
        steps, found = quantize(x, find_outliers(x, 0), agree)
        return steps.to(torch.int8), found / GREATEST

    def fake(self, x: Tensor, scale: Tensor | None, agree: Agree) -> Tensor:  # noqa: ARG002
        outliers = find_outliers(x, self.threshold)
        steps, found = quantize(x, outliers, agree)
        return torch.where(outliers.any(0), x, (steps * (found / GREATEST)).to(x.dtype))


def find_weight(layer: LayerPiece) -> IntegerWeight:
    """The weight for kernels: what is times a row's greatest magnitude, and then over 127."""
    inputs = Inputs(rounding=Int8Rounding(layer.scheme.threshold)) if layer.quantize_activations else Inputs()
    scale = layer.row_scale.float()[:, None]
    columns, share = layer.in_features, torch.tensor(1 / GREATEST, device=scale.device)
    return IntegerWeight(layer.weight_quantized, 8, columns, scale, 0, columns, inputs, whole=share)


def dequantize(values: Tensor, row_scale: Tensor) -> Tensor:
    """The weight in float32: a row's scale is its greatest magnitude."""
    return values * row_scale.float()[:, None] * (1 / GREATEST)


def multiply(layer: LayerPiece, x: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times the weight, both in int8, in x's dtype.

    A feature that reaches the threshold in any token is left as it is in all of them, and meets the weight made dense.
    """
    values, row_scale = layer.weight_quantized, layer.row_scale
    tokens = x.reshape(-1, x.shape[-1])
    outliers = find_outliers(tokens, layer.scheme.threshold)
    quantized, scale = quantize(tokens, outliers, layer.agree)
    y = F.linear(quantized, values.float()) * (scale * row_scale.float() * (1 / GREATEST**2))
    y = (y if bias is None else y + bias).to(x.dtype)
    columns = outliers.any(0).nonzero().squeeze(-1)
    if len(columns):
        dense = dequantize(values[:, columns], row_scale).to(x.dtype)
        y = y.addmm(tokens[:, columns], dense.T)
    return y.reshape(*x.shape[:-1], -1)


def find_outliers(tokens: Tensor, threshold: float) -> Tensor:
    """Which entries reach the threshold, in float16 as bitsandbytes sees them; none where it is zero."""
    if threshold == 0:
        return torch.zeros_like(tokens, dtype=torch.bool)
    return tokens.half().abs() >= threshold


def quantize(tokens: Tensor, outliers: Tensor, agree: Agree = keep) -> tuple[Tensor, Tensor]:
    """Tokens as whole numbers in float32, features with outliers as zeros; and the greatest magnitude of each."""
    inliers = tokens.half().masked_fill(outliers, 0).float()
    scale = agree(inliers.abs().amax(-1, keepdim=True))
    rounded = (inliers * (GREATEST / scale)).nan_to_num(0).round()
    return rounded.masked_fill(outliers.any(0), 0), scale
