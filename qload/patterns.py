"""One matcher of module names for all the dialects in which configs write their lists."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import translate
from functools import cached_property
from typing import Generic, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

REGEX_PREFIX = "re:"
POSITIVE, NEGATIVE = "+:", "-:"
"""What stands before regexes of modules that are quantized otherwise, and of those that are left alone."""
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""A number in a module's name: of a layer, of an expert."""


_PLAIN_NAME = re.compile(r"[\w.-]+")
_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"
"""Where a name's part ends."""


def generalise(name: str) -> str:
    """A name with a star for each number: what modules of the same place in other layers share."""
    return NUMBER.sub("*", name)


def merge_names(names: Iterable[str]) -> str:
    """One name for several that differ only in their numbers: `layers.{0..3}.q_proj`."""
    names = list(names)
    numbers = [[int(number) for number in NUMBER.findall(name)] for name in names]
    columns = iter([_span(column) for column in zip(*numbers, strict=True)])
    return NUMBER.sub(lambda _: next(columns), names[0])


def _span(numbers: Iterable[int]) -> str:
    values = sorted(set(numbers))
    if len(values) == 1:
        return str(values[0])
    if values == list(range(values[0], values[-1] + 1)):
        return f"{{{values[0]}..{values[-1]}}}"
    return "{" + ",".join(map(str, values)) + "}"


def and_above(names: Iterable[str]) -> Iterator[str]:
    """Each name, and those of the modules above it."""
    for name in names:
        while name:
            yield name
            name = name.rpartition(".")[0]


class Dialect(StrEnum):
    """How a plain entry of a list is meant."""

    EXACT = "exact"
    SUFFIX = "suffix"
    SUBSTRING = "substring"
    WILDCARD = "wildcard"
    """`*`, `?` and `[...]` as in a shell, for the whole name; a star goes over dots."""
    REGEX = "regex"
    EDGE = "edge"
    """A regex for the name or that of a module above it, or else, letter by letter, any end of the name.

    Source: transformers' `should_convert_module`.
    """


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
            case Dialect.WILDCARD:
                whole = re.compile("|".join(map(translate, self._plain)) or "(?!)")
                return lambda name: whole.match(name) is not None
            case Dialect.EDGE:
                ends = tuple(self._plain)
                return lambda name: name.endswith(ends)
            case Dialect.REGEX:
                return lambda name: False

    @cached_property
    def _regexes(self) -> tuple[re.Pattern[str], ...]:
        if self.dialect is Dialect.REGEX:
            return tuple(map(_compile, self.entries))
        if self.dialect is Dialect.EDGE:
            return tuple(_compile(f"(?:{_compile(entry).pattern}){_BOUNDARY}") for entry in self.entries)
        if not self.prefixed:
            return ()
        return tuple(_compile(entry.removeprefix(REGEX_PREFIX)) for entry in self.entries if _is_regex(entry))

    @cached_property
    def _plain(self) -> frozenset[str]:
        return frozenset(entry for entry in self.entries if not (self.prefixed and _is_regex(entry)))


class Meaning(StrEnum):
    """What a config says of the modules that it lists."""

    IGNORE = "ignore"
    TARGET = "target"


@dataclass(frozen=True)
class NameList:
    """A list of modules as a config writes it, for those who ask whether it means what it should.

    `keys` lead to it in the method's section. With `below`, an entry also means what is below the modules that it
    matches. Class names, which begin with a capital, may stand among the entries; a mark of `Overrides` may stand
    before a regex.
    """

    keys: tuple[str, ...]
    entries: tuple[str, ...]
    meaning: Meaning = Meaning.IGNORE
    dialect: Dialect = Dialect.EXACT
    prefixed: bool = False
    below: bool = False

    def is_plain(self, entry: str) -> bool:
        """Whether an entry is a name, or a part of one."""
        is_marked = self.dialect is Dialect.REGEX or (self.prefixed and _is_regex(entry))
        return not is_marked and _PLAIN_NAME.fullmatch(entry) is not None

    def compile(self, entry: str) -> Patterns:
        """One entry, ready to match."""
        return replace(self, entries=(entry,)).compile_all()

    def compile_all(self) -> Patterns:
        """All entries, ready to match."""
        entries = map(_strip, self.entries) if self.dialect is Dialect.REGEX else self.entries
        return Patterns(tuple(entries), self.dialect, self.prefixed)


def is_class_name(entry: str) -> bool:
    """Whether an entry reads as that of a class, which only a model's modules tell."""
    return "." not in entry and entry[:1].isupper()


@runtime_checkable
class ListsNames(Protocol):
    """A config model that tells which modules it lists; one that has no lists leaves the method out."""

    def name_lists(self) -> Iterable[NameList]: ...


def list_overrides(keys: tuple[str, ...], entries: Iterable[str]) -> Iterator[NameList]:
    """The lists of a config's overrides: what it leaves alone, and what it says more of."""
    written = tuple(entries)
    negative = tuple(entry for entry in written if entry.startswith(NEGATIVE))
    positive = tuple(entry for entry in written if not entry.startswith(NEGATIVE))
    yield NameList(keys, negative, Meaning.IGNORE, Dialect.REGEX)
    yield NameList(keys, positive, Meaning.TARGET, Dialect.REGEX)


class Overrides(Generic[T]):
    """What a config says of modules that differ, by regexes that match from the start of a name.

    Those that `-:` stands before leave modules alone, whatever the others say; of these the first that matches
    counts. Raises ValueError for a regex that does not compile.
    """

    def __init__(self, entries: Mapping[str, T]) -> None:
        negative = (pattern for pattern in entries if pattern.startswith(NEGATIVE))
        self._left_out = Patterns(tuple(map(_strip, negative)), Dialect.REGEX)
        self._others = tuple(
            (Patterns((_strip(pattern),), Dialect.REGEX), value)
            for pattern, value in entries.items()
            if not pattern.startswith(NEGATIVE)
        )

    def leave_out(self, names: Iterable[str]) -> bool:
        """Whether a module is left alone."""
        return self._left_out.match(names)

    def find(self, names: Iterable[str]) -> T | None:
        """What differs for a module; None where nothing does."""
        names = tuple(names)
        return next((value for patterns, value in self._others if patterns.match(names)), None)


def _strip(pattern: str) -> str:
    return pattern.removeprefix(POSITIVE).removeprefix(NEGATIVE)


def _is_regex(entry: str) -> bool:
    return entry.startswith(REGEX_PREFIX)


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
