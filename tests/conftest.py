"""Fixtures that several test modules share."""

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from edits import copy_checkpoint
from hubs import Hub, run_hub
from huggingface_hub import close_session, constants
from hypothesis import settings
from samples import DATA
from worlds import World

from qload import Registry

ERRAND = "qload"
"""What the names of threads begin with that read from a hub."""

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Leave what is imported, and the tests themselves, out of all rounds of the garbage collector."""
    gc.collect()
    gc.freeze()


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
def heeded() -> Iterator[None]:
    """Processes that are started heed SIGINT: those of a job in the background inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str], Path]:
    """Copies a checkpoint of tests/data by name, to be broken."""
    return lambda name: copy_checkpoint(DATA / name, tmp_path / name)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hub]]:
    """Serve folders as repositories `org/NAME`, to a user who has a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with ExitStack() as stack:

        def start(**repositories: Path) -> Hub:
            hub = stack.enter_context(run_hub(**repositories))
            template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            return hub

        yield start
    # What was begun and is waited for no more would find its connection closed.
    for thread in threading.enumerate():
        if thread.name.startswith(ERRAND):
            thread.join(10)
    close_session()
