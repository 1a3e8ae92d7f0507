"""Where in the text of a JSON file the values stand that keys lead to."""

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

Pointer = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t\n\r]*")
_SCALAR = re.compile(r"[^\s,\]}]+")
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_QUOTED = re.compile(_STRING, re.DOTALL)
_STEP = re.compile(rf"{_STRING}|[\[\]{{}}]", re.DOTALL)
"""What matters to where a list or object ends: strings, which may have brackets in them, and brackets."""


@dataclass(frozen=True, slots=True)
class Span:
    """A value's place in a text, by the numbers of its characters; `key` is where its key begins, in an object."""

    start: int
    end: int
    key: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """A line and a column of it, both from 1 and in characters, and how many characters from there on are meant."""

    line: int
    column: int
    length: int = 1


def find_spans(text: str, pointers: Iterable[Pointer]) -> dict[Pointer, Span]:
    """Where the values stand that pointers lead to, in one pass over a text that json.loads can read.

    A pointer that leads nowhere is left out. Of a key that an object has twice the last counts, as for json.loads. Of
    any other text, what is found before it breaks off.
    """
    tree = _Tree()
    for pointer in pointers:
        tree.add(pointer)
    found: dict[Pointer, Span] = {}
    with suppress(IndexError, ValueError):
        _walk(text, _skip_space(text, 0), tree, None, found)
    return found


def find_nearest(spans: Mapping[Pointer, Span], pointer: Pointer) -> Span | None:
    """The value that a pointer leads to, or the innermost one above it that there is."""
    for length in range(len(pointer), 0, -1):
        if pointer[:length] in spans:
            return spans[pointer[:length]]
    return None


class Lines:
    """The lines of a text, to turn the numbers of characters into positions."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends = [match.start() for match in re.finditer("\n", text)]

    @property
    def count(self) -> int:
        return len(self._ends) + 1

    def place(self, start: int, end: int) -> Position:
        """Where a stretch of the text stands; what goes on in a further line is cut at the end of the first."""
        number = bisect_left(self._ends, start)
        first, last = self._bound(number)
        return Position(number + 1, start - first + 1, max(min(end, last) - start, 1))

    def read(self, line: int) -> str:
        """The text of a line."""
        first, last = self._bound(line - 1)
        return self._text[first:last].removesuffix("\r")

    def _bound(self, number: int) -> tuple[int, int]:
        first = self._ends[number - 1] + 1 if number > 0 else 0
        return first, self._ends[number] if number < len(self._ends) else len(self._text)

    def point(self, span: Span) -> Position:
        """Where to point for a value: at it, or at the key of one that is itself a list or an object."""
        is_nested = self._text[span.start] in "[{"
        if not is_nested:
            return self.place(span.start, span.end)
        return self.place(*span.key) if span.key is not None else self.place(span.start, span.start + 1)


@dataclass(slots=True)
class _Tree:
    """The pointers that go through one value."""

    pointer: Pointer = ()
    below: "dict[str | int, _Tree]" = field(default_factory=dict)

    def add(self, pointer: Pointer) -> None:
        tree = self
        for key in pointer:
            tree = tree.below.setdefault(key, _Tree((*tree.pointer, key)))

    def all_below(self) -> "Iterator[_Tree]":
        yield self
        for tree in self.below.values():
            yield from tree.all_below()


def _walk(text: str, start: int, tree: _Tree | None, key: tuple[int, int] | None, found: dict[Pointer, Span]) -> int:
    """Note the value that begins at `start`, if it is looked for, and those in it; returns its end."""
    if tree is None:
        return _skip_value(text, start)
    for each in tree.all_below():
        found.pop(each.pointer, None)
    is_opened = tree.below and text[start] in "[{"
    walk = _walk_list if text[start] == "[" else _walk_object
    end = walk(text, start + 1, tree, found) if is_opened else _skip_value(text, start)
    found[tree.pointer] = Span(start, end, key)
    return end


def _walk_list(text: str, at: int, tree: _Tree, found: dict[Pointer, Span]) -> int:
    number = 0
    while (at := _skip_space(text, at)) < len(text) and text[at] != "]":
        at = _skip_space(text, _walk(text, at, tree.below.get(number), None, found))
        number += 1
        at += text[at : at + 1] == ","
    return at + 1


def _walk_object(text: str, at: int, tree: _Tree, found: dict[Pointer, Span]) -> int:
    while (at := _skip_space(text, at)) < len(text) and text[at] != "}":
        key, end = _read_key(text, at)
        start = _skip_space(text, _skip_space(text, end) + 1)
        at = _skip_space(text, _walk(text, start, tree.below.get(key), (at, end), found))
        at += text[at : at + 1] == ","
    return at + 1


def _read_key(text: str, at: int) -> tuple[str, int]:
    """The string that begins at `at`, and its end. Raises ValueError if there is none."""
    match = _QUOTED.match(text, at)
    if match is None:
        raise ValueError(f"no key at {at}")
    key = match[0][1:-1]
    return (json.loads(match[0], strict=False) if "\\" in key else key), match.end()


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _skip_value(text: str, start: int) -> int:
    """The end of the value that begins at `start`, however deep it is."""
    if text[start] not in '[{"':
        match = _SCALAR.match(text, start)
        return match.end() if match else start + 1
    depth = 0
    for step in _STEP.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(step[0], 0)
        if depth <= 0:
            return step.end()
    return len(text)
