"""Quantizes as hqq does: zero-points are moved until the whole weight's error grows.

Source of the arithmetic: hqq's `Quantizer.quantize`, `optimize_weights_proximal_legacy` and `BitPack`, in float32 on
every device. The error is added up in float64, where hqq's mean of as many numbers is rounded to float32.
"""

import torch
from torch import Tensor

from qload.torch.arithmetic import pack_striped
from qload.torch.strips import STRIP
from qload_hqq import HqqScheme

_STEPS, _NORM, _WEIGHT = 20, 0.7, 10.0
"""hqq's `iters`, `lp_norm` and `beta`."""


def quantize(weight: Tensor, scheme: HqqScheme) -> dict[str, Tensor]:
    """The words, scales and zero-points of a weight. Raises ValueError where groups do not divide it."""
    groups = _group(weight, scheme)
    greatest = round(2**scheme.bits - 1)
    scale, zero = _choose_scales(groups, scheme, greatest)
    if scheme.optimized:
        zero = _optimize(groups, scale, zero, scheme.axis, greatest)
    values = torch.empty(groups.shape, dtype=torch.uint8, device=weight.device)
    for strip, *made in _split((groups, scale, zero, values), scheme.axis):
        made[2].copy_(_round(strip.float(), made[0], made[1], greatest))
    return {"W_q": _pack(values, scheme), **_store(1 / scale, zero, scheme)}


def _group(weight: Tensor, scheme: HqqScheme) -> Tensor:
    """The weight with a group to each row, or along axis 0 to each column."""
    group = scheme.group_size
    if group is None:
        return weight
    if weight.numel() % group:
        raise ValueError(f"{weight.shape[0]} x {weight.shape[1]} are not whole groups of {group}")
    return weight.reshape(-1, group) if scheme.axis == 1 else weight.reshape(group, -1)


def _choose_scales(groups: Tensor, scheme: HqqScheme, greatest: int) -> tuple[Tensor, Tensor]:
    """What values are multiplied by, and the zero-point, for each group."""
    low, high = groups.float().aminmax(dim=scheme.axis, keepdim=True)
    extent = high - low
    scale = torch.where(extent <= 1e-4, 1, greatest / extent).clamp_max(2e4)
    zero = -low * scale
    return scale, zero.round() if scheme.rounded else zero


def _optimize(groups: Tensor, scale: Tensor, zero: Tensor, axis: int, greatest: int) -> Tensor:
    """The zero-points after the first step at which the error of the whole weight does not fall."""
    zero, best = zero.clone(), torch.tensor(torch.inf, dtype=torch.float64, device=groups.device)
    for _ in range(_STEPS):
        error = torch.zeros((), dtype=torch.float64, device=groups.device)
        for strip, factor, moved in _split((groups, scale, zero), axis):
            dense = strip.float()
            values = _round(dense, factor, moved, greatest)
            off = dense - (values - moved) / factor
            error += off.abs().sum(dtype=torch.float64)
            moved.copy_((values - (dense - _shrink(off)) * factor).mean(axis, keepdim=True))
        if groups.is_meta or not error < best:
            break
        best = error
    return zero


def _round(dense: Tensor, scale: Tensor, zero: Tensor, greatest: int) -> Tensor:
    return (dense * scale + zero).round_().clamp_(0, greatest)


def _shrink(error: Tensor) -> Tensor:
    """The proximal operator of the norm."""
    size = error.abs()
    return (size - (1 / _WEIGHT) * size.pow(_NORM - 1)).clamp_min_(0).mul_(error.sign())


def _split(tensors: tuple[Tensor, ...], axis: int) -> list[tuple[Tensor, ...]]:
    """Strips of whole groups of each tensor."""
    count = max(1, STRIP // max(1, tensors[0].shape[axis]))
    return list(zip(*(each.split(count, 1 - axis) for each in tensors), strict=True))


def _pack(values: Tensor, scheme: HqqScheme) -> Tensor:
    """Raises ValueError for groups that do not fill words: hqq has rows to fill up in words of 32 bits alone."""
    if scheme.bits != 3 and len(values) % scheme.count:
        raise ValueError(f"{len(values)} rows of values do not fill words of {scheme.count}")
    return pack_striped(values, scheme.places, torch.int32 if scheme.bits == 3 else torch.uint8)


def _store(scale: Tensor, zero: Tensor, scheme: HqqScheme) -> dict[str, Tensor]:
    if scheme.joined:
        return {"zero_scale": torch.stack((zero, scale))}
    return {"scale": scale, "zero": zero}
