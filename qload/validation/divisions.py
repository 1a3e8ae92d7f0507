"""What numbers of ranks would split that cannot be split."""

from collections.abc import Iterator, Sequence

from qload.examination import Examination
from qload.findings import Finding


def find_splits(found: Examination, sizes: Sequence[int]) -> Iterator[Finding]:  # noqa: ARG001
    """Nothing yet."""
    yield from ()
