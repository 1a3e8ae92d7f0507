"""The parts that blocks are made of."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qload.torch.arithmetic import scale_groups


class Parts(NamedTuple):
    """Blocks as (values - zero) * scale + shift: values of `bits` bits [n, elements], scale and shift [n, groups].

    Scale and shift are float32. Values are uint8 or int8; those of four bits lie as they were asked for.
    """

    values: Tensor
    bits: int
    scale: Tensor
    zero: int = 0
    shift: Tensor | None = None

    def decode(self) -> Tensor:
        """What they stand for, float32 [n, elements]."""
        return scale_groups(
            self.values, self.scale, self.zero, self.values.shape[1] // self.scale.shape[1], shift=self.shift
        )


Lay = Callable[[Tensor, int], Tensor]
"""Puts values of four bits, of which so many bytes hold as many low ones and then as many high ones, in their order."""


def cut(blocks: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """The parts of each block, one after another, of so many bytes."""
    parts: tuple[Tensor, ...] = blocks.split(sizes, -1)
    return parts


def half(part: Tensor) -> Tensor:
    """Two bytes as a float16, in float32."""
    return part.contiguous().view(torch.float16).float()


def planes(part: Tensor, bits: int, width: int | None = None) -> Tensor:
    """Values of a few bits in planes: every `width` bytes hold so many values in their low bits, then as many above.

    part [n, bytes] into uint8 [n, bytes * 8 / bits].
    """
    width = part.shape[-1] if width is None else width
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=part.device)
    grouped = part.reshape(part.shape[0], -1, 1, width) >> shifts[:, None]
    return (grouped & ((1 << bits) - 1)).flatten(1)


def lay_out(part: Tensor, width: int) -> Tensor:
    """Values of four bits in planes of so many bytes, one to a byte."""
    return planes(part, 4, width)


def lay_in_pairs(part: Tensor, width: int) -> Tensor:
    """Values of four bits in planes of so many bytes, two to a byte, the first one low: uint8, of part's shape."""
    grouped = part.reshape(part.shape[0], -1, width)
    even, odd = grouped[..., ::2], grouped[..., 1::2]
    return torch.stack((even & 15 | odd << 4, even >> 4 | odd & 0xF0), 2).flatten(1)


def bits(part: Tensor) -> Tensor:
    """Every bit of each byte, low ones first: [..., bytes] into uint8 [..., bytes * 8]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=part.device)
    return ((part.unsqueeze(-1) >> shifts) & 1).flatten(-2)


def nibbles(part: Tensor) -> Tensor:
    """The low and the high half of each byte, side by side: [..., bytes] into uint8 [..., bytes * 2]."""
    return torch.stack([part & 15, part >> 4], -1).flatten(-2)


def words(part: Tensor, size: int) -> Tensor:
    """Little-endian words of two or four bytes, as int64."""
    whole = part.reshape(*part.shape[:-1], -1, size).long()
    return sum((whole[..., place] << 8 * place for place in range(1, size)), whole[..., 0])


def spread(scale: Tensor, values: Tensor) -> Tensor:
    """scale * values, with a scale [n, groups] for each of the values' groups, [n, elements]."""
    grouped: Tensor = values.float().unflatten(1, (scale.shape[1], -1))
    return (scale.unsqueeze(-1) * grouped).flatten(1)
