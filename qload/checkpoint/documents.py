"""JSON files beside the weights, which may hold anything."""

import json
from pathlib import Path
from typing import Any

from qload.findings import Finding, report

MAX_JSON_BYTES = 256_000_000


def read_json(path: Path, name: str) -> tuple[dict[str, Any] | None, Finding | None]:
    """The JSON object in a file, or the finding that says why there is none."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            return None, report("QL105", "is too large for a config", file=name, found=f"{size} bytes")
        value = json.loads(path.read_bytes())
    except OSError as error:
        return None, report("QL105", f"cannot be read: {error.strerror}", file=name)
    except (ValueError, RecursionError) as error:
        return None, report("QL105", f"is not JSON: {error}", file=name)
    if not isinstance(value, dict):
        return None, report("QL105", "is not a JSON object", file=name, found=type(value).__name__)
    return value, None
