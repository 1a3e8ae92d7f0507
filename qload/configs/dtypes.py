"""The dtype that a model's config names, which decides what a model computes in."""

from collections.abc import Iterator, Mapping
from typing import Any

from qload.checkpoint.folder import CONFIG
from qload.configs.sections import PARTS
from qload.findings import Finding, report

KEYS = ("dtype", "torch_dtype")
_NAMES = frozenset({"float16", "bfloat16", "float32", "float64", "half", "float", "double", "auto"})
_SMALL = frozenset({"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"})
_PREFIX = "torch."
_SYNONYMS = {"half": "float16", "float": "float32", "double": "float64"}


def find_dtype_faults(config: Mapping[str, Any]) -> Iterator[Finding]:
    """A config that names no dtype, one that is none, or two.

    Configs of several parts may name it in that of their text.
    """
    holders: dict[tuple[str, ...], Any] = {(): config, **{(part,): config.get(part) for part in PARTS}}
    written = [
        ((*path, key), holder[key])
        for path, holder in holders.items()
        if isinstance(holder, Mapping)
        for key in KEYS
        if holder.get(key) is not None
    ]
    if not written and not _has_parts(config):
        yield _missing()
    for path, value in written:
        if not _is_name(value):
            yield _misnamed(path, value)
    yield from _at_odds(config)


def _has_parts(config: Mapping[str, Any]) -> bool:
    """Whether the model is of several parts, of which others than its text may name a dtype."""
    return any(isinstance(value, Mapping) and name.endswith("_config") and not value.keys().isdisjoint(KEYS)
               for name, value in config.items())  # fmt: skip


def _is_name(value: object) -> bool:
    name = value.removeprefix(_PREFIX) if isinstance(value, str) else ""
    return name in _NAMES or name in _SMALL


def _missing() -> Finding:
    return report(
        "QL108",
        "the config names no dtype, and loaders fall back to one of their own",
        where=KEYS[0],
        file=CONFIG,
        expected=f"{KEYS[0]} or {KEYS[1]}",
        remedy='write the dtype that the model was trained in, as "dtype": "bfloat16"',
    )


def _misnamed(path: tuple[str, ...], value: object) -> Finding:
    return report(
        "QL108",
        "is not the name of a dtype",
        where=".".join(path),
        file=CONFIG,
        expected="float16, bfloat16 or float32",
        found=repr(value)[:80],
        remedy="write the name of the dtype that the model was trained in",
        pointer=path,
    )


def _at_odds(config: Mapping[str, Any]) -> Iterator[Finding]:
    new, old = (config.get(key) for key in KEYS)
    if not (_is_name(new) and _is_name(old)) or _normalise(new) == _normalise(old):
        return
    yield report(
        "QL108",
        f"{KEYS[0]} and {KEYS[1]} are at odds, and which of them counts depends on the loader",
        where=KEYS[1],
        file=CONFIG,
        expected=f"{new}, as {KEYS[0]} says",
        found=old,
        remedy="leave out the one that is wrong",
        pointer=(KEYS[1],),
    )


def _normalise(value: object) -> str:
    name = str(value).removeprefix(_PREFIX)
    return _SYNONYMS.get(name, name)
