"""Names in the config that begin otherwise than those of the tensors."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from qload.checkpoint.names import split_name
from qload.dtypes import FLOATS
from qload.examination import Examination
from qload.findings import Finding, report
from qload.patterns import Meaning, NameList, and_above, generalise, is_class_name
from qload.validation.places import list_kin
from qload.validation.vocabulary import Place, Vocabulary, locate, read_lists, read_vocabulary

_CODES = ("QL201", "QL202", "QL210", "QL308")
_NEWER = "model.language_model."
"""Transformers' newer name for what models that see or hear have below `model.` or `language_model.model.` on disk."""
_SENSES = ("vision_config", "audio_config")


@dataclass(frozen=True, slots=True)
class Drift:
    """An entry that means `name`, where it is written, and the modules that it would explain.

    One that is `converted` needs no other word: whoever reads the entry gives the tensors its names.
    """

    entry: str
    name: str
    place: Place
    modules: tuple[str, ...]
    converted: bool


def find_prefix_drift(found: Examination) -> Iterator[Finding]:
    """QL209: entries that match nothing as they are written, and modules of another prefix that are as they say."""
    for drift in Drifts(found).all:
        if not drift.converted:
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
    if any(finding.code in _CODES for finding in findings):
        explained = {module for drift in Drifts(found).all for module in drift.modules}
    for finding in findings:
        if finding.code not in _CODES or _name_module(finding) not in explained:
            yield finding


@dataclass(frozen=True)
class Drifts:
    """The drifts of a checkpoint."""

    found: Examination

    @property
    def all(self) -> Iterator[Drift]:
        for names in read_lists(self.found):
            for entry in filter(names.is_plain, names.entries):
                name = None if is_class_name(entry) else self._vocabulary.rewrap(entry)
                if name is not None and not self._vocabulary.matches(entry, names):
                    modules = tuple(self._list_explained(name, names))
                    place = locate(entry, names, self.found.checkpoint) if modules else None
                    if place is not None:
                        yield Drift(entry, name, place, modules, self._is_converted(entry, name))

    def _list_explained(self, name: str, names: NameList) -> Iterator[str]:
        """The modules that contradict the config as it is written, and agree with what the entry says of `name`."""
        for module in self._vocabulary.below(name):
            codes = self._faults.get(module, set())
            is_target = names.meaning is Meaning.TARGET
            if ("QL202" in codes) if is_target else self._is_plain(module) and self._should_be_quantized(module):
                yield module

    def _should_be_quantized(self, module: str) -> bool:
        """Whether the plan says so, or modules of its place in other layers are."""
        if "QL201" in self._faults.get(module, set()):
            return True
        return generalise(module) in self._quantized and not self._is_ignored(module)

    def _is_ignored(self, module: str) -> bool:
        """Whether some entry leaves it alone as it is written."""
        lists = (names for names in read_lists(self.found) if names.meaning is Meaning.IGNORE)
        return any(names.compile_all().match(and_above([module]) if names.below else [module]) for names in lists)

    def _is_plain(self, module: str) -> bool:
        """Whether a module is stored as one that nothing was done to."""
        stored = self.found.checkpoint.modules.get(module, {})
        weight = self.found.checkpoint.tensors[stored["weight"]] if "weight" in stored else None
        return stored.keys() <= {"weight", "bias"} and weight is not None and weight.dtype in FLOATS

    def _is_converted(self, entry: str, name: str) -> bool:
        has_senses = any(key in self.found.checkpoint.config for key in _SENSES)
        return has_senses and entry.startswith(_NEWER) and not name.startswith(_NEWER)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return read_vocabulary(self.found)

    @cached_property
    def _quantized(self) -> frozenset[str]:
        """The places of quantized modules."""
        return frozenset(kin.pattern for kin in list_kin(self.found) if kin.is_quantized)

    @cached_property
    def _faults(self) -> Mapping[str, set[str]]:
        """The codes of what the plan found in each module."""
        faults: dict[str, set[str]] = {}
        for finding in self.found.findings:
            if finding.code in _CODES:
                faults.setdefault(_name_module(finding), set()).add(finding.code)
        return faults


def _name_module(finding: Finding) -> str:
    return finding.where if finding.code == "QL202" else split_name(finding.where)[0]
