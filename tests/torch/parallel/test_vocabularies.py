"""Tables and heads on real ranks: what each rank gets is what one process has."""

from collections.abc import Callable

import pytest
import torch
from jobs.vocabularies import compute_logits, look_up
from torch import Tensor
from torch.nn import functional as F
from worlds import World

from qload.errors import ParallelError
from qload.quantization import unquantized
from qload.registry import Registry
from qload.torch import ParallelLMHead, Site, VocabParallelEmbedding
from qload.torch.parallel import Group

Worlds = Callable[[int], World]


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("rows", [65, 130])
def test_every_rank_looks_all_rows_up(worlds: Worlds, size: int, multiple: int, rows: int) -> None:
    weight, ids = seeded(rows, 8), torch.tensor([[0, rows - 1, 64], [63, 31, 32]])
    for found in worlds(size).run(look_up, weight, ids, multiple):
        assert torch.equal(found, F.embedding(ids, weight))


@pytest.mark.parametrize("multiple", [1, 64])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_logits_are_gathered_in_token_order_without_padding(worlds: Worlds, size: int, multiple: int) -> None:
    weight, bias, hidden = seeded(130, 8), seeded(130), seeded(2, 3, 8)
    leaf = hidden.clone().requires_grad_()
    expected = F.linear(leaf, weight, bias)
    (expected * torch.linspace(-1, 1, 130)).sum().backward()
    assert leaf.grad is not None
    for logits, gradient in worlds(size).run(compute_logits, weight, bias, hidden, multiple, True):
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(gradient, leaf.grad, atol=1e-4, rtol=1e-5)


def test_logits_stay_divided_unless_they_are_asked_for(worlds: Worlds) -> None:
    weight, bias, hidden = seeded(130, 8), seeded(130), seeded(3, 8)
    answers = worlds(2).run(compute_logits, weight, bias, hidden, 64, False)
    joined = torch.cat([logits for logits, _ in answers], -1)
    torch.testing.assert_close(joined[:, :130], F.linear(hidden, weight, bias))
    assert joined.shape == (3, 192)
    assert not joined[:, 130:].any()


def test_ranks_without_a_process_group_have_their_share_alone() -> None:
    site = Site(unquantized(Registry.discover()), "m", Group(1, 2))
    table, head = VocabParallelEmbedding(130, 8, site), ParallelLMHead(130, 8, site, gather_output=True)
    table.allocate("cpu")
    head.allocate("cpu")
    assert table.look_up(torch.tensor([1])).shape == (1, 8)
    assert head.compute(torch.ones(1, 8)).shape == (1, 96)
    for layer, given in ((table, torch.tensor([1])), (head, torch.ones(1, 8))):
        with pytest.raises(ParallelError, match="the ranks have no process group"):
            layer(given)
