"""Numbered faults of a checkpoint, and the catalogue of the rules that find them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from qload.errors import describe
from qload.patterns import generalise, merge_names


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


class Tier(StrEnum):
    """What a rule has to read: the config, file headers, a few bytes, or whole tensors."""

    CONFIG = "C"
    HEADERS = "H"
    PROBE = "P"
    DATA = "D"


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the catalogue. A waivable rule may be ignored by a load.

    One that `needs_model` compares the checkpoint with an architecture, or with a rank's share of it.
    """

    code: str
    severity: Severity
    tier: Tier
    title: str
    waivable: bool = False
    needs_model: bool = False

    @property
    def is_validated(self) -> bool:
        """Whether validating can find it; loading can find all."""
        return self.tier in (Tier.CONFIG, Tier.HEADERS) and not self.needs_model


def _rules(*rows: tuple[str, str, str, str]) -> dict[str, Rule]:
    severities = {"E": Severity.ERROR, "W": Severity.WARNING}
    rules = (
        Rule(code, severities[flags[0]], Tier(tier), title, "waivable" in flags, "model" in flags)
        for code, flags, tier, title in rows
    )
    return {rule.code: rule for rule in rules}


RULES = _rules(
    ("QL001", "E", "H", "only pickled weights, which are not read unless that is asked for"),
    ("QL002", "E", "H", "a git-LFS pointer in place of the file"),
    ("QL003", "E", "H", "the header cannot be read"),
    ("QL004", "E", "H", "the file is truncated"),
    ("QL005", "E", "H", "the index names a file that is not there"),
    ("QL006", "E", "H", "the index names a tensor that its file does not hold"),
    ("QL007", "W", "H", "the index is stale"),
    ("QL008", "E", "H", "one tensor in several files"),
    ("QL011", "E", "H", "no weights"),
    ("QL012", "E", "C", "no config.json"),
    ("QL101", "E", "H", "quantized tensors, and no quantization config"),
    ("QL104", "E", "C", "the method, the format or the scheme is not known"),
    ("QL105", "E", "C", "the config breaks its schema"),
    ("QL201", "E", "H", "a tensor that the layer needs is not stored"),
    ("QL202", "E", "H", "a module that the config leaves unquantized is stored quantized"),
    ("QL204", "E model", "H", "parts of a fused group are quantized differently"),
    ("QL205", "E model", "H", "experts are missing, too many, or stored twice"),
    ("QL206", "W model", "H", "tied in the config, but a head is stored"),
    ("QL208", "W model", "H", "a bias that the model does not have"),
    ("QL210", "E waivable", "H", "a stored tensor that nothing reads"),
    ("QL211", "E model", "H", "a module whose tensors cannot be put into this model"),
    ("QL301", "E", "H", "the shape of a group scale"),
    ("QL302", "E", "H", "the shape of a packed weight"),
    ("QL303", "E", "H", "the shape of a block scale"),
    ("QL304", "E", "H", "the dtype of a scale"),
    ("QL305", "E", "H", "the shape or dtype of zero-points"),
    ("QL307", "E", "H", "the shape of a tensor"),
    ("QL308", "E", "H", "the dtype of a tensor"),
    ("QL401", "E model", "H", "a rank's share splits a unit"),
    ("QL501", "E", "D", "a scale that is NaN or infinite"),
    ("QL503", "E", "P", "symmetric zero-points of another version than the config names"),
    ("QL505", "E", "D", "an index or a zero-point out of range"),
    ("QL506", "E", "D", "a setting stored beside the weights is not the config's"),
)
"""Every rule of the core by its code. A method's own rules carry its own prefix."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: what is wrong, where (module or tensor, and file), expected, found, and the way out."""

    code: str
    message: str
    where: str = ""
    file: str = ""
    expected: str = ""
    found: str = ""
    remedy: str = ""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        place = f"{self.where} in {self.file}" if self.where and self.file else self.where or self.file
        return describe(self.message, place, self.expected, self.found, self.remedy)


def report(
    code: str,
    message: str,
    *,
    where: str = "",
    file: str = "",
    expected: object = "",
    found: object = "",
    remedy: str = "",
) -> Finding:
    """A finding of one of the catalogue's rules, with that rule's severity."""
    severity = RULES[code].severity
    return Finding(code, message, where, file, str(expected), str(found), remedy, severity)


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
