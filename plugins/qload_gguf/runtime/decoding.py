"""Turns rows of blocks into values, in float32, as gguf-py computes them."""

from collections.abc import Callable

import torch
from torch import Tensor

from qload_gguf.runtime import codebooks, microscaling, plain, superblocks, ternary
from qload_gguf.runtime.pieces import Lay, Parts, lay_out
from qload_gguf.types import BY_NAME

FOUR_BITS: dict[str, Callable[[Tensor, Lay], Parts]] = {**plain.FOUR_BITS, **superblocks.FOUR_BITS}
OTHERS: dict[str, Callable[[Tensor], Parts]] = {**plain.OTHERS, **superblocks.OTHERS, **ternary.OTHERS}
"""For each type of integers, what takes blocks [n, bytes] apart."""
DECODERS: dict[str, Callable[[Tensor], Tensor]] = {**microscaling.DECODERS, **codebooks.DECODERS}
"""For each other type, what turns blocks [n, bytes] into values [n, elements]."""


def decode(rows: Tensor, name: str) -> Tensor:
    """Rows of blocks of that type [rows, bytes] as float32 [rows, elements]."""
    block = BY_NAME[name]
    count = rows.shape[-1] // block.nbytes
    if not rows.numel():
        return rows.new_empty((rows.shape[0], count * block.elements), dtype=torch.float32)
    blocks = rows.reshape(-1, block.nbytes)
    parts = split(blocks, name, lay_out)
    dense = DECODERS[name](blocks) if parts is None else parts.decode()
    return dense.reshape(rows.shape[0], count * block.elements)


def split(blocks: Tensor, name: str, lay: Lay) -> Parts | None:
    """Blocks [n, bytes] of that type as integers and their scales; None where they are none."""
    if name in FOUR_BITS:
        return FOUR_BITS[name](blocks, lay)
    return OTHERS[name](blocks) if name in OTHERS else None
