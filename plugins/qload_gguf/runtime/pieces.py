"""The parts that blocks are made of."""

import torch
from torch import Tensor


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
