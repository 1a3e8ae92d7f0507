"""Entries of ignore lists that mean other modules to a matcher that looks for them anywhere in a name."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from qload.examination import Examination
from qload.findings import Finding, report
from qload.outline.modules import HEADS
from qload.patterns import Dialect, Meaning, NameList, generalise, merge_names
from qload.validation.places import list_kin
from qload.validation.vocabulary import Vocabulary, locate, read_lists, read_vocabulary

_SHOWN = 3


def find_ambiguous_names(found: Examination) -> Iterator[Finding]:
    """QL203: entries that are part of the names of other modules than those that they name, as `layers.1` is of 10's.

    Only where it would matter: where the method reads whole words, those others are quantized; where it looks for any
    part of a name, they are left alone for the sake of this entry.
    """
    lists = [each for each in read_lists(found) if each.meaning is Meaning.IGNORE]
    if not any(_may_be_part(entry, each) for each in lists for entry in each.entries):
        return
    quantized = {name: kin.is_quantized for kin in list_kin(found) for name in kin.names}
    layers = Vocabulary(quantized.keys())
    roots = read_vocabulary(found).roots
    for names in lists:
        is_part = names.dialect is Dialect.SUBSTRING
        for entry in (entry for entry in names.entries if _may_be_part(entry, names)):
            others = [name for name in _list_others(entry, layers, roots) if quantized[name] is not is_part]
            if is_part:
                others = [name for name in others if not (name.endswith(entry) or _is_named(name, names, entry))]
            if others:
                yield from _report(entry, others, names, found)


def _may_be_part(entry: str, names: NameList) -> bool:
    return names.is_plain(entry) and entry not in HEADS


def _list_others(entry: str, layers: Vocabulary, roots: frozenset[str]) -> list[str]:
    """The layers that an entry is a part of the name of without naming them, where it names some."""
    if entry.partition(".")[0] in roots:
        inside = [name for name in layers.beginning(entry) if _is_beside(name, entry)]
        is_naming = next(layers.below(entry), None) is not None
    else:
        inside, is_naming = _look_inside(entry, layers)
    return inside if is_naming else []


def _is_beside(name: str, entry: str) -> bool:
    return name[len(entry) : len(entry) + 1] not in ("", ".")


def _look_inside(entry: str, layers: Vocabulary) -> tuple[list[str], bool]:
    """The layers that an entry is a part of the name of, but for those of which it is whole words; are there such?"""
    if entry not in layers.text:
        return [], False
    words = re.compile(rf"(?:^|\.){re.escape(entry)}(?:\.|$)")
    parts = [name for name in layers.ordered if entry in name]
    others = [name for name in parts if words.search(name) is None]
    return others, len(others) < len(parts)


def _is_named(name: str, names: NameList, but: str) -> bool:
    """Whether another entry of the list names a module in whole words."""
    padded = f".{name}."
    return any(f".{entry}." in padded for entry in names.entries if entry != but)


def _report(entry: str, others: Iterable[str], names: NameList, found: Examination) -> Iterator[Finding]:
    place = locate(entry, names, found.checkpoint)
    if place is not None:
        is_part = names.dialect is Dialect.SUBSTRING
        yield report(
            "QL203",
            "the ignore entry is also a part of other modules' names, "
            + (
                "which a matcher of whole words would not leave out" if is_part else "which some matchers leave out too"
            ),
            where=entry,
            file=place[0],
            expected="an entry that means the same to all",
            found=_show(others),
            remedy="list the whole names of the modules that are meant",
            pointer=place[1],
        )


def _show(names: Iterable[str]) -> str:
    groups: Mapping[str, list[str]] = defaultdict(list)
    for name in names:
        groups[generalise(name)].append(name)
    shown = [merge_names(group) for group in list(groups.values())[:_SHOWN]]
    return ", ".join(shown) + (f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else "")
