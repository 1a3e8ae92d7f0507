"""The names of a checkpoint's modules, as the entries of a config's lists are looked up in them."""

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qload.calls import call
from qload.checkpoint import Checkpoint
from qload.configs import SECTIONS
from qload.examination import Examination
from qload.patterns import Dialect, ListsNames, NameList
from qload.validation.places import text_sections

WRAPPERS = (
    *("model.language_model", "language_model.model", "language_model", "model.model", "model"),
    *("transformer", "thinker.model", "thinker", "base_model.model", "model.thinker"),
)
"""What may stand before the names of a model's modules in one place, and not in another that means the same."""
_DIGIT = re.compile(r"\d")

Place = tuple[str, tuple[str | int, ...]]
"""A JSON file, and the keys that lead to something in it."""


@dataclass(frozen=True)
class Vocabulary:
    """The names of stored modules."""

    modules: Collection[str]

    @cached_property
    def ordered(self) -> tuple[str, ...]:
        return tuple(sorted(self.modules))

    @cached_property
    def all(self) -> frozenset[str]:
        """The modules that store tensors, and those that they are in."""
        names = set(self.modules)
        for name in self.modules:
            above = name.rpartition(".")[0]
            while above and above not in names:
                names.add(above)
                above = above.rpartition(".")[0]
        return frozenset(names)

    @cached_property
    def text(self) -> str:
        """All names, each on a line of its own."""
        return "\n" + "\n".join(sorted(self.all)) + "\n"

    @cached_property
    def words(self) -> frozenset[str]:
        """The words between dots, without numbers."""
        return frozenset(word for name in self._first for word in name.split(".") if not word.isdigit())

    @cached_property
    def roots(self) -> frozenset[str]:
        """The words that names begin with."""
        return frozenset(name.partition(".")[0] for name in self.modules)

    @cached_property
    def _first(self) -> tuple[str, ...]:
        """The names without those of every expert but the first of each mixture."""
        return tuple(sorted(name for name in self.all if ".experts." not in name or ".experts.0." in f"{name}."))

    def matches(self, entry: str, names: NameList) -> bool:
        """Whether an entry of a list means any of these modules, or of those that they are in."""
        if entry in self.modules or entry in self.all:
            return True
        if names.is_plain(entry):
            if names.dialect in (Dialect.EXACT, Dialect.WILDCARD):
                return False
            if names.dialect is Dialect.SUFFIX:
                return f".{entry}\n" in self.text
            if names.dialect is Dialect.SUBSTRING:
                return entry in self.text
        pattern = names.compile(entry)
        # A pattern without digits that matches one expert matches the first.
        return pattern.match(self.all if _DIGIT.search(entry) else self._first)

    def ending(self, end: str) -> str | None:
        """A name that ends with those words, of which there are more before them."""
        match = re.search(rf"\n(\S*\.{re.escape(end)})\n", self.text) if f".{end}\n" in self.text else None
        return None if match is None else match[1]

    def below(self, name: str) -> Iterator[str]:
        """The modules of that name and below it."""
        if name in self.all:
            yield from (each for each in self.beginning(name) if each[len(name) : len(name) + 1] in ("", "."))

    def beginning(self, start: str) -> Iterator[str]:
        """The modules whose names begin with those letters."""
        at = bisect_left(self.ordered, start)
        while at < len(self.ordered) and self.ordered[at].startswith(start):
            yield self.ordered[at]
            at += 1

    def rewrap(self, entry: str) -> str | None:
        """The one name that differs from an entry in nothing but what wraps it; None where there is none, or several.

        An entry that is a name already has none.
        """
        if entry in self.modules or entry in self.all:
            return None
        cores = {entry, *(entry.removeprefix(f"{wrapper}.") for wrapper in WRAPPERS)}
        other = {each for core in cores for each in (core, *(f"{wrapper}.{core}" for wrapper in WRAPPERS))}
        found = other & self.all
        return found.pop() if len(found) == 1 else None


def read_vocabulary(found: Examination) -> Vocabulary:
    return Vocabulary(found.checkpoint.modules.keys())


def read_lists(found: Examination) -> tuple[NameList, ...]:
    """The lists of modules in the checkpoint's config. Raises PluginError where the plugin fails to tell them."""
    quantization = found.quantization
    if quantization is None or not isinstance(quantization.config, ListsNames):
        return ()
    lists: Iterable[NameList] = call(quantization.method.origin, "its lists of names", quantization.config.name_lists)
    return tuple(each for each in lists if each.entries)


def locate(entry: str, names: NameList, checkpoint: Checkpoint) -> Place | None:
    """Where an entry is written; None for one that nobody wrote, as a plugin may put some there itself."""
    for keys, section in _list_sections(checkpoint):
        path = _follow(section, names.keys, entry) or _search(section, entry)
        if path is not None:
            return "config.json", (*keys, *path)
    for file in checkpoint.files:
        if file.endswith(".json") and "quant" in file and (side := checkpoint.read_json(file)) is not None:
            path = _search(side, entry)
            if path is not None:
                return file, path
    return None


def _list_sections(checkpoint: Checkpoint) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for keys, holder in text_sections(checkpoint.config):
        for key in SECTIONS:
            if isinstance(holder.get(key), Mapping):
                yield (*keys, key), holder[key]


def _follow(value: Any, keys: tuple[str, ...], entry: str) -> tuple[str | int, ...] | None:
    """The keys of an entry of the list at `keys`, if it is there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, list) and entry in value:
        return (*keys, value.index(entry))
    return (*keys, entry) if isinstance(value, Mapping) and entry in value else None


def _search(value: Any, entry: str) -> tuple[str | int, ...] | None:
    """The keys of an entry that is in some list below, or a key itself."""
    if isinstance(value, list) and entry in value:
        return (value.index(entry),)
    if isinstance(value, Mapping):
        if entry in value:
            return (entry,)
        for key, below in value.items():
            path = _search(below, entry)
            if path is not None:
                return (key, *path)
    return None
