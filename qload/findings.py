"""Numbered faults of a checkpoint: what each says, and how they are put together."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from qload.catalogue import RULES, Rule, Severity
from qload.errors import describe
from qload.patterns import generalise, merge_names


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: what is wrong, where (module or tensor, and file), expected, found, and the way out.

    In a JSON file `pointer` are the keys that lead to it, and `line` and `column` count from 1; 0 says that they are
    not known.
    """

    code: str
    message: str
    where: str = ""
    file: str = ""
    expected: str = ""
    found: str = ""
    remedy: str = ""
    severity: Severity = Severity.ERROR
    pointer: tuple[str | int, ...] = ()
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.where} in {self.file}" if self.where and self.file else self.where or self.file
        return describe(self.message, place, self.expected, self.found, self.remedy)


def report(
    rule: str | Rule,
    message: str,
    *,
    where: str = "",
    file: str = "",
    expected: object = "",
    found: object = "",
    remedy: str = "",
    pointer: tuple[str | int, ...] = (),
    line: int = 0,
    column: int = 0,
) -> Finding:
    """A finding of a rule, of the catalogue's by its code or of a plugin's own, with that rule's severity."""
    rule = RULES[rule] if isinstance(rule, str) else rule
    facts = (where, file, str(expected), str(found), remedy)
    return Finding(rule.code, message, *facts, rule.severity, pointer, line, column)


def errors(findings: Iterable[Finding], ignore: Iterable[str] = ()) -> list[Finding]:
    """The findings that stop a load: errors, without the waivable ones whose code is ignored."""
    waived = {code for code in ignore if code in RULES and RULES[code].waivable}
    return [finding for finding in findings if finding.severity is Severity.ERROR and finding.code not in waived]


def refusals(reasons: Mapping[str, str]) -> Iterator[Finding]:
    """One finding for each reason for which a method refuses modules; `reasons` are by module."""
    refused: dict[str, list[str]] = defaultdict(list)
    for module, reason in reasons.items():
        refused[reason].append(module)
    for reason, modules in refused.items():
        count = f"{len(modules)} such modules" if len(modules) > 1 else ""
        yield report("QL104", reason, where=modules[0], file="config.json", found=count)


@dataclass(frozen=True)
class Group:
    """Findings that differ only in the numbers of their modules, in the order in which they were found."""

    findings: tuple[Finding, ...]

    @property
    def first(self) -> Finding:
        return self.findings[0]

    @cached_property
    def where(self) -> str:
        """One name for all their places, and how many there are: `layers.{0..3}.q_proj (4)`."""
        if len(self.findings) == 1:
            return self.first.where
        return f"{merge_names(finding.where for finding in self.findings)} ({len(self.findings)})".lstrip()

    @cached_property
    def files(self) -> Mapping[str, Finding]:
        """The files that they are in, each with the first that is in it."""
        files: dict[str, Finding] = {}
        for finding in self.findings:
            files.setdefault(finding.file, finding)
        return files

    def merge(self) -> Finding:
        """All of them as one finding, at the place of the first in a file."""
        file = self.first.file if len(self.files) == 1 else f"{len(self.files)} files"
        return replace(self.first, where=self.where, file=file)


def group_alike(findings: Iterable[Finding]) -> list[Group]:
    """Puts those together that differ only in the numbers of their modules, and in where in which file they are."""
    alike: dict[Finding, list[Finding]] = defaultdict(list)
    for finding in findings:
        key = replace(finding, where=generalise(finding.where), file="", remedy="")
        if finding.where:
            key = replace(key, pointer=(), line=0, column=0)
        alike[key].append(finding)
    return [Group(tuple(group)) for group in alike.values()]


def collapse(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for those that differ only in the numbers of their modules.

    `layers.0.q_proj` to `layers.3.q_proj` become `layers.{0..3}.q_proj (4)`.
    """
    return [group.merge() for group in group_alike(findings)]
