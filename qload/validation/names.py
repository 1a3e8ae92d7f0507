"""The names in a config's lists: those that match nothing, and those that mean other modules to other matchers."""

from collections.abc import Iterator

from qload.examination import Examination
from qload.findings import Finding


def find_idle_names(found: Examination) -> Iterator[Finding]:  # noqa: ARG001
    """Nothing yet."""
    yield from ()
