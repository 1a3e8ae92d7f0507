"""Names in the config that begin otherwise than those of the tensors."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qload.checkpoint.names import split_name
from qload.dtypes import FLOATS
from qload.examination import Examination
from qload.findings import Finding, report
from qload.patterns import Meaning, NameList
from qload.validation.vocabulary import Place, Vocabulary, locate, read_lists, read_vocabulary

_CODES = ("QL201", "QL202", "QL210")


@dataclass(frozen=True, slots=True)
class Drift:
    """An entry that means `name`, where it is written, and the modules that it would explain."""

    entry: str
    name: str
    place: Place
    modules: tuple[str, ...]


def find_prefix_drift(found: Examination) -> Iterator[Finding]:
    """QL209: entries that match nothing as they are written, and modules of another prefix that are as they say."""
    for drift in _find_drifts(found):
        yield report(
            "QL209",
            "the config names modules with another prefix than the tensors have, and the entry applies to nothing",
            where=drift.entry,
            file=drift.place[0],
            expected=drift.name,
            found=f"{len(drift.modules)} such modules" if len(drift.modules) > 1 else drift.modules[0],
            remedy="write the config's names as the tensors have them",
            pointer=drift.place[1],
        )


def drop_explained(findings: Iterable[Finding], found: Examination) -> Iterator[Finding]:
    """The findings without those of modules that a drift of prefixes explains."""
    findings = list(findings)
    explained: set[str] = set()
    if any(finding.code == "QL209" for finding in findings):
        explained = {module for drift in _find_drifts(found) for module in drift.modules}
    for finding in findings:
        if finding.code not in _CODES or explained.isdisjoint(_name_module(finding)):
            yield finding


def _find_drifts(found: Examination) -> Iterator[Drift]:
    faults = _list_faults(found)
    lists = read_lists(found) if faults else ()
    if not lists:
        return
    vocabulary = read_vocabulary(found)
    for names in lists:
        for entry in filter(names.is_plain, names.entries):
            name = vocabulary.rewrap(entry)
            if name is not None and not vocabulary.matches(entry, names):
                modules = tuple(_list_explained(name, names, vocabulary, faults, found))
                place = locate(entry, names, found.checkpoint) if modules else None
                if place is not None:
                    yield Drift(entry, name, place, modules)


def _list_faults(found: Examination) -> Mapping[str, set[str]]:
    """The codes of what the plan found in each module."""
    faults: dict[str, set[str]] = {}
    for finding in found.findings:
        if finding.code in _CODES:
            for module in _name_module(finding):
                faults.setdefault(module, set()).add(finding.code)
    return faults


def _name_module(finding: Finding) -> tuple[str, ...]:
    return (finding.where,) if finding.code == "QL202" else (split_name(finding.where)[0],)


def _list_explained(
    name: str, names: NameList, vocabulary: Vocabulary, faults: Mapping[str, set[str]], found: Examination
) -> Iterator[str]:
    """The modules that contradict the config as it is written, and agree with what the entry says of `name`."""
    for module in vocabulary.below(name):
        codes = faults.get(module, set())
        if names.meaning is Meaning.TARGET:
            if "QL202" in codes:
                yield module
        elif "QL201" in codes and _is_plain(module, found):
            yield module


def _is_plain(module: str, found: Examination) -> bool:
    """Whether a module is stored as one that nothing was done to."""
    stored = found.checkpoint.modules.get(module, {})
    weight = stored.get("weight")
    return stored.keys() <= {"weight", "bias"} and (
        weight is not None and found.checkpoint.tensors[weight].dtype in FLOATS
    )
