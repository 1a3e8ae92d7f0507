"""Configs for quantizing while loading, by the names that users ask for: those of quanto's types."""

from collections.abc import Mapping
from typing import Any

_SKIPPED = [r".*\.(gate|router)"]
"""The routers of mixtures of experts; heads are left alone in any case."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    f"q{kind}": {"weights": kind, "modules_to_not_convert": _SKIPPED} for kind in ("int2", "int4", "int8", "float8")
}
