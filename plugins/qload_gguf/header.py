"""The header of one GGUF file, checked before anybody reads a byte of data.

Source of the format: ggml's docs/gguf.md, and the checks of its reader (`gguf_init_from_file`): the letters GGUF, the
version, the number of tensors and of metadata, both, and then the data, each tensor at a multiple of the alignment.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from qload.checkpoint import Storage
from qload.checkpoint.documents import LFS_SIGNATURE
from qload.dtypes import storage_bytes
from qload.findings import Finding, report
from qload_gguf.cursor import Cursor, UnreadableError
from qload_gguf.types import BLOCKS, VALUES

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS, MAX_ENTRIES = 4, 2**63 - 1
"""ggml's bounds of a tensor's dimensions, and of the size of one."""
MAX_NAME_BYTES, MAX_KEY_BYTES = 1 << 10, 1 << 16
MAX_ALIGNMENT = 1 << 24
_LEAST_PAIR, _LEAST_TENSOR = 13, 24
"""The bytes that a pair of metadata, or a tensor, takes at least."""


class Tensor(NamedTuple):
    """One stored tensor: its type by number, its shape, rows first, and its bytes [start, stop)."""

    name: str
    type: int
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says that it holds, and what is wrong with it.

    Of `metadata`, arrays of strings and long ones are left out: their value is None.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]
    findings: tuple[Finding, ...] = ()


def read_header(storage: Storage, name: str) -> Header:
    """Read the header of the file of that name.

    Never raises: a file that cannot be read is a finding.
    """
    try:
        cursor = Cursor(storage, name)
        tensors, pairs = _read_counts(cursor)
        metadata = dict(_read_metadata(cursor, pairs))
        alignment = _alignment(metadata, cursor)
        found = tuple(_read_tensors(cursor, tensors, alignment))
        return Header(metadata, found, tuple(_check_ranges(found, alignment, cursor)))
    except UnreadableError as fault:
        return Header({}, (), (fault.finding,))


def _read_counts(cursor: Cursor) -> tuple[int, int]:
    magic = cursor.take(4)
    if LFS_SIGNATURE.startswith(magic):
        raise cursor.fail(
            "is a git-LFS pointer, not the file", code="QL002", remedy="run `git lfs pull`, or download it"
        )
    version = cursor.number("<I")
    if magic != MAGIC:
        raise cursor.fail("does not begin as a GGUF file does", expected=MAGIC.decode(), found=repr(magic))
    if int(version).to_bytes(4, "big") in {each.to_bytes(4, "little") for each in (1, *VERSIONS)}:
        raise cursor.fail("is big-endian", expected="little-endian", remedy="convert it with gguf_convert_endian.py")
    if version not in VERSIONS:
        raise cursor.fail("has another version of the format", expected=" or ".join(map(str, VERSIONS)), found=version)
    tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
    cursor.check_count(tensors, _LEAST_TENSOR, "tensors")
    cursor.check_count(pairs, _LEAST_PAIR, "pairs of metadata")
    return tensors, pairs


def _read_metadata(cursor: Cursor, count: int) -> Iterator[tuple[str, Any]]:
    seen = set()
    for _ in range(count):
        key = cursor.text(MAX_KEY_BYTES)
        if key in seen:
            raise cursor.fail("has one key twice", where=key)
        seen.add(key)
        yield key, cursor.value(cursor.number("<I"), key)


def _alignment(metadata: Mapping[str, Any], cursor: Cursor) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.fail(
            "has an impossible alignment", where="general.alignment", expected="a power of two", found=repr(alignment)
        )
    return alignment


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> Iterator[Tensor]:
    """The tensors; their offsets count from the header's end, which is known once all are read."""
    seen, rows = set(), []
    for _ in range(count):
        name = cursor.text(MAX_NAME_BYTES)
        if name in seen:
            raise cursor.fail("names one tensor twice in its header", where=name)
        seen.add(name)
        dimensions = cursor.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise cursor.fail("has a tensor of too many dimensions", where=name, found=dimensions)
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = cursor.number("<I"), cursor.number("<Q")
        if offset % alignment:
            raise cursor.fail("has a tensor that is not aligned", where=name, expected=alignment, found=offset)
        rows.append((name, kind, shape, offset, _count_bytes(name, kind, shape, cursor)))
    data = -(-cursor.place // alignment) * alignment
    for name, kind, shape, offset, nbytes in rows:
        yield Tensor(name, kind, shape, data + offset, data + offset + nbytes)


def _count_bytes(name: str, kind: int, shape: tuple[int, ...], cursor: Cursor) -> int:
    entries = prod(shape)
    if entries > MAX_ENTRIES:
        raise cursor.fail("has a tensor of an impossible shape", where=name, found=list(shape))
    if kind in VALUES:
        return storage_bytes(VALUES[kind], entries)
    if kind not in BLOCKS:
        raise cursor.fail("has a tensor of a type that is not known", code="QL308", where=name, found=f"type {kind}")
    block = BLOCKS[kind]
    if not shape or shape[-1] % block.elements:
        raise cursor.fail(
            f"has a tensor whose rows are no whole blocks of {block.name}",
            where=name,
            expected=f"a multiple of {block.elements}",
            found=list(shape),
        )
    return entries // block.elements * block.nbytes


def _check_ranges(tensors: tuple[Tensor, ...], alignment: int, cursor: Cursor) -> Iterator[Finding]:
    """Tensors lie one after another, but for what aligns the next. Source: ggml's `gguf_init_from_file_impl`."""
    ranges = sorted(tensors, key=lambda tensor: (tensor.start, tensor.stop))
    cut = next((tensor for tensor in ranges if tensor.stop > cursor.size), None)
    if cut is not None:
        yield report(
            "QL004",
            "is truncated",
            where=cut.name,
            file=cursor.name,
            expected=f"{max(tensor.stop for tensor in ranges)} bytes",
            found=cursor.size,
            remedy="download it again",
        )
    end = cursor.place
    for tensor in ranges:
        if tensor.start < end:
            yield report("QL003", "overlaps the tensor before it", where=tensor.name, file=cursor.name)
        elif tensor.start - end >= alignment:
            yield report("QL003", "has a hole before it", where=tensor.name, file=cursor.name)
        end = max(end, tensor.stop)
