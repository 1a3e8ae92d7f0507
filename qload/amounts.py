"""Sizes and counts in words."""


def describe_bytes(count: float) -> str:
    """A number of bytes in the unit that suits it: 1.67 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def describe_count(count: int, noun: str) -> str:
    """A number with its noun: 1 error, 2 errors."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
