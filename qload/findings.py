"""Numbered faults of a checkpoint: what each says, and how they are put together."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

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


def collapse(findings: Iterable[Finding]) -> list[Finding]:
    """One finding for those that differ only in the numbers of their modules.

    `layers.0.q_proj` to `layers.3.q_proj` become `layers.{0..3}.q_proj (4)`.
    """
    alike: dict[Finding, list[Finding]] = defaultdict(list)
    for finding in findings:
        pattern = generalise(finding.where)
        alike[replace(finding, where=pattern, file="", found=finding.found, remedy="")].append(finding)
    return [_merge(group) for group in alike.values()]


def _merge(group: list[Finding]) -> Finding:
    first = group[0]
    if len(group) == 1:
        return first
    where = merge_names(finding.where for finding in group)
    files = {finding.file for finding in group}
    file = first.file if len(files) == 1 else f"{len(files)} files"
    return replace(first, where=f"{where} ({len(group)})", file=file)
