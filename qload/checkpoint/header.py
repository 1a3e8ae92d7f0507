"""The header of one safetensors file, checked before anybody reads a byte of data.

Source of the format: 8 bytes of little-endian header length, a JSON object of tensors with dtype, shape
and data_offsets, then the data without holes or overlaps, counted from the header's end.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from qload.checkpoint.documents import unreadable
from qload.checkpoint.storage import Storage
from qload.dtypes import BITS
from qload.findings import Finding, report

MAX_HEADER_BYTES = 100_000_000
"""The bound that the safetensors library sets."""
MAX_DIMENSIONS, MAX_ENTRIES = 64, 2**63 - 1
"""The bounds that torch sets to a tensor's dimensions and to the size of one."""
MAX_NAME = 1000
"""More than any module's name has, and fewer than the digits and the depth that Python bears."""

_LFS_SIGNATURE = b"version https://git-lfs"
_METADATA = "__metadata__"


class Interleaving(NamedTuple):
    """An order of rows other than the tensor's own: of every `size` rows, `runs` runs are stored row by row in turn.

    Row 0 of each run comes first, then row 1 of each.
    """

    size: int
    runs: int

    def place(self, row: int) -> int:
        """Where a row of the tensor is stored."""
        block, inner = divmod(row, self.size)
        run, place = divmod(inner, self.size // self.runs)
        return block * self.size + place * self.runs + run


class TensorEntry(msgspec.Struct, frozen=True, gc=False):
    """One stored tensor: dtype code, shape, and its bytes [start, stop) in `file`.

    A producer may have changed it, which whoever reads it undoes: `interleaving` is the order of its stored rows,
    and `shift` is to be added to its values.

    A struct, for a checkpoint has many: it is made in a fifth of the time of a tuple, and no collector counts it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int
    interleaving: Interleaving | None = None
    shift: float = 0.0

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


class _Stored(msgspec.Struct, gc=False):
    """A header's entry; what it does not say stays empty, which no entry is."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    data_offsets: tuple[int, int] = (0, 0)


class _Described(msgspec.Struct):
    """A header's metadata."""

    metadata: dict[str, Any] = msgspec.field(name=_METADATA, default_factory=dict)


_TABLE = msgspec.json.Decoder(dict[str, _Stored])
_DESCRIPTION = msgspec.json.Decoder(_Described)


@dataclass(frozen=True, slots=True)
class Header:
    """What one file says that it holds, and what is wrong with it."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    findings: tuple[Finding, ...] = ()


class _UnreadableError(Exception):
    def __init__(self, finding: Finding) -> None:
        self.finding = finding


def read_header(storage: Storage, name: str) -> Header:
    """Read the header of the file of that name.

    Reads the header's bytes only, and no more than 100 MB. Never raises: a file that cannot be read
    is a finding.
    """
    try:
        raw, size = _read_raw(storage, name)
        entries, metadata = _read_sound(raw, name) or _read_any(raw, name)
    except _UnreadableError as fault:
        return Header({}, {}, (fault.finding,))
    return Header(entries, metadata, tuple(_check_ranges(entries, name, 8 + len(raw), size)))


def _fail(message: str, name: str, code: str = "QL003", **facts: Any) -> _UnreadableError:
    return _UnreadableError(report(code, message, file=name, **facts))


def _read_raw(storage: Storage, name: str) -> tuple[bytes, int]:
    try:
        size = storage.size(name)
        length = _header_length(storage.read(name, 0, len(_LFS_SIGNATURE)), size, name)
        return storage.read(name, 8, length), size
    except OSError as error:
        raise _UnreadableError(unreadable(name, error)) from error


def _header_length(prefix: bytes, size: int, name: str) -> int:
    if prefix == _LFS_SIGNATURE:
        raise _fail(
            "is a git-LFS pointer, not the weights",
            name,
            "QL002",
            remedy="run `git lfs pull`, or download it",
        )
    if size < 8:
        raise _fail("is shorter than a header", name, "QL004", expected="8 bytes or more", found=size)
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _fail(
            "claims an impossible header",
            name,
            expected=f"at most {MAX_HEADER_BYTES} bytes",
            found=length,
            remedy="the file is not safetensors, or damaged: download it again",
        )
    if 8 + length > size:
        raise _fail(
            "ends inside its header",
            name,
            "QL004",
            expected=f"{8 + length} bytes or more",
            found=size,
            remedy="download it again",
        )
    return length


_Entries = tuple[dict[str, TensorEntry], Mapping[str, Any]]


def _read_sound(raw: bytes, name: str) -> _Entries | None:
    """The entries and metadata of a header in which nothing is wrong; None for any other, without the reason.

    Headers are nearly always sound, and a checkpoint may have 100,000 entries: the parser checks types as it goes.
    """
    try:
        table = _TABLE.decode(raw)
        metadata = _DESCRIPTION.decode(raw).metadata if table.pop(_METADATA, None) is not None else {}
        entries = _make_entries(table, name, 8 + len(raw))
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError):
        return None
    return (entries, metadata) if raw.count(b'"data_offsets"') == len(table) else None


def _make_entries(table: Mapping[str, _Stored], name: str, offset: int) -> dict[str, TensorEntry]:
    """Raises ValueError or KeyError for an entry that is not sound."""
    entries = {}
    sizes: dict[tuple[str, tuple[int, ...]], int] = {}
    for key, stored in table.items():
        dtype, shape, (start, stop) = stored.dtype, stored.shape, stored.data_offsets
        expected = sizes.get((dtype, shape))
        if expected is None:
            expected = sizes[dtype, shape] = _count_bytes(dtype, shape)
        if stop - start != expected or not 0 <= start <= stop <= MAX_ENTRIES or len(key) > MAX_NAME:
            raise ValueError(key)
        entries[key] = TensorEntry(key, dtype, shape, name, offset + start, offset + stop)
    return entries


def _count_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The bytes of a tensor. Raises ValueError for a shape that none can have, KeyError for a dtype."""
    if len(shape) > MAX_DIMENSIONS or not _are_sizes(shape):
        raise ValueError(shape)
    return -(-prod(shape) * BITS[dtype] // 8)


def _read_any(raw: bytes, name: str) -> _Entries:
    """The entries and metadata of any header, or what is wrong with it."""
    return _entries(_parse(raw, name), name, 8 + len(raw))


def _parse(raw: bytes, name: str) -> dict[str, Any]:
    try:
        table = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _fail(f"has a header that is not JSON: {error}", name) from error
    if not isinstance(table, dict):
        raise _fail("has a header that is not a JSON object", name, found=type(table).__name__)
    tensors = len(table) - (_METADATA in table)
    if raw.count(b'"data_offsets"') != tensors:
        _refuse_duplicates(raw, name)
    return table


def _refuse_duplicates(raw: bytes, name: str) -> None:
    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise _fail("names one tensor twice in its header", name, where=key)
            table[key] = value
        return table

    json.loads(raw, object_pairs_hook=check)


def _entries(table: dict[str, Any], name: str, offset: int) -> _Entries:
    metadata = {} if (found := table.pop(_METADATA, None)) is None else found
    if not isinstance(metadata, dict):
        raise _fail("has metadata that is not a JSON object", name)
    return {key: _entry(key, value, name, offset) for key, value in table.items()}, metadata


def _entry(key: str, value: Any, name: str, offset: int) -> TensorEntry:
    if len(key) > MAX_NAME:
        raise _fail(
            "has a tensor whose name is too long", name, where=f"{key[:100]}...", expected=MAX_NAME, found=len(key)
        )
    try:
        dtype, shape, (start, stop) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        sound = _are_sizes((*shape, start, stop))
        bits = BITS[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise _fail("has an entry that says no known dtype, shape and range", name, where=key) from error
    if not sound or len(shape) > MAX_DIMENSIONS:
        raise _fail("has an entry of an impossible shape or range", name, where=key)
    expected = -(-prod(shape) * bits // 8)
    if stop - start != expected:
        raise _fail(
            "has an entry whose range does not hold its shape",
            name,
            where=key,
            expected=f"{expected} bytes for {dtype} {list(shape)}",
            found=f"{start} to {stop}",
        )
    return TensorEntry(key, dtype, shape, name, offset + start, offset + stop)


def _are_sizes(numbers: Iterable[object]) -> bool:
    # A loop, for it runs for every tensor of a checkpoint.
    for number in numbers:  # noqa: SIM110
        if type(number) is not int or not 0 <= number <= MAX_ENTRIES:
            return False
    return True


def _check_ranges(entries: Mapping[str, TensorEntry], name: str, offset: int, size: int) -> Iterator[Finding]:
    ranges = list(entries.values())
    starts, stops = [entry.start for entry in ranges], [entry.stop for entry in ranges]
    if [offset, *stops] == [*starts, size]:
        return
    ranges.sort(key=attrgetter("start", "stop"))
    end = max(stops, default=offset)
    if end > size:
        cut = next(entry for entry in ranges if entry.stop > size)
        yield report(
            "QL004",
            "is truncated",
            where=cut.name,
            file=name,
            expected=f"{end} bytes",
            found=size,
            remedy="download it again",
        )
    elif end < size:
        yield report("QL003", "has bytes after its last tensor", file=name, expected=end, found=size)
    if ranges and ranges[0].start != offset:
        yield report("QL003", "has a hole before its first tensor", where=ranges[0].name, file=name)
    for before, after in pairwise(ranges):
        if before.stop != after.start:
            fault = "overlaps" if before.stop > after.start else "leaves a hole after"
            yield report("QL003", f"{fault} {before.name}", where=after.name, file=name)
