"""Two sources of one config, held against each other as their model understands them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from qload.configs.sections import Section
from qload.configs.unknown import list_aliases
from qload.fields import is_read
from qload.findings import Finding, report

Path = tuple[str | int, ...]
Difference = tuple[Path, Any, Any]


def find_conflicts(
    config: BaseModel, section: Section, other: BaseModel, beside: Section, *, names: bool = True
) -> Iterator[Finding]:
    """A finding for each field that both write, that is read, and that says something else in each.

    Names that are spelled otherwise, and defaults that only one of them writes, are no difference. Without `names`
    lists are not compared: those of a nested config may begin elsewhere.
    """
    for path, mine, others in _compare(config, other, (), names):
        yield report(
            "QL103",
            f"two sources of the quantization config disagree, and that in {_place(section)} is taken",
            where=".".join(map(str, path)),
            file=beside.file,
            expected=f"{_show(mine)}, as {_place(section)} says",
            found=_show(others),
            remedy="correct the one that is wrong, or delete what is stale",
            pointer=beside.point(_spell(type(other), path, beside)),
        )


def _place(section: Section) -> str:
    return f"{section.name} of {section.file}" if section.path else section.file


def _show(value: Any) -> str:
    text = repr(value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _spell(model: type[BaseModel], path: Path, section: Section) -> Path:
    """The path with its first name as the section writes it."""
    field = model.model_fields.get(str(path[0])) if path else None
    if field is None:
        return path
    aliases = list_aliases(str(path[0]), field)
    pointed = (alias for alias in aliases if len(section.point((alias,))) > len(section.path))
    return (next(pointed, path[0]), *path[1:])


def _compare(mine: Any, other: Any, path: Path, names: bool) -> Iterator[Difference]:
    if isinstance(mine, BaseModel) and isinstance(other, BaseModel) and type(mine) is type(other):
        fields = type(mine).model_fields
        for name in fields:
            if name in mine.model_fields_set & other.model_fields_set and is_read(fields[name]):
                yield from _compare(getattr(mine, name), getattr(other, name), (*path, name), names)
    elif isinstance(mine, Mapping) and isinstance(other, Mapping):
        yield from _compare_tables(mine, other, path, names)
    elif _settle(mine) != _settle(other) and (names or not _is_list(mine, other)):
        yield path, mine, other


def _compare_tables(mine: Mapping[Any, Any], other: Mapping[Any, Any], path: Path, names: bool) -> Iterator[Difference]:
    for key in mine:
        if key in other:
            yield from _compare(mine[key], other[key], (*path, key), names)
    odd = sorted(map(str, mine.keys() ^ other.keys()))
    if odd and names:
        yield path, sorted(map(str, mine)), sorted(map(str, other))


def _is_list(mine: Any, other: Any) -> bool:
    return any(isinstance(value, Sequence) and not isinstance(value, str) for value in (mine, other))


def _settle(value: Any) -> Any:
    """A value without what makes no difference: an empty list is as good as none, and so is any order of names."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = list(value)
        return sorted(items) or None if all(isinstance(item, str) for item in items) else items
    return None if isinstance(value, Mapping) and not value else value
