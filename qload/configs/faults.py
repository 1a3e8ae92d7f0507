"""What breaks a config's schema, in words for whoever wrote the config."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from qload.configs.sections import Keys, Section
from qload.configs.unknown import list_names, suggest
from qload.findings import Finding, report

_PREFIXES = ("Value error, ", "Assertion failed, ")
_SHOULD = "Input should be "


def describe_faults(error: ValidationError, section: Section, model: type[BaseModel]) -> Iterator[Finding]:
    """A finding for each place that breaks the schema; where a value could be of several kinds, one for all of them."""
    faults: dict[tuple[Keys, str], list[Any]] = {}
    for fault in error.errors(include_url=False):
        pointer = section.point(fault["loc"])
        missing = str(fault["loc"][-1]) if fault["type"] == "missing" else ""
        faults.setdefault((pointer, missing), []).append(fault)
    for (pointer, missing), alike in faults.items():
        where = _name(pointer[len(section.path) :], missing) or _name(alike[0]["loc"]) or section.name or "the config"
        yield report(
            "QL105",
            _describe(alike),
            where=where,
            file=section.file,
            found="" if missing else repr(alike[0].get("input"))[:80],
            remedy=_suggest(alike[0], model),
            pointer=pointer,
        )


def _name(keys: Iterable[str | int], last: str = "") -> str:
    return ".".join(map(str, (*keys, *([last] if last else ()))))


def _describe(faults: list[Mapping[str, Any]]) -> str:
    """One sentence for what is wrong; the kinds that a value could have been of are joined."""
    messages = list(dict.fromkeys(_reword(fault) for fault in faults))
    wanted = [message.removeprefix("should be ") for message in messages]
    if len(messages) > 1 and all(message != want for message, want in zip(messages, wanted, strict=True)):
        return f"should be {' or '.join(wanted)}"
    return "; ".join(messages)


def _reword(fault: Mapping[str, Any]) -> str:
    """What pydantic says, as the end of a sentence whose subject is the field."""
    if fault["type"] == "missing":
        return "is missing"
    if fault["type"] == "extra_forbidden":
        return "is no field of this object"
    message = str(fault["msg"])
    for prefix in _PREFIXES:
        message = message.removeprefix(prefix)
    if message.startswith(_SHOULD):
        return f"should be {message.removeprefix(_SHOULD)}"
    return message


def _suggest(fault: Mapping[str, Any], model: type[BaseModel]) -> str:
    return suggest(str(fault["loc"][-1]), list_names(model)) if fault["type"] == "extra_forbidden" else ""
