"""Fixtures that several test modules share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from edits import copy_checkpoint
from hypothesis import settings
from samples import DATA
from worlds import World

from qload import Registry

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture(scope="session")
def worlds() -> Iterator[Callable[[int], World]]:
    """Real ranks, by their number: the same ones for every test, until one of them fails."""
    made: dict[int, World] = {}
    yield lambda size: made.setdefault(size, World(size))
    for world in made.values():
        world.close()


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a checkpoint of tests/data by name, to be broken."""
    return lambda name: copy_checkpoint(DATA / name, tmp_path / name)
