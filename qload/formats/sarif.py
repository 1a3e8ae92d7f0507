"""SARIF 2.1.0, for the services that show what tools find in code.

Source: docs.oasis-open.org/sarif/sarif/v2.1.0, and what GitHub's code scanning reads of it.
"""

import json
from collections.abc import Iterable
from importlib.metadata import metadata
from typing import Any

from qload.catalogue import RULES, Rule
from qload.errors import describe, one_line
from qload.findings import Finding, Group
from qload.formats.outcome import Failure, Outcome
from qload.formats.paths import write_uri
from qload.validation import Report
from qload.validation.baseline import fingerprint

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_DOCUMENTATION = "Documentation, "
"""How the distribution's metadata begin the address of the docs."""


def write(outcome: Outcome) -> str:
    """A log with one run, in ASCII."""
    found = [(report, group) for report in outcome.reports for group in outcome.groups(report)]
    codes = sorted({group.first.code: group.first for _, group in found}.items())
    numbers = {code: number for number, (code, _) in enumerate(codes)}
    run = {
        "tool": {"driver": _describe_tool(finding for _, finding in codes)},
        "invocations": [_describe_invocation(outcome)],
        "columnKind": "unicodeCodePoints",
        "results": [_describe_group(outcome, report, group, numbers) for report, group in found],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _describe_tool(findings: Iterable[Finding]) -> dict[str, Any]:
    about = metadata("qload-torch")
    addresses = [each.removeprefix(_DOCUMENTATION) for each in about.get_all("Project-URL") or ()]
    docs = next((each for each in addresses if each.startswith("https://")), None)
    rules = [_describe_rule(finding, docs) for finding in findings]
    return {"name": "qload", "semanticVersion": about["Version"], "rules": rules}


def _describe_rule(finding: Finding, docs: str | None) -> dict[str, Any]:
    """What the catalogue says of a finding's rule; of a plugin's that it does not have, the code and severity."""
    code = one_line(finding.code)
    rule = RULES.get(finding.code, Rule(code, finding.severity, tier=RULES["QL011"].tier, title=f"{code}"))
    help_text = " ".join(text for text in (rule.failure, rule.cure) if text) or f"qload explain {code}"
    link = {"helpUri": f"{docs.rstrip('/')}/findings/{code}.md"} if docs and finding.code in RULES else {}
    return {
        "id": code,
        "shortDescription": {"text": rule.title},
        "help": {"text": help_text},
        "defaultConfiguration": {"level": rule.severity.value},
        **link,
    }


def _describe_invocation(outcome: Outcome) -> dict[str, Any]:
    """Whether everything could be read, and what could not."""
    invocation: dict[str, Any] = {"executionSuccessful": outcome.is_complete}
    if outcome.failures:
        invocation["toolExecutionNotifications"] = [_describe_failure(failure) for failure in outcome.failures]
    return invocation


def _describe_failure(failure: Failure) -> dict[str, Any]:
    return {"level": "error", "message": {"text": one_line(failure.message)}}


def _describe_group(outcome: Outcome, report: Report, group: Group, numbers: dict[str, int]) -> dict[str, Any]:
    first = group.first
    text = describe(first.message, group.where, first.expected, first.found, first.remedy)
    return {
        "ruleId": one_line(first.code),
        "ruleIndex": numbers[first.code],
        "level": first.severity.value,
        "message": {"text": text},
        "locations": [_describe_location(outcome, report, group, file) for file in group.files],
        "partialFingerprints": {"qload/v1": fingerprint(first)},
        "occurrenceCount": len(group.findings),
    }


def _describe_location(outcome: Outcome, report: Report, group: Group, file: str) -> dict[str, Any]:
    finding = next(each for each in group.findings if each.file == file)
    region = {"region": {"startLine": finding.line, "startColumn": finding.column}} if finding.line else {}
    place = {"artifactLocation": {"uri": write_uri(outcome, report, file)}, **region}
    if not group.where:
        return {"physicalLocation": place}
    return {
        "physicalLocation": place,
        "logicalLocations": [{"fullyQualifiedName": one_line(group.where), "kind": "module"}],
    }
