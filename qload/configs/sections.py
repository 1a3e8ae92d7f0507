"""Where a model's config speaks of quantization, and how a place in what it says is pointed at."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qload.checkpoint.folder import CONFIG

SECTIONS = ("quantization_config", "compression_config")
"""The names that a model's config gives the section on quantization."""

PARTS = ("text_config", "llm_config", "thinker_config", "language_config")
"""The nested configs that speak of the text model, of models of several parts."""

Keys = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Section:
    """What one file says of quantization, below the keys `path`; `written` may be anything but nothing."""

    written: Any
    file: str = CONFIG
    path: Keys = ()

    @property
    def is_nested(self) -> bool:
        """Whether it stands in the config of a part."""
        return len(self.path) > 1

    @property
    def name(self) -> str:
        """The section's keys, joined by points."""
        return ".".join(map(str, self.path))

    def point(self, keys: Iterable[str | int]) -> Keys:
        """The keys of the file that lead to a place in the section, as far as it has them.

        Of the keys those are passed over that say what a value was taken for, as the names of models in errors. A key
        that the section has not itself is looked for one level below it, where some shapes of a config keep it.
        """
        found: list[str | int] = []
        value: Any = self.written
        for key in keys:
            for steps in ((key,), *(((outer, key) for outer in value) if not found and _is_open(value) else ())):
                reached = _follow(value, steps)
                if reached is not None:
                    found.extend(steps)
                    (value,) = reached
                    break
        return (*self.path, *found)


def _is_open(value: object) -> bool:
    return isinstance(value, Mapping)


def _follow(value: Any, steps: Iterable[Any]) -> tuple[Any] | None:
    """What lies at the end of some steps, in a tuple; None where they lead nowhere."""
    for step in steps:
        if not _has(value, step):
            return None
        value = value[step]
    return (value,)


def _has(value: object, step: Any) -> bool:
    if isinstance(value, Mapping):
        return step in value
    return isinstance(value, Sequence) and not isinstance(value, str) and type(step) is int and step < len(value)


def find_sections(config: Mapping[str, Any]) -> list[Section]:
    """What a model's config, and the nested configs of its text, say of quantization, the one that counts first."""
    holders: list[tuple[tuple[str, ...], Any]] = [((), config), *(((part,), config.get(part)) for part in PARTS)]
    return [
        Section(written, path=(*path, name))
        for path, holder in holders
        if isinstance(holder, Mapping)
        for name in SECTIONS
        if (written := holder.get(name)) not in (None, {})
    ]


def find_section(config: Mapping[str, Any]) -> object:
    """What counts of what a model's config says of quantization; None for nothing."""
    return next((section.written for section in find_sections(config)), None)
