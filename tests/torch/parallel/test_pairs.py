"""The pairs of collectives, on real ranks: forward and backward are those of one process."""

from collections.abc import Callable

import pytest
import torch
from jobs.groups import compute_pair, fail, maximize_row
from torch import Tensor
from worlds import World

from qload.errors import ParallelError

Worlds = Callable[[int], World]


def leaf() -> Tensor:
    return torch.arange(24, dtype=torch.float64).reshape(3, 8)


def weights(size: int) -> Tensor:
    return torch.arange(1, 1 + 3 * size, dtype=torch.float64).reshape(3, size)


@pytest.mark.parametrize("size", [2, 4])
def test_copy_sums_gradients(worlds: Worlds, size: int) -> None:
    for made, gradient, after in worlds(size).run(compute_pair, "copy", leaf(), weights(8)):
        assert torch.equal(made, leaf())
        assert torch.equal(gradient, weights(8) * size)
        assert torch.equal(after, leaf())


@pytest.mark.parametrize("size", [2, 4])
def test_reduce_sums_and_hands_gradients_on(worlds: Worlds, size: int) -> None:
    for made, gradient, after in worlds(size).run(compute_pair, "reduce", leaf(), weights(8)):
        assert torch.equal(made, leaf() * size)
        assert torch.equal(gradient, weights(8))
        assert torch.equal(after, leaf())


@pytest.mark.parametrize("size", [2, 4])
def test_scatter_divides_and_gathers_gradients(worlds: Worlds, size: int) -> None:
    share = 8 // size
    for rank, (made, gradient, after) in enumerate(
        worlds(size).run(compute_pair, "scatter", leaf(), weights(share)),
    ):
        assert torch.equal(made, leaf()[:, rank * share : (rank + 1) * share])
        assert torch.equal(gradient, weights(share).repeat(1, size))
        assert torch.equal(after, leaf())


@pytest.mark.parametrize("size", [2, 4])
def test_gather_joins_and_divides_gradients(worlds: Worlds, size: int) -> None:
    answers = worlds(size).run(compute_pair, "gather", leaf(), weights(8 * size))
    for rank, (made, gradient, after) in enumerate(answers):
        assert torch.equal(made, leaf().repeat(1, size))
        assert torch.equal(gradient, weights(8 * size)[:, rank * 8 : (rank + 1) * 8])
        assert torch.equal(after, leaf())


@pytest.mark.parametrize("size", [2, 4])
def test_maximize_gives_gradients_to_those_that_have_the_greatest(worlds: Worlds, size: int) -> None:
    """Each rank's row is the greatest somewhere; the last feature is the same on all."""
    asked = torch.eye(4, 5, dtype=torch.float64)[:size]
    for rank, (made, gradient, after) in enumerate(worlds(size).run(maximize_row, asked, weights(5)[0])):
        assert torch.equal(made, asked.amax(0))
        has = (asked[rank] == made).double()
        assert torch.equal(gradient, weights(5)[0] * size * has / (asked == made).sum(0))
        assert torch.equal(after, asked[rank])


def test_what_cannot_be_divided_evenly_is_refused(worlds: Worlds) -> None:
    with pytest.raises(ParallelError, match=r"dimension -1 of \[3, 7\].*expected a multiple of 2, found 7"):
        worlds(2).run(compute_pair, "scatter", leaf()[:, :7], weights(7))


def test_a_rank_that_fails_ends_the_others(worlds: Worlds) -> None:
    with pytest.raises(ValueError, match="rank 1 is not well"):
        worlds(2).run(fail)
    assert len(worlds(2).run(compute_pair, "copy", leaf(), weights(8))) == 2
