"""The fields of a config that its model does not know."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from qload.configs.sections import Section
from qload.findings import Finding, report

_CUTOFF = 0.75
"""How like a name has to be to be suggested."""


def find_unknown(config: BaseModel, section: Section) -> Iterator[Finding]:
    """A finding for each field that is written and that nobody knows."""
    for keys, names in _walk(config, section.written, ()):
        yield _report(keys, names, section)


def find_unknown_names(section: Section, names: Iterable[str]) -> Iterator[Finding]:
    """The same for a section without a model, of which the names of its fields are known."""
    known = list(names)
    for key in section.written:
        if key not in known:
            yield _report((str(key),), known, section)


def _report(keys: tuple[str | int, ...], names: Iterable[str], section: Section) -> Finding:
    return report(
        "QL106",
        "is not a field that is known, and nothing reads it",
        where=".".join(map(str, keys)),
        file=section.file,
        remedy=suggest(str(keys[-1]), names) or "correct its name, or leave it out",
        pointer=section.point(keys),
    )


def suggest(name: str, names: Iterable[str]) -> str:
    """A question after the name that was perhaps meant; nothing where none is like it."""
    close = get_close_matches(name.lower(), list(names), n=1, cutoff=_CUTOFF)
    return f"did you mean {close[0]!r}?" if close else ""


def list_aliases(name: str, field: FieldInfo) -> tuple[str, ...]:
    """The names under which a field may be written."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(choice for choice in alias.choices if isinstance(choice, str))
    return (alias,) if isinstance(alias, str) else (name,)


def list_names(model: type[BaseModel]) -> list[str]:
    """The names of all fields of a model, and of the models in it."""
    names: dict[str, None] = {}
    waiting: list[Any] = [model]
    seen: set[Any] = set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, type) and issubclass(each, BaseModel) and each not in seen:
            seen.add(each)
            for name, field in each.model_fields.items():
                names.update(dict.fromkeys(list_aliases(name, field)))
            waiting += [field.annotation for field in each.model_fields.values()]
        else:
            waiting += get_args(each)
    return list(names)


def _walk(value: Any, written: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], list[str]]]:
    """The keys of each field that is not known, with the names of its neighbours."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        aliases = {name: list_aliases(name, field) for name, field in fields.items()}
        known = [alias for each in aliases.values() for alias in each]
        yield from (((*keys, extra), known) for extra in value.model_extra or () if extra not in known)
        for name in value.model_fields_set & fields.keys():
            key = next((alias for alias in aliases[name] if _has(written, alias)), name)
            yield from _walk(getattr(value, name), _below(written, key), (*keys, key))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _walk(each, _below(written, key), (*keys, key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, each in enumerate(value):
            yield from _walk(each, _below(written, number), (*keys, number))


def _has(written: Any, key: str) -> bool:
    return isinstance(written, Mapping) and key in written


def _below(written: Any, key: Any) -> Any:
    """What is written below a key; a value that stands alone may have been taken for a list of one."""
    if isinstance(written, Mapping):
        return written if type(key) is int else written.get(key)
    if isinstance(written, Sequence) and not isinstance(written, str) and type(key) is int and key < len(written):
        return written[key]
    return None
