"""The weights of loaded layers, as their methods mean them."""

import torch
from torch import Tensor

from qload.errors import ModelError
from qload.torch.layers import Layer


def dequantize(layer: Layer, *, dtype: torch.dtype | None = None) -> Tensor:
    """The weight of a layer, [out_features, in_features], or [experts, ...] of that; of this rank's share.

    In the dtype of the stored scales, as its producer's decoder computes it; with `dtype`, the scales are cast
    to it first, as a runtime in that dtype does. Raises ModelError for a module that is not a layer of qload's.
    """
    if not isinstance(layer, Layer):
        raise ModelError(
            "only qload's layers can be dequantized",
            found=type(layer).__name__,
            remedy="take the layer out of a model that qload.load returned, as model.get_submodule(name)",
        )
    return layer.dequantize(dtype)
