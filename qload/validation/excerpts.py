"""The lines of the files in which findings are."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qload.checkpoint import Storage
from qload.checkpoint.documents import MAX_JSON_BYTES
from qload.findings import Finding
from qload.positions import Lines, Position, find_nearest, find_spans

_BEFORE, _SHOWN = 60, 160
"""How many characters of a long line are shown before what is meant, and how many at most."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A line of a file, or what lies around `column` of one that is long: from column `begin` on.

    `length` characters are meant; columns count from 1.
    """

    file: str
    line: int
    column: int
    length: int
    text: str
    begin: int = 1


def locate(findings: Sequence[Finding], storage: Storage) -> tuple[tuple[Finding, ...], tuple[Excerpt, ...]]:
    """The findings with the line and column of each that has a pointer, and the lines of all that have one.

    Reads the files that such findings are in; what cannot be read, or has changed, stays without.
    """
    inside: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.file in storage.names and (finding.pointer or finding.line):
            inside[finding.file].append(finding)
    places = {place[0]: place[1:] for file, group in inside.items() for place in _locate(group, _read(storage, file))}
    located = tuple(places[finding][0] if finding in places else finding for finding in findings)
    excerpts = {excerpt: None for _, excerpt in places.values()}
    return located, tuple(excerpts)


def _locate(findings: list[Finding], text: str | None) -> list[tuple[Finding, Finding, Excerpt]]:
    if text is None:
        return []
    spans = find_spans(text, {finding.pointer for finding in findings if finding.pointer})
    lines = Lines(text)
    places = []
    for finding in findings:
        span = find_nearest(spans, finding.pointer)
        position = lines.point(span) if span else Position(finding.line, finding.column)
        if 0 < position.line <= lines.count:
            located = replace(finding, line=position.line, column=position.column)
            places.append((finding, located, _cut(finding.file, position, lines.read(position.line))))
    return places


def _read(storage: Storage, file: str) -> str | None:
    """The text of a JSON file, decoded as json.loads does."""
    try:
        size = storage.size(file)
        data = storage.read(file, 0, size) if size <= MAX_JSON_BYTES else b""
        return data.decode(json.detect_encoding(data), "surrogatepass")
    except (OSError, ValueError):
        return None


def _cut(file: str, position: Position, text: str) -> Excerpt:
    begin = max(position.column - 1 - _BEFORE, 0) if len(text) > _SHOWN else 0
    shown = text[begin : begin + _SHOWN]
    return Excerpt(file, position.line, position.column, position.length, shown, begin + 1)
