"""What only the data of a tensor shows: scales that are no numbers, indices that point nowhere, other settings."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qload.declare import ParameterKind
from qload.findings import Finding, report

Bounds = tuple[int, int] | None


def check_values(kind: ParameterKind, bounds: Bounds, tensor: Tensor, where: str, file: str) -> Iterator[Finding]:
    """What is wrong with the values of a tensor of that kind; `bounds` are those of its declaration."""
    if kind.is_scale or kind is ParameterKind.TABLE:
        yield from _check_scale(kind, bounds, tensor, where, file)
    elif kind is ParameterKind.INDEX and bounds is not None:
        yield from _check_index(bounds, tensor, where, file)
    elif kind is ParameterKind.SETTING and bounds is not None:
        yield from _check_setting(bounds[0], tensor, where, file)


def _check_scale(kind: ParameterKind, bounds: Bounds, tensor: Tensor, where: str, file: str) -> Iterator[Finding]:
    if not _is_finite(tensor, bounds):
        yield report(
            "QL501",
            f"the {'scale' if kind.is_scale else kind.value} is not a finite number everywhere",
            where=where,
            file=file,
            remedy="the checkpoint is damaged, or was quantized with overflowing statistics",
        )


def _check_index(bounds: tuple[int, int], tensor: Tensor, where: str, file: str) -> Iterator[Finding]:
    low, high = int(tensor.min()), int(tensor.max())
    if low < bounds[0] or high >= bounds[1]:
        yield report(
            "QL505",
            "the index points outside of what there is",
            where=where,
            file=file,
            expected=f"{bounds[0]} to {bounds[1] - 1}",
            found=f"{low} to {high}",
        )


def _check_setting(value: int, tensor: Tensor, where: str, file: str) -> Iterator[Finding]:
    stored = {int(number) for number in tensor.flatten()}
    if stored != {value}:
        yield report(
            "QL508",
            "the setting stored beside the weight is not the config's",
            where=where,
            file=file,
            expected=value,
            found=", ".join(map(str, sorted(stored))),
            remedy="the checkpoint was quantized in another way than its config says: correct the config",
        )


def _is_finite(tensor: Tensor, bounds: Bounds) -> bool:
    """Whether all are numbers; codes of scales are those inside the bounds."""
    if not tensor.is_floating_point():
        return bounds is None or not bool(((tensor < bounds[0]) | (tensor >= bounds[1])).any())
    wide = tensor if tensor.dtype.itemsize > 1 else tensor.to(torch.float32)
    return bool(torch.isfinite(wide).all())
