"""JSON files beside the weights, which may hold anything."""

import json
from typing import Any

from qload.checkpoint.storage import Storage
from qload.findings import Finding, report

MAX_JSON_BYTES = 256_000_000


def read_json(storage: Storage, name: str) -> tuple[dict[str, Any] | None, Finding | None]:
    """The JSON object in a file, or the finding that says why there is none."""
    try:
        size = storage.size(name)
        if size > MAX_JSON_BYTES:
            return None, report("QL105", "is too large for a config", file=name, found=f"{size} bytes")
        value = json.loads(storage.read(name, 0, size))
    except OSError as error:
        return None, unreadable(name, error)
    except json.JSONDecodeError as error:
        fault = report("QL105", f"is not JSON: {error.msg}", file=name, line=error.lineno, column=error.colno)
        return None, fault
    except (ValueError, RecursionError) as error:
        return None, report("QL105", f"is not JSON: {error}", file=name)
    if not isinstance(value, dict):
        return None, report("QL105", "is not a JSON object", file=name, found=type(value).__name__)
    return value, None


def unreadable(name: str, error: OSError) -> Finding:
    """A file that is there and could not be read: nothing is known of what it holds."""
    return report(
        "QL013",
        f"cannot be read: {error.strerror or error}",
        file=name,
        remedy="see to it that the file can be read, and try again",
    )
