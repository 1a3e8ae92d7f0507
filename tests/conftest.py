"""Fixtures that several test modules share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from edits import copy_checkpoint
from samples import DATA

from qload import Registry


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a checkpoint of tests/data by name, to be broken."""
    return lambda name: copy_checkpoint(DATA / name, tmp_path / name)
