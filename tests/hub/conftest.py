"""Hubs of this machine that `hf:` means while a test runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hubs import Hub, run_hub
from huggingface_hub import close_session, constants

ERRAND = "qload"
"""What the names of threads begin with that read from a hub."""


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
