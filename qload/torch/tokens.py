"""Ids of tokens: whether a vocabulary has them, and in which of a rank's rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qload.errors import TokenError
from qload.layout import Cut


def check_ids(ids: Tensor, size: int, where: str = "", noun: str = "token") -> Tensor:
    """The ids [...] as int64, all of them 0 to size - 1.

    Raises TokenError for the first that is not, and for ids that are not integers. On a GPU and in compiled code the
    host does not wait to see them: an assertion fails on the device, with RuntimeError.
    """
    places = as_places(ids, where, noun)
    if places.is_meta:
        return places
    inside = (places >= 0) & (places < size)
    if torch.compiler.is_compiling() or places.device.type == "cuda":
        torch._assert_async(inside.all(), f"{where or 'a table'}: there is no such {noun} among {size}")
    elif not inside.all():
        raise TokenError(
            f"there is no such {noun} among {size}",
            where=where,
            expected=f"0 to {size - 1}",
            found=str(int(places[~inside][0])),
        )
    return places


def as_places(ids: Tensor, where: str = "", noun: str = "token") -> Tensor:
    """The ids as int64. Raises TokenError for what are not integers."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        found = str(ids.dtype).removeprefix("torch.")
        raise TokenError(f"the ids of {noun}s are not integers", where=where, found=found)
    return ids.long()


def find_rows(ids: Tensor, spans: Sequence[tuple[int, Cut]]) -> tuple[Tensor, Tensor]:
    """The row of each id in a table, and whether it has one; 0 where it has none.

    `spans` are the cuts of ids that the table has, each with its first row.
    """
    rows, owned = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for first, cut in spans:
        inside = (ids >= cut.start) & (ids < cut.stop)
        rows = torch.where(inside, ids - (cut.start - first), rows)
        owned = owned | inside
    return rows, owned


def keep_rows(rows: Tensor, kept: Tensor) -> Tensor:
    """The rows [n, width] that are `kept` [n], and zeros, whatever stands there, for the others."""
    return torch.where(kept[:, None], rows, torch.zeros((), dtype=rows.dtype, device=rows.device))
