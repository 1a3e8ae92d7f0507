"""What each declaration hook may answer: for each one reader, which gives the answer in its settled form."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from qload.catalogue import Rule, Severity, Tier
from qload.checkpoint import Checkpoint
from qload.declare import ParameterKind, ParameterSpec
from qload.dtypes import BITS
from qload.findings import Finding
from qload.hookspecs import Claim, Tile
from qload.layout import Axis, Layout

Reader = Callable[[Any], Any]

_CODE = re.compile(r"(?!QL)([A-Z]{2,8})\d{3}")
_TARGET = re.compile(r"\w+(\.\w+)*:\w+")


class AnswerError(Exception):
    """An answer that the core cannot work with; the text says what it is and what it should be."""


def _read_claim(answer: object) -> Claim | None:
    if answer is None:
        return None
    claim: Claim = _expect(answer, Claim, "a Claim or None")
    _expect(claim.specificity, int, "a number", "a Claim with the specificity")
    _expect(claim.config, Mapping | None, "a mapping or None", "a Claim with the config")
    _expect(claim.alias, str | None, "a name or None", "a Claim with the alias")
    return claim


def _read_scheme(answer: object) -> object:
    try:
        hash(answer)
        str(answer)
    except Exception as error:
        kind = type(answer).__name__
        raise AnswerError(f"returns {kind}, which is no frozen value that can be hashed and shown ({error})") from error
    return answer


def _read_specs(answer: object) -> tuple[ParameterSpec, ...]:
    specs: tuple[ParameterSpec, ...] = _read_all(answer, ParameterSpec)
    names = [_check_spec(spec).name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise AnswerError(f"names a tensor twice: {', '.join(twice)}")
    return specs


def _check_spec(spec: ParameterSpec) -> ParameterSpec:
    if not isinstance(spec.name, str) or not spec.name.isidentifier():
        raise AnswerError(f"declares a tensor named {spec.name!r}, which no attribute can be")
    _expect(spec.kind, ParameterKind, "a ParameterKind", f"{spec.name} with the kind")
    for axis in _expect(spec.layout, Layout, "a Layout", f"{spec.name} with the layout").axes:
        _expect(axis, Axis, "an Axis", f"{spec.name} with the axis")
    unknown = [code for code in spec.dtypes if code not in BITS]
    if not isinstance(spec.dtypes, tuple) or not spec.dtypes or unknown:
        raise AnswerError(f"declares {spec.name} with the dtypes {spec.dtypes!r}, not with a tuple of known codes")
    return spec


def _read_tile(answer: object) -> Tile | None:
    if answer is None:
        return None
    tile: Tile = _expect(answer, Tile, "a Tile or None")
    for what, count in (("rows", tile.rows), ("columns", tile.columns)):
        if _expect(count, int, "a number", f"a Tile with the {what}") < 1:
            raise AnswerError(f"returns a Tile with the {what} {count}, not with 1 or more")
    _expect(tile.kernel, str, "a name", "a Tile with the kernel")
    return tile


def _read_findings(answer: object) -> tuple[Finding, ...]:
    findings: tuple[Finding, ...] = _read_all(answer, Finding)
    return findings


def read_findings_of(declared: Mapping[str, Rule]) -> Reader:
    """A reader of findings that have to be of the declared rules."""

    def read(answer: object) -> tuple[Finding, ...]:
        findings = _read_findings(answer)
        for fault in find_undeclared(findings, declared):
            raise AnswerError(fault)
        return findings

    return read


def find_undeclared(findings: Iterable[Finding], declared: Mapping[str, Rule]) -> Iterator[str]:
    """What is wrong with the codes and severities of a plugin's findings."""
    for finding in findings:
        rule = declared.get(finding.code)
        if rule is None:
            known = ", ".join(declared) or "nothing"
            yield f"finds {finding.code!r}, and qload_rules declares {known}"
        elif finding.severity is not rule.severity:
            yield f"finds {finding.code} as {finding.severity}, and qload_rules declares it as {rule.severity}"


def _read_rules(answer: object) -> tuple[Rule, ...]:
    rules: tuple[Rule, ...] = _read_all(answer, Rule)
    codes = [_check_rule(rule).code for rule in rules]
    twice = sorted({code for code in codes if codes.count(code) > 1})
    if twice:
        raise AnswerError(f"declares a rule twice: {', '.join(twice)}")
    prefixes = sorted({code[:-3] for code in codes})
    if len(prefixes) > 1:
        raise AnswerError(f"declares rules under several prefixes: {', '.join(prefixes)}")
    return rules


def _check_rule(rule: Rule) -> Rule:
    if not isinstance(rule.code, str) or not _CODE.fullmatch(rule.code):
        raise AnswerError(
            f"declares the code {rule.code!r}, not a prefix of 2 to 8 capital letters other than QL and three digits"
        )
    _expect(rule.severity, Severity, "a Severity", f"{rule.code} with the severity")
    _expect(rule.tier, Tier, "a Tier", f"{rule.code} with the tier")
    for name in ("title", "failure", "cure", "limits"):
        _expect(getattr(rule, name), str, "a text", f"{rule.code} with the {name}")
    if not rule.title:
        raise AnswerError(f"declares {rule.code} without a title")
    if rule.find is not None and not (callable(rule.find) and rule.is_validated):
        raise AnswerError(f"declares {rule.code} with a find that is no function of config and headers")
    return rule


def _read_kernels(answer: object) -> tuple[str, ...]:
    names: tuple[str, ...] = _read_all(answer, str)
    for name in names:
        if not _TARGET.fullmatch(name):
            raise AnswerError(f"names the kernel {name!r}, not as package.module:Class")
    return names


def _read_checkpoint(answer: object) -> Checkpoint | None:
    return None if answer is None else _expect(answer, Checkpoint, "a Checkpoint or None")


READERS: Mapping[str, Reader] = {
    "qload_claim": _read_claim,
    "qload_scheme_for": _read_scheme,
    "qload_create_weights": _read_specs,
    "qload_tile": _read_tile,
    "qload_check": _read_findings,
    "qload_open_checkpoint": _read_checkpoint,
    "qload_rules": _read_rules,
    "qload_kernels": _read_kernels,
}
"""A reader gives the answer of the hook of that name, or raises AnswerError."""

MEANT: Mapping[str, tuple[type[Exception], ...]] = {"qload_scheme_for": (ValueError,)}
"""What a hook raises to say something, besides qload's own errors: a refusal is no fault of the plugin."""


def _expect(value: Any, kind: Any, wanted: str, place: str = "") -> Any:
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    given = f"{place} {value!r}" if place else type(value).__name__
    raise AnswerError(f"returns {given}, not {wanted}")


def _read_all(answer: object, kind: type) -> Any:
    """Every item of the answer; what a generator raises on the way is the hook's own error."""
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        raise AnswerError(f"returns {type(answer).__name__}, not a sequence of {kind.__name__}")
    items = tuple(answer)
    for item in items:
        if not isinstance(item, kind):
            raise AnswerError(f"returns {type(item).__name__} among what should be {kind.__name__}")
    return items
