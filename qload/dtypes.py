"""Storage dtypes by the codes that safetensors headers use, and the names that configs use.

Source of the codes and widths: the safetensors format's dtype list.
"""

BITS: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "C64": 64,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}

CONFIG_NAMES: dict[str, str] = {
    "float16": "F16",
    "half": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float": "F32",
    "float64": "F64",
}
"""The names that a model's config.json gives its dtype, without the prefix `torch.`."""

FLOATS = ("F32", "BF16", "F16", "F64")
"""Dtypes that hold a value as it is, so that one converts into another by value."""

SCALE_DTYPES = FLOATS[:3]
"""Those that scales are stored in, where a format does not say otherwise."""


def storage_bytes(dtype: str, count: int) -> int:
    """Bytes of `count` packed values of the dtype with that code, rounded up to whole bytes."""
    return -(-count * BITS[dtype] // 8)
