"""The weights of loaded layers, as their methods mean them."""

import torch
from torch import Tensor

from qload.torch.layers import Layer


def dequantize(layer: Layer, *, dtype: torch.dtype | None = None) -> Tensor:
    """The weight of a layer, [out_features, in_features], or [experts, ...] of that; of this rank's share.

    In the dtype of the stored scales, as its producer's decoder computes it; with `dtype`, the scales are cast
    to it first, as a runtime in that dtype does.
    """
    return layer.dequantize(dtype)
