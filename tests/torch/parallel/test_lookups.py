"""Look-ups in plain tensors, divided over real ranks by rows and by columns: those of one process."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jobs.lookups import look_prompts_up, look_scaled_up, look_shares_up, train_shares
from torch import Tensor
from torch.nn import functional as F
from worlds import World

from qload.errors import LayoutError, ModelError, ParallelError, TokenError
from qload.torch.lookups import divide_table, embed, embed_prompts
from qload.torch.parallel import Group

Worlds = Callable[[int], World]

INTEGERS = torch.tensor([[1, -2], [3, 4], [-5, 6], [7, -8]], dtype=torch.int8)
SCALES = torch.tensor([0.5, 1, 2, 0.25])
IDS = torch.tensor([0, 3, 2])
SCALED = torch.tensor([[0.5, -1], [1.75, -2], [-10, 12]])


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.int8, torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("dim", [0, 1])
def test_every_row_has_a_scale_however_the_table_is_divided(
    worlds: Worlds, dim: int, stored: torch.dtype, dtype: torch.dtype
) -> None:
    whole = embed(IDS, divide_table(INTEGERS.to(stored), scale=SCALES), dtype=dtype)
    for found in [whole, *worlds(2).run(look_scaled_up, INTEGERS, SCALES, IDS, stored, dtype, dim)]:
        assert found.dtype == dtype
        assert torch.equal(found, SCALED.to(dtype))


def test_a_scaled_row_is_rounded_once() -> None:
    """In the dtype that is asked for, and not before in that of the scale."""
    values, scale = torch.tensor([[3]], dtype=torch.int8), torch.tensor([1.0009765625], dtype=torch.float16)
    found = embed(torch.tensor([0]), divide_table(values, scale=scale), dtype=torch.float32)
    assert found.item() == 3 * scale.float().item()
    assert embed(torch.tensor([0]), divide_table(values, scale=scale)).dtype == torch.float16


@pytest.mark.parametrize("options", [{"rows": 10, "multiple": 1}, {"rows": 10, "multiple": 16}, {}])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_last_ranks_share_may_be_short_or_padded(worlds: Worlds, size: int, options: dict[str, Any]) -> None:
    """Rows past the vocabulary hold what would be seen at once, and are not."""
    weight, ids = seeded(10, 6), torch.tensor([[9, 0, 5], [3, 3, 8]])
    shares = list(weight.split(-(-10 // size))) + [weight[:0]] * size
    if options.get("multiple") == 16:
        padded = 48 if size == 3 else 16
        shares = list(F.pad(weight, (0, 0, 0, padded - 10), value=torch.nan).chunk(size))
    for found in worlds(size).run(look_shares_up, shares[:size], ids, options):
        assert torch.equal(found, F.embedding(ids, weight))


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("width", [8, 7, 5])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_columns_are_gathered_also_where_they_are_not_even(worlds: Worlds, size: int, width: int, told: bool) -> None:
    weight, ids = seeded(6, width), torch.tensor([[5, 0], [2, 2]])
    shares = (list(weight.split(-(-width // size), 1)) + [weight[:, :0]] * size)[:size]
    options = {"sharding_dim": 1, **({"width": width} if told else {})}
    for found in worlds(size).run(look_shares_up, shares, ids, options):
        assert torch.equal(found, F.embedding(ids, weight))


@pytest.mark.parametrize("dim", [0, 1])
def test_gradients_are_those_of_one_process(worlds: Worlds, dim: int) -> None:
    weight, ids, factors = seeded(6, 4), torch.tensor([5, 0, 5, 2]), seeded(4, 4)
    leaf = weight.clone().requires_grad_()
    (F.embedding(ids, leaf) * factors).sum().backward()
    shares = list(weight.chunk(2, dim))
    assert leaf.grad is not None
    for found, expected in zip(
        worlds(2).run(train_shares, shares, ids, factors, dim), leaf.grad.chunk(2, dim), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_prompts_are_looked_up_on_every_rank_alike(worlds: Worlds, size: int, dim: int) -> None:
    """Two tokens for each of three tasks, past a vocabulary of eight; the tasks of other tokens do not count."""
    weight, prompts = seeded(8, 4), seeded(6, 4) + 10
    ids = torch.tensor([[8, 9, 0, 7], [9, 8, 3, 3]])
    each = torch.tensor([[0, 2, 99, -1], [1, 1, 0, 0]])
    expected = F.embedding(ids.clamp_max(7), weight)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        expected[row, column] = prompts[each[row, column] * 2 + ids[row, column] - 8]
    shares, options = list(weight.chunk(size, dim)), {"sharding_dim": dim}
    for found in worlds(size).run(look_prompts_up, shares, ids, each, prompts, options):
        assert torch.equal(found, expected)
    by_sequence = worlds(size).run(look_prompts_up, shares, ids, torch.tensor([[2], [1]]), prompts, options)
    assert torch.equal(by_sequence[-1][0, :2], prompts[[4, 5]])


def test_prompts_that_are_not_there_are_errors() -> None:
    table, prompts = divide_table(seeded(8, 4)), seeded(6, 4)
    with pytest.raises(TokenError, match=r"no such token among 10 \(expected 0 to 9, found 10\)"):
        embed_prompts(torch.tensor([10]), torch.tensor(0), table, prompts, 2)
    with pytest.raises(TokenError, match=r"no such task among 3 \(expected 0 to 2, found 3\)"):
        embed_prompts(torch.tensor([8]), torch.tensor(3), table, prompts, 2)
    ids, tasks = torch.tensor([10, 8, -1, 9]), torch.tensor([0, 3, 0, 2])
    found = embed_prompts(ids, tasks, table, prompts, 2, zeros_out_of_range=True)
    assert not found[:3].any()
    assert torch.equal(found[3], prompts[5])
    for size, count in (((5, 4), 2), ((6, 3), 2), ((6, 4), 0)):
        with pytest.raises(ModelError, match="not whole tasks"):
            embed_prompts(torch.tensor([8]), torch.tensor(0), table, seeded(*size), count)


@pytest.mark.parametrize("outside", [-1, 4, 1 << 40])
def test_an_id_out_of_range_is_an_error_or_zeros(outside: int) -> None:
    ids, table = torch.tensor([0, outside]), divide_table(INTEGERS, scale=SCALES)
    with pytest.raises(TokenError, match=f"no such token among 4 .*found {outside}"):
        embed(ids, table)
    assert embed(ids, table, zeros_out_of_range=True).tolist() == [[0.5, -1], [0, 0]]


@pytest.mark.parametrize("dim", [0, 1])
def test_rows_past_the_vocabulary_are_no_tokens(dim: int) -> None:
    with pytest.raises(TokenError, match="among 3"):
        embed(torch.tensor([3]), divide_table(INTEGERS, scale=SCALES, rows=3, sharding_dim=dim))


@pytest.mark.parametrize("options", [{}, {"rows": 8}, {"sharding_dim": 1}, {"sharding_dim": 1, "width": 8}])
def test_ranks_without_a_process_group_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ParallelError, match="no process group"):
        embed(torch.tensor([0]), divide_table(torch.ones(4, 4), group=Group(0, 2), **options))


@pytest.mark.parametrize("dim", [2, -1, True, None])
def test_another_dimension_is_refused(dim: Any) -> None:
    with pytest.raises(LayoutError, match="expected sharding_dim 0 or 1"):
        divide_table(INTEGERS, scale=SCALES, sharding_dim=dim)


@pytest.mark.parametrize(
    ("values", "options", "fault"),
    [
        (INTEGERS, {}, "means nothing without a scale"),
        (INTEGERS, {"scale": SCALES[:3]}, r"expected floats \[4\], found torch.float32 \[3\]"),
        (INTEGERS, {"scale": SCALES[:, None].expand(4, 2)}, r"found torch.float32 \[4, 2\]"),
        (SCALES, {}, "has rows and columns"),
        (torch.ones(4, 2), {"rows": 5}, "expected 5 or more, found 4"),
        (torch.ones(4, 2), {"rows": 4, "group": Group(0, 2)}, "more rows than a rank's share .expected 2, found 4"),
        (torch.ones(4, 2), {"width": 8, "sharding_dim": 1, "group": Group(0, 2)}, "expected 4, found 2"),
        (torch.ones(4, 3), {"width": 7, "sharding_dim": 1, "group": Group(0, 2)}, "expected 4, found 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(values: Tensor, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ModelError, match=fault):
        divide_table(values, **options)


@pytest.mark.parametrize("options", [{"rows": 0}, {"rows": -4}, {"width": 0, "sharding_dim": 1}])
def test_a_table_has_a_row_and_a_column(options: dict[str, Any]) -> None:
    with pytest.raises(LayoutError, match="a row and a column or more"):
        divide_table(torch.ones(4, 2), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_ids_are_integers(dtype: torch.dtype) -> None:
    with pytest.raises(TokenError, match="not integers"):
        embed(torch.ones(2, dtype=dtype), divide_table(torch.ones(4, 2)))


def test_compiled_code_asserts_on_the_device() -> None:
    table = divide_table(torch.ones(4, 2))
    compiled = torch.compile(lambda ids: embed(ids, table), fullgraph=True, backend="eager")
    assert compiled(torch.tensor([1, 2])).shape == (2, 2)
    with pytest.raises(RuntimeError, match="no such token among 4"):
        compiled(torch.tensor([1, 4]))
