"""Values that torchao writes as JSON: the name of a class beside its fields, or a plain value.

Source of the form: torchao's `core/config.py` (`ConfigJSONEncoder`) and `prototype/safetensors/safetensors_utils.py`
(`TensorSubclassAttributeJSONEncoder`), the same but for versions.
"""

from collections.abc import Mapping
from typing import Any

Block = tuple[int | None, int | None]
"""The rows and columns that share a scale; None for all of them."""

TENSOR: Block = (None, None)
ROW: Block = (1, None)

MAX_BLOCK = 2**31
"""What no block of a weight reaches."""


def untag(value: object) -> tuple[str, Mapping[str, Any]]:
    """The name of a class, and its fields. Raises ValueError for anything else."""
    if isinstance(value, Mapping):
        name, fields = value.get("_type"), value.get("_data", {})
        if isinstance(name, str) and isinstance(fields, Mapping):
            return name, fields
    raise ValueError(f"{str(value)[:60]!r} is not a class with its fields")


def read_word(value: object, default: str) -> str:
    """The name of a dtype or of an enum's member, tagged or plain. Raises ValueError for anything else."""
    if isinstance(value, Mapping):
        value = value.get("_data")
    if value is None:
        return default
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]!r} is not a name")
    return value.removeprefix("torch.")


def read_flag(value: object) -> bool:
    """Whether something holds; None is no. Raises ValueError for anything else."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ValueError(f"{str(value)[:60]!r} is not true or false")


def read_bound(value: object) -> float | None:
    """A magnitude, or None. Raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    raise ValueError(f"{str(value)[:60]!r} is not a magnitude")


def read_size(value: object) -> int:
    """A number of rows or columns. Raises ValueError for anything else."""
    if type(value) is not int or not 0 < value < MAX_BLOCK:
        raise ValueError(f"{str(value)[:60]!r} is not a number of rows or columns")
    return value


def read_granularity(value: object, default: Block = ROW) -> Block:
    """The block that a granularity gives to a scale of a matrix. Raises ValueError for an unknown one.

    Source: torchao's `get_block_size`: along the axis `dim` of PerRow there is one scale, along `axis` of PerAxis many.
    """
    if value is None:
        return default
    name, fields = untag(value)
    match name:
        case "PerTensor":
            return TENSOR
        case "PerToken":
            return ROW
        case "PerRow":
            return ROW if fields.get("dim", -1) in (-1, 1) else (None, 1)
        case "PerAxis":
            return ROW if fields.get("axis") in (0, -2) else (None, 1)
        case "PerGroup":
            return 1, read_size(fields.get("group_size"))
        case "PerBlock":
            return read_block(fields.get("block_size"))
    raise ValueError(f"the granularity {name!r} is not known")


def read_block(value: object) -> tuple[int, int]:
    """The rows and columns of a block. Raises ValueError for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"the block {str(value)[:60]} is not one of rows and columns")
    rows, columns = map(read_size, value)
    return rows, columns
