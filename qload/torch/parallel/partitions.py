"""Weights that are divided over the ranks: made alike at every number of ranks, and gathered again.

With a `stride` the whole is cut into ranks * stride chunks, and rank r has the chunks r, r + ranks, r + 2 * ranks and
so on: its share of each of `stride` weights that lie one after another.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

from qload.errors import ParallelError
from qload.torch.parallel.groups import Group


class Initializer(Protocol):
    """What fills a tensor in place from a generator: those of `torch.nn.init` do."""

    def __call__(self, tensor: Tensor, *, generator: Generator) -> object: ...


def make_share(
    shape: Sequence[int],
    group: Group,
    initializer: Initializer,
    generator: Generator,
    *,
    dim: int = 0,
    stride: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """This rank's share along `dim` of a weight of that whole `shape`, which every rank fills, and then lets go of.

    The whole is the same at every number of ranks whose generators are in the same state. On meta nothing is filled.
    Raises ParallelError where the weight cannot be divided evenly.
    """
    if torch.device(device).type == "meta":
        return take_share(torch.empty(*shape, dtype=dtype, device=device), group, dim, stride).clone()
    whole = fill_whole(shape, initializer, generator, dtype)
    return take_share(whole, group, dim, stride).to(device, dtype, copy=True)


def fill_whole(shape: Sequence[int], initializer: Initializer, generator: Generator, dtype: torch.dtype) -> Tensor:
    """A whole weight on the generator's device, in float32 where `dtype` is narrower: rounding comes last."""
    whole = torch.empty(*shape, dtype=torch.promote_types(dtype, torch.float32), device=generator.device)
    with torch.no_grad():
        initializer(whole, generator=generator)
    return whole


def take_share(whole: Tensor, group: Group, dim: int = 0, stride: int = 1) -> Tensor:
    """This rank's share of a whole tensor. Raises ParallelError where it cannot be divided evenly."""
    _check(whole.shape[dim], whole, group, dim, stride)
    return torch.cat(whole.chunk(group.size * stride, dim)[group.rank :: group.size], dim)


def gather_shares(share: Tensor, group: Group, dim: int = 0, stride: int = 1) -> Tensor:
    """The whole tensor of which every rank has such a share, on every rank.

    Raises ParallelError where the share is not made of `stride` chunks, or the ranks have no process group.
    """
    _check(share.shape[dim] * group.size, share, group, dim, stride)
    chunks = group.gather(share, dim).chunk(group.size * stride, dim)
    return torch.cat([chunks[number] for place in range(stride) for number in range(place, len(chunks), stride)], dim)


def _check(length: int, tensor: Tensor, group: Group, dim: int, stride: int) -> None:
    if stride < 1 or length % (group.size * stride):
        raise ParallelError(
            "a weight cannot be divided evenly over the ranks",
            where=f"dimension {dim} of {list(tensor.shape)}, stride {stride}",
            expected=f"a multiple of {group.size * max(1, stride)}",
            found=str(length),
        )
