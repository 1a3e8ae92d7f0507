"""Look-ups in tables that are plain tensors, whole or divided over ranks by rows or by columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from qload.errors import LayoutError, ModelError
from qload.geometry import vocabulary_cut
from qload.layout import Cut
from qload.torch.parallel import Group, gather, reduce
from qload.torch.tokens import as_places, check_ids, find_rows, keep_rows

_WHOLE = Group()


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """This rank's share of a table of `rows` tokens: `values` [entries, width], floats, or integers with scales.

    `scale` [entries] has one for each of those rows. `owned` are the tokens of the first of them; what follows is
    padding. `widths` are those of all ranks' shares where columns are divided, and that of every one else.
    """

    values: Tensor
    scale: Tensor | None
    group: Group
    rows: int
    owned: Cut
    widths: tuple[int, ...]

    @property
    def width(self) -> int:
        """The columns of the whole table."""
        return sum(self.widths)

    @property
    def dtype(self) -> torch.dtype:
        """That of what is looked up, if no other is asked for."""
        return self.values.dtype if self.scale is None else self.scale.dtype


def divide_table(
    values: Tensor,
    *,
    group: Group = _WHOLE,
    sharding_dim: int = 0,
    scale: Tensor | None = None,
    rows: int | None = None,
    width: int | None = None,
    multiple: int = 1,
) -> Table:
    """The table of which `values` [entries, width] are this rank's share, by rows or, with `sharding_dim` 1, columns.

    `rows` and `width` are those of the whole table without padding: shares are then those of a vocabulary padded to
    `multiple`, and of columns as even as can be, the last of them short. Without them the ranks ask each other what
    they have, and nothing is padding. `scale` [entries] or [entries, 1] multiplies each row.

    Raises LayoutError for another dimension, ModelError where sizes do not fit, or integers have no scale, and
    ParallelError where ranks that must ask each other have no process group.
    """
    if type(sharding_dim) is not int or sharding_dim not in (0, 1):
        raise LayoutError(
            "a table is divided by rows or by columns", expected="sharding_dim 0 or 1", found=repr(sharding_dim)
        )
    scale = _check_values(values, scale)
    if min(1 if rows is None else rows, 1 if width is None else width) < 1:
        raise LayoutError("a table has a row and a column or more", expected="1 or more", found=f"{rows} x {width}")
    if sharding_dim == 1:
        whole = rows if rows is not None else len(values)
        owned, widths = Cut(0, whole), _find_widths(values, group, width)
    elif rows is not None:
        owned, whole, widths = vocabulary_cut(rows, group.rank, group.size, multiple), rows, (values.shape[1],)
    else:
        ends = [0, *accumulate(_ask_all(len(values), values, group))]
        owned, whole, widths = Cut(ends[group.rank], ends[group.rank + 1]), ends[-1], (values.shape[1],)
    if len(values) < owned.size:
        raise _misfit("a table lacks rows that its rank has", f"{owned.size} or more", len(values))
    if group.size > 1 and len(values) > owned.padded_size and len(widths) == 1:
        raise _misfit("a table has more rows than a rank's share", str(owned.padded_size), len(values))
    return Table(values, scale, group, whole, owned, widths)


def embed(ids: Tensor, table: Table, *, dtype: torch.dtype | None = None, zeros_out_of_range: bool = False) -> Tensor:
    """ids [...], which every rank has alike, into [..., width] on every rank, in `dtype` or the table's.

    A row with a scale is computed in float32 first, or in float64 where either has it. Raises TokenError for ids that
    the table does not have, or gives zeros for them, and ParallelError where ranks have no process group.
    """
    flat = ids.reshape(-1)
    flat = as_places(flat) if zeros_out_of_range else check_ids(flat, table.rows)
    rows, owned = find_rows(flat, [(0, table.owned)])
    found = keep_rows(_take(table, rows), owned).to(dtype or table.dtype)
    return _join(found, table).reshape(*ids.shape, table.width)


def embed_prompts(
    ids: Tensor,
    tasks: Tensor,
    table: Table,
    prompts: Tensor,
    tokens_per_task: int,
    *,
    dtype: torch.dtype | None = None,
    zeros_out_of_range: bool = False,
) -> Tensor:
    """As `embed`, but that ids past the vocabulary are tokens of a task's prompt.

    `prompts` [tasks * tokens_per_task, width], which every rank has whole, holds at task * tokens_per_task + n what
    is meant by the id that is n more than the last token's and 1. `tasks` are broadcast to the ids; those of other
    tokens do not count. Raises TokenError also for a task that has no prompt, ModelError for prompts of other sizes.
    """
    _check_prompts(prompts, tokens_per_task, table.width)
    flat, number = ids.reshape(-1), tasks.expand(ids.shape).reshape(-1)
    check = as_places(flat) if zeros_out_of_range else check_ids(flat, table.rows + tokens_per_task)
    past = check - table.rows
    asked = (past >= 0) & (past < tokens_per_task)
    count = len(prompts) // tokens_per_task
    if zeros_out_of_range:
        known = asked & (number >= 0) & (number < count)
    else:
        known, number = asked, check_ids(torch.where(asked, number, 0), count, noun="task")
    places = torch.where(known, as_places(number, noun="task") * tokens_per_task + past, 0)
    plain = embed(torch.where(past >= 0, -1, check), table, dtype=dtype, zeros_out_of_range=True)
    found = torch.where(known[:, None], prompts[places].to(plain.dtype), plain)
    return found.reshape(*ids.shape, table.width)


def _take(table: Table, rows: Tensor) -> Tensor:
    if not len(table.values):
        return table.values.new_zeros((len(rows), table.values.shape[1]), dtype=table.dtype)
    found = table.values[rows]
    if table.scale is None:
        return found
    wide = torch.float64 if torch.float64 in (found.dtype, table.dtype) else torch.float32
    return found.to(wide) * table.scale[rows].to(wide)[:, None]


def _join(found: Tensor, table: Table) -> Tensor:
    widths = table.widths
    if len(widths) == 1:
        return reduce(found, table.group)
    longest = max(widths)
    joined = gather(F.pad(found, (0, longest - found.shape[1])), table.group)
    parts = joined.split(longest, -1)
    return torch.cat([part[:, :width] for part, width in zip(parts, widths, strict=True)], -1)


def _check_values(values: Tensor, scale: Tensor | None) -> Tensor | None:
    if values.dim() != 2:
        raise ModelError("a table has rows and columns", found=f"shape {list(values.shape)}")
    if scale is None:
        if not values.is_floating_point():
            raise ModelError("a table of integers means nothing without a scale for each row", found=str(values.dtype))
        return None
    if tuple(scale.shape) not in ((len(values),), (len(values), 1)) or not scale.is_floating_point():
        found = f"{scale.dtype} {list(scale.shape)}"
        raise ModelError("a table has a scale for each of its rows", expected=f"floats [{len(values)}]", found=found)
    return scale.reshape(-1)


def _find_widths(values: Tensor, group: Group, width: int | None) -> tuple[int, ...]:
    """The columns of each rank's share."""
    if width is None:
        return tuple(_ask_all(values.shape[1], values, group))
    share = -(-width // group.size)
    widths = [max(0, min(share, width - rank * share)) for rank in range(group.size)]
    if values.shape[1] != widths[group.rank]:
        raise _misfit("a table has not the columns of its rank", str(widths[group.rank]), values.shape[1])
    return tuple(widths)


def _ask_all(count: int, values: Tensor, group: Group) -> Sequence[int]:
    """What each rank has of something."""
    counts: list[int] = group.gather(torch.tensor([count], device=values.device)).tolist()
    return counts


def _misfit(what: str, expected: str, found: int) -> ModelError:
    return ModelError(what, expected=expected, found=str(found), remedy="hand in the group whose ranks divide it")


def _check_prompts(prompts: Tensor, tokens_per_task: int, width: int) -> None:
    if tokens_per_task < 1 or prompts.dim() != 2 or len(prompts) % tokens_per_task or prompts.shape[1] != width:
        raise ModelError(
            "the prompts are not whole tasks of rows as wide as the table's",
            expected=f"a multiple of {tokens_per_task} x {width}",
            found=f"{list(prompts.shape)}",
        )
