"""Gradients through pairs on real ranks: those of one process, of differences, and of what torch compiles."""

from collections.abc import Callable

import pytest
import torch
from jobs.gradients import RANKED, check_gradients, compile_pair, compute_alone, start, watch_gradients, write_into
from worlds import World

Worlds = Callable[[int], World]
PAIRS = ("copy", "reduce", "scatter", "gather")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", RANKED)
def test_gradients_are_those_of_one_process(worlds: Worlds, name: str, size: int) -> None:
    leaf = start().requires_grad_()
    expected = compute_alone(name, leaf, size)
    weight = torch.arange(expected.numel(), dtype=torch.float64).reshape(expected.shape)
    (gradient,) = torch.autograd.grad((expected * weight).sum(), leaf)
    for made, found in worlds(size).run(check_gradients, name):
        torch.testing.assert_close(made, expected.detach())
        torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_is_written_in_place(worlds: Worlds, name: str) -> None:
    assert worlds(2).run(watch_gradients, name) == [[True] * 4] * 2


@pytest.mark.parametrize("name", PAIRS)
def test_writing_into_what_a_pair_made_is_harmless_or_refused(worlds: Worlds, name: str) -> None:
    """A view of the input cannot be written into; what is new can."""
    for answer in worlds(2).run(write_into, name):
        assert "is a view and is being modified" in answer if name == "copy" else answer == "written"


@pytest.mark.parametrize("name", ["copy, reduce", "scatter, gather", "scatter, gather 0", "copy used twice"])
def test_pairs_are_compiled_in_one_graph(worlds: Worlds, name: str) -> None:
    for made, gradient, compiled, its_gradient in worlds(2).run(compile_pair, name):
        torch.testing.assert_close(compiled, made)
        torch.testing.assert_close(its_gradient, gradient)
