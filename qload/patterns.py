"""One matcher of module names for all the dialects in which configs write their lists."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property

REGEX_PREFIX = "re:"
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""A number in a module's name: of a layer, of an expert."""


def generalise(name: str) -> str:
    """A name with a star for each number: what modules of the same place in other layers share."""
    return NUMBER.sub("*", name)


class Dialect(StrEnum):
    """How a plain entry of a list is meant."""

    EXACT = "exact"
    SUFFIX = "suffix"
    SUBSTRING = "substring"
    GLOB = "glob"
    """`*`, `?` and `[...]` as in file names; `*` also stands for dots."""
    REGEX = "regex"


@dataclass(frozen=True)
class Patterns:
    """A config's list of module names, in one dialect.

    Regexes match from the start of the name, as `re.match` does. With `prefixed`, entries that begin with
    `re:` are regexes and the others follow the dialect. Raises ValueError for a regex that does not compile.
    """

    entries: tuple[str, ...]
    dialect: Dialect = Dialect.EXACT
    prefixed: bool = False

    def __post_init__(self) -> None:
        _ = self._regexes

    def match(self, names: Iterable[str]) -> bool:
        """Whether any of a module's names matches any entry."""
        return any(map(self._matches, names))

    def _matches(self, name: str) -> bool:
        return self._matches_plain(name) or any(regex.match(name) for regex in self._regexes)

    @cached_property
    def _matches_plain(self) -> Callable[[str], bool]:
        match self.dialect:
            case Dialect.EXACT:
                return self._plain.__contains__
            case Dialect.SUFFIX:
                return lambda name: any(name == entry or name.endswith("." + entry) for entry in self._plain)
            case Dialect.SUBSTRING:
                return lambda name: any(entry in name for entry in self._plain)
            case Dialect.GLOB:
                return lambda name: any(fnmatchcase(name, entry) for entry in self._plain)
            case Dialect.REGEX:
                return lambda name: False

    @cached_property
    def _regexes(self) -> tuple[re.Pattern[str], ...]:
        if self.dialect is Dialect.REGEX:
            return tuple(map(_compile, self.entries))
        if not self.prefixed:
            return ()
        return tuple(_compile(entry.removeprefix(REGEX_PREFIX)) for entry in self.entries if _is_regex(entry))

    @cached_property
    def _plain(self) -> frozenset[str]:
        return frozenset(entry for entry in self.entries if not (self.prefixed and _is_regex(entry)))


def _is_regex(entry: str) -> bool:
    return entry.startswith(REGEX_PREFIX)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
