"""Weight files that belong together by their names, and sets of them that get in each other's way."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qload.findings import Finding, report

SINGLE = "model.safetensors"
SUFFIX = ".safetensors"
MAX_COUNT = 10_000
"""More files than any checkpoint has: a name that says more of them is not believed."""

_NUMBERED = re.compile(r"model-(?P<number>\d{1,9})-of-(?P<count>\d{1,9})\.safetensors")
_CONSOLIDATED = re.compile(r"consolidated([.-].*)?\.safetensors")


@dataclass(frozen=True, slots=True)
class NumberedSet:
    """Files named `model-00001-of-00003.safetensors`, of one number in all; `files` are those there, by number."""

    count: str
    files: Mapping[int, str]

    @property
    def pattern(self) -> str:
        return f"model-*-of-{self.count}{SUFFIX}"

    def missing(self) -> tuple[str, ...]:
        """The names of the files that are not there. Some tools count from zero."""
        first = 0 if 0 in self.files else 1
        numbers = range(first, first + int(self.count)) if int(self.count) <= MAX_COUNT else ()
        example = _NUMBERED.fullmatch(next(iter(self.files.values())))
        width = len(example["number"]) if example is not None else 0
        return tuple(
            f"model-{number:0{width}d}-of-{self.count}{SUFFIX}" for number in numbers if number not in self.files
        )


def find_numbered(names: Iterable[str]) -> tuple[NumberedSet, ...]:
    """The numbered sets among files."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for name in names:
        if match := _NUMBERED.fullmatch(name):
            found[match["count"]][int(match["number"])] = name
    return tuple(NumberedSet(count, files) for count, files in sorted(found.items()))


def find_missing(names: Iterable[str]) -> Iterator[Finding]:
    """The files that the only numbered set among those of a checkpoint without an index lacks."""
    sets = find_numbered(names)
    if len(sets) != 1:
        return
    for name in sets[0].missing():
        yield report(
            "QL005",
            "is one of the numbered files, and is not there",
            file=name,
            found=f"{len(sets[0].files)} of {int(sets[0].count)}",
            remedy="download it, and the index",
        )


def find_overlaps(names: Iterable[str], chosen: tuple[str, ...]) -> Iterator[Finding]:
    """The sets of weight files beside those that are read, which whoever reads all files would read, too.

    Adapters, pickled weights and files of other names are no copies of the model, as far as names tell.
    """
    kinds = {_kind(name) for name in chosen}
    sets: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names) - set(chosen)) if chosen else ():
        kind = _kind(name)
        if kind and kind not in kinds:
            sets[kind].append(name)
    yield from (report_overlap(kind, files, chosen) for kind, files in sets.items())


def find_mixed_sets(chosen: tuple[str, ...]) -> Iterator[Finding]:
    """The numbered sets among files that are all read, for no index says which are meant."""
    sets = find_numbered(chosen)
    if len(sets) > 1:
        yield report(
            "QL009",
            "files of several numbered sets lie together, and no index says which are meant: all are read",
            file=next(iter(sets[0].files.values())),
            found=", ".join(f"{each.pattern} ({len(each.files)})" for each in sets),
            remedy="delete those of other sets, and download the index",
        )


def report_overlap(kind: str, files: list[str], chosen: tuple[str, ...]) -> Finding:
    """The finding of a set that is not read, beside the files that are."""
    return report(
        "QL009",
        "lies beside another set of weights, and is not read",
        file=kind if len(files) > 1 else files[0],
        expected=f"only {describe_files(chosen)}, read here",
        found=f"{len(files)} more" if len(files) > 1 else "",
        remedy="delete the set that is not meant: some loaders read every file",
    )


def describe_files(files: tuple[str, ...]) -> str:
    """Files by name, or by how many there are."""
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _kind(name: str) -> str:
    """What set a file belongs to by its name; nothing for one whose name does not tell."""
    if _CONSOLIDATED.fullmatch(name):
        return f"consolidated*{SUFFIX}"
    match = _NUMBERED.fullmatch(name)
    return f"model-*-of-{match['count']}{SUFFIX}" if match else name if name == SINGLE else ""
