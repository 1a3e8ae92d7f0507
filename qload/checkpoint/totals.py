"""Whether the bytes that an index says of all tensors are those that they have."""

from collections.abc import Iterable, Iterator, Mapping
from math import prod

from qload.checkpoint.header import TensorEntry
from qload.checkpoint.index import INDEX
from qload.checkpoint.storage import Storage
from qload.findings import Finding, report

_SLACK = 1000
"""One in so many bytes may be of what was counted and is not stored: buffers of positions and masks."""


def find_wrong_total(
    storage: Storage, total: int, tensors: Mapping[str, TensorEntry], files: Iterable[str]
) -> Iterator[Finding]:
    """The finding of a total that no way of counting gives: then the index was written for other files.

    huggingface_hub counts a storage that tensors share once, and older tools count a tied head that is not stored, or
    buffers; DeepSeek's own index counts whole files, headers and all; others count entries.
    """
    nbytes = sum([entry.stop - entry.start for entry in tensors.values()])
    if total == nbytes or abs(total - nbytes) <= nbytes // _SLACK:
        return
    if any(abs(total - nbytes) == entry.nbytes for entry in tensors.values()):
        return
    if total == sum(prod(entry.shape) for entry in tensors.values()):
        return
    if nbytes < total <= _count_files(storage, files):
        return
    yield report(
        "QL007",
        "the index was written for other files: its total is not that of theirs",
        where="metadata.total_size",
        file=INDEX,
        expected=nbytes,
        found=total,
        remedy="rebuild the index, or download it with the files that it is of",
        pointer=("metadata", "total_size"),
    )


def _count_files(storage: Storage, files: Iterable[str]) -> int:
    return sum(storage.size(name) for name in files)
