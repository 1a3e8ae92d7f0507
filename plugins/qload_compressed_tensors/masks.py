"""Weights of which the zeros are left out: a mask of bits, and the values that it keeps, row after row."""

import torch
from torch import Tensor

from qload.declare import index
from qload.errors import CheckpointError
from qload.findings import report
from qload.geometry import Kind
from qload.layout import out
from qload.torch import Layer
from qload.torch.arithmetic import unpack
from qload_compressed_tensors.rules import BROKEN_MASK


def expand(kept: Tensor, bits: Tensor, columns: int, fill: int = 0) -> Tensor:
    """The rows of the mask `bits` [rows, bytes] with the values of `kept`, in their order, and `fill` for the rest."""
    keeps, values = unpack(bits, 1, columns).bool(), _as_bytes(kept)
    dense = torch.full(keeps.shape, fill, dtype=values.dtype, device=values.device)
    return dense.masked_scatter_(keeps, values).view(kept.dtype)


def expand_rows(kept: Tensor, bits: Tensor, starts: Tensor, columns: int) -> Tensor:
    """Single rows, of the mask `bits` [n, bytes], whose values begin at `starts` [n] of `kept`."""
    keeps, values = unpack(bits, 1, columns).bool(), _as_bytes(kept)
    places = starts[:, None] + keeps.cumsum(-1) - 1
    return torch.where(keeps, values[places.clamp_min(0)], 0).view(kept.dtype)


def check_halves(layer: Layer, bits: Tensor) -> None:
    """Raises CheckpointError unless the mask keeps two of every four columns of every row that is stored."""
    columns = layer.local.in_features
    stored = sum(cut.size for cut in layer.shard.out)
    keeps = unpack(bits[..., :stored, :], 1, columns)
    if columns % 4 or not bool((keeps.unflatten(-1, (-1, 4)).sum(-1) == 2).all()):
        raise _broken(layer, "two of every four columns", "another number")


def check_count(layer: Layer, bits: Tensor, kept: Tensor) -> None:
    """Raises CheckpointError unless as many values are stored as the mask keeps, of the part that has most."""
    parts = _count(layer, bits).split([part.size for part in layer.geometry.parts], -1)
    most = max(int(rows.sum(-1).max()) for rows in parts)
    if most != kept.shape[-1]:
        raise _broken(layer, f"the {kept.shape[-1]} values that are stored", str(most))


def derive_starts(layer: Layer, bits: Tensor) -> None:
    """Let single rows of a table be found: where the values of each begin."""
    if layer.local.kind is Kind.EMBEDDING:
        counts = _count(layer, bits)
        starts = counts.cumsum(-1) - counts
        layer.derive(index("row_starts", out(solid=True), bounds=(0, 1), dtypes=("I64",)), starts)


def _count(layer: Layer, bits: Tensor) -> Tensor:
    return unpack(bits, 1, layer.local.in_features).sum(-1, dtype=torch.int64)


def _as_bytes(values: Tensor) -> Tensor:
    """8-bit floats as bytes, which can be moved where they cannot."""
    return values.view(torch.uint8) if values.itemsize == 1 else values


def _broken(layer: Layer, expected: str, found: str) -> CheckpointError:
    finding = report(
        BROKEN_MASK,
        "the mask does not keep the values that are stored",
        where=layer.name,
        expected=expected,
        found=found,
        remedy="the checkpoint is damaged: download it again, or compress it anew",
    )
    return CheckpointError(layer.name, [finding])
