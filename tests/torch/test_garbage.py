"""Garbage: a load has only young objects looked through, and leaves the collector as it found it."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from qload.plan import LayerPlan, Plan
from qload.torch.garbage import putting_off_collections
from qload.torch.loading.filling import fill
from qload.torch.loading.holding import MemoryReader

THRESHOLDS = (700, 11, 12)


@pytest.fixture(autouse=True)
def _thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    yield
    gc.set_threshold(*before)


def test_only_full_collections_are_put_off() -> None:
    with putting_off_collections():
        young, middle, old = gc.get_threshold()
    assert (young, middle) == THRESHOLDS[:2]
    assert old > 10**9
    assert gc.get_threshold() == THRESHOLDS


def test_an_error_ends_it_too() -> None:
    with pytest.raises(KeyError), putting_off_collections():
        raise KeyError
    assert gc.get_threshold() == THRESHOLDS


def test_whoever_began_first_ends_it_whatever_the_order() -> None:
    first, second = putting_off_collections(), putting_off_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold() == THRESHOLDS
    second.__exit__(None, None, None)
    assert gc.get_threshold() == THRESHOLDS


def test_filling_puts_them_off() -> None:
    seen = []

    def find(name: str) -> nn.Module:
        seen.append((name, gc.get_threshold()[2] > 10**9))
        return nn.Module()

    fill(Plan((LayerPlan("a", ()),), ()), find, MemoryReader({}), torch.device("cpu"), path="x")
    assert seen == [("a", True)]
    assert gc.get_threshold() == THRESHOLDS
