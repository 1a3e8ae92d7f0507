"""Biases that some modules of the same place have, and others lack."""

from collections.abc import Iterator

from qload.examination import Examination
from qload.findings import Finding


def find_odd_biases(found: Examination) -> Iterator[Finding]:  # noqa: ARG001
    """Nothing yet."""
    yield from ()
