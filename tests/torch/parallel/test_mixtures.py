"""Mixtures of experts: however each of the two layers is divided, real ranks compute what plain tensors do."""

from collections.abc import Callable

import pytest
import torch
from jobs.mixtures import compute_mixture, gate
from torch import Tensor
from worlds import World

from qload.geometry import Sharding, column, expert_parallel, replicated, row

Worlds = Callable[[int], World]
COUNT, HIDDEN, INNER = 4, 16, 8
IDS = torch.tensor([[0, 3], [1, 2], [3, 1], [0, 2], [2, 3]])
WAYS = [(up, down) for up in (column, row, replicated) for down in (row, column, replicated)]


def spread(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape) + shape[-1]))


STORED = {
    "up.weight": spread(COUNT, 2 * INNER, HIDDEN),
    "up.bias": spread(COUNT, 2 * INNER),
    "down.weight": spread(COUNT, HIDDEN, INNER),
    "down.bias": spread(COUNT, HIDDEN),
}


def compute_plainly(x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    outputs = [
        gate(leaf @ STORED["up.weight"][number].T + STORED["up.bias"][number]) @ STORED["down.weight"][number].T
        + STORED["down.bias"][number]
        for number in range(COUNT)
    ]
    made = (torch.stack(outputs, 1).gather(1, IDS[..., None].expand(-1, -1, HIDDEN)) * chosen[..., None]).sum(1)
    (gradient,) = torch.autograd.grad(made.square().sum(), leaf)
    return made.detach(), gradient


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "ways", [*WAYS, (expert_parallel, expert_parallel)], ids=lambda ways: "-".join(way.__name__ for way in ways)
)
def test_ranks_are_the_plain_experts(ways: tuple[Sharding, Sharding], size: int, worlds: Worlds) -> None:
    x, chosen = spread(5, HIDDEN), spread(5, 2)
    expected, gradient = compute_plainly(x, chosen)
    for made, theirs in worlds(size).run(compute_mixture, ways, STORED, x, IDS, chosen):
        assert torch.allclose(made, expected)
        assert torch.allclose(theirs, gradient)
