"""Turns rows of blocks into values, in float32, as gguf-py computes them."""

from collections.abc import Callable

import torch
from torch import Tensor

from qload_gguf.runtime import codebooks, microscaling, plain, superblocks, ternary
from qload_gguf.types import BY_NAME

DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    **plain.DECODERS,
    **superblocks.DECODERS,
    **ternary.DECODERS,
    **microscaling.DECODERS,
    **codebooks.DECODERS,
}
"""For each type, what turns blocks [n, bytes] into values [n, elements]."""


def decode(rows: Tensor, name: str) -> Tensor:
    """Rows of blocks of that type [rows, bytes] as float32 [rows, elements]."""
    block = BY_NAME[name]
    count = rows.shape[-1] // block.nbytes
    if not rows.numel():
        return rows.new_empty((rows.shape[0], count * block.elements), dtype=torch.float32)
    return DECODERS[name](rows.reshape(-1, block.nbytes)).reshape(rows.shape[0], count * block.elements)
