"""JSON files beside the weights, which may hold anything."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qload.checkpoint.storage import Storage
from qload.findings import Finding, report

MAX_JSON_BYTES = 256_000_000
LFS_SIGNATURE = b"version https://git-lfs"
"""What a git-LFS pointer begins with. Source: git-lfs's docs/spec.md."""
MAX_POINTER_BYTES = 200
"""More than the bytes of a pointer: a line for the version, one for a SHA-256, and one for the size."""


def read_json(storage: Storage, name: str) -> tuple[dict[str, Any] | None, Finding | None]:
    """The JSON object in a file, and the finding that says why there is none, or that a key of it has two values."""
    try:
        size = storage.size(name)
        if size > MAX_JSON_BYTES:
            return None, report("QL105", "is too large for a config", file=name, found=f"{size} bytes")
        doubles: list[_Double] = []
        raw = storage.read(name, 0, size)
        value = json.loads(raw, object_pairs_hook=lambda pairs: _collect(pairs, doubles))
    except OSError as error:
        return None, unreadable(name, error)
    except (ValueError, RecursionError) as error:
        return None, _pointer(name) if raw.startswith(LFS_SIGNATURE) else _no_json(name, error)
    if not isinstance(value, dict):
        return None, report("QL105", "is not a JSON object", file=name, found=type(value).__name__)
    return value, _report_double(value, doubles[0], name) if doubles else None


@dataclass(frozen=True, slots=True)
class _Double:
    """A key that an object has twice, with different values."""

    holder: dict[str, Any]
    key: str
    first: Any
    last: Any


def _collect(pairs: list[tuple[str, Any]], doubles: list[_Double]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        doubles += (_Double(table, key, each, table[key]) for key, each in pairs if each != table[key])
    return table


def _report_double(value: Any, double: _Double, name: str) -> Finding:
    pointer = (*(_find_path(value, double.holder) or ()), double.key)
    return report(
        "QL105",
        "is written twice, with different values, and readers take one or the other",
        where=".".join(map(str, pointer)),
        file=name,
        expected=f"one value, {json.dumps(double.first)[:40]} or {json.dumps(double.last)[:40]}",
        remedy="leave out the one that is wrong",
        pointer=pointer,
    )


def _find_path(value: Any, wanted: dict[str, Any]) -> tuple[str | int, ...] | None:
    """The keys that lead to one object inside another."""
    if value is wanted:
        return ()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    paths = ((key, _find_path(each, wanted)) for key, each in items)
    return next(((key, *path) for key, path in paths if path is not None), None)


def _no_json(name: str, error: ValueError | RecursionError) -> Finding:
    if isinstance(error, json.JSONDecodeError):
        return report("QL105", f"is not JSON: {error.msg}", file=name, line=error.lineno, column=error.colno)
    return report("QL105", f"is not JSON: {error}", file=name)


def find_pointers(storage: Storage, names: Iterable[str]) -> Iterator[Finding]:
    """Those of the files that are git-LFS pointers; of a file that cannot be read nothing is known."""
    for name in names:
        try:
            small = len(LFS_SIGNATURE) <= storage.size(name) <= MAX_POINTER_BYTES
            if small and storage.read(name, 0, len(LFS_SIGNATURE)) == LFS_SIGNATURE:
                yield _pointer(name)
        except OSError:
            continue


def _pointer(name: str) -> Finding:
    return report(
        "QL002", "is a git-LFS pointer, not the file", file=name, remedy="run `git lfs pull`, or download the file"
    )


def unreadable(name: str, error: OSError) -> Finding:
    """A file that is listed and could not be read: nothing is known of what it holds."""
    reason = error.strerror or error
    if isinstance(error, FileNotFoundError):
        return report("QL005", f"cannot be found: {reason}", file=name, remedy="download it again")
    return report(
        "QL013",
        f"cannot be read: {reason}",
        file=name,
        remedy="see to it that the file can be read, and try again",
    )
