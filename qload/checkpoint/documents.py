"""JSON files beside the weights, which may hold anything."""

import json
from dataclasses import dataclass
from typing import Any

from qload.checkpoint.storage import Storage
from qload.findings import Finding, report

MAX_JSON_BYTES = 256_000_000


def read_json(storage: Storage, name: str) -> tuple[dict[str, Any] | None, Finding | None]:
    """The JSON object in a file, and the finding that says why there is none, or that a key of it has two values."""
    try:
        size = storage.size(name)
        if size > MAX_JSON_BYTES:
            return None, report("QL105", "is too large for a config", file=name, found=f"{size} bytes")
        doubles: list[_Double] = []
        value = json.loads(storage.read(name, 0, size), object_pairs_hook=lambda pairs: _collect(pairs, doubles))
    except OSError as error:
        return None, unreadable(name, error)
    except json.JSONDecodeError as error:
        fault = report("QL105", f"is not JSON: {error.msg}", file=name, line=error.lineno, column=error.colno)
        return None, fault
    except (ValueError, RecursionError) as error:
        return None, report("QL105", f"is not JSON: {error}", file=name)
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


def unreadable(name: str, error: OSError) -> Finding:
    """A file that is there and could not be read: nothing is known of what it holds."""
    return report(
        "QL013",
        f"cannot be read: {error.strerror or error}",
        file=name,
        remedy="see to it that the file can be read, and try again",
    )
