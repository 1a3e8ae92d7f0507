"""SARIF 2.1.0, for the services that show what tools find in code.

Source: docs.oasis-open.org/sarif/sarif/v2.1.0, and what GitHub's code scanning reads of it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import metadata
from typing import Any

from qload.catalogue import RULES, Rule
from qload.errors import describe, one_line
from qload.findings import Finding, Group
from qload.formats.outcome import Failure, Outcome
from qload.formats.paths import relate_all, write_uri
from qload.validation import Report
from qload.validation.baseline import fingerprint

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_DOCUMENTATION = "Documentation, "
"""How the distribution's metadata begin the address of the docs."""


def write(outcome: Outcome) -> str:
    """A log with one run, in ASCII."""
    groups = [(report, outcome.groups(report)) for report in outcome.reports]
    codes = sorted({group.first.code: group.first for _, found in groups for group in found}.items())
    numbers = {code: number for number, (code, _) in enumerate(codes)}
    run = {
        "tool": {"driver": _describe_tool(finding for _, finding in codes)},
        "invocations": [_describe_invocation(outcome)],
        "columnKind": "unicodeCodePoints",
        "results": [each for report, found in groups for each in _describe(outcome, report, found, numbers)],
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


def _describe(
    outcome: Outcome, report: Report, groups: Iterable[Group], numbers: Mapping[str, int]
) -> Iterator[dict[str, Any]]:
    """The results of one report; `numbers` are those of the rules."""
    uris = {file: write_uri(report, path) for file, path in relate_all(outcome, report).items()}
    for group in groups:
        first = group.first
        text = describe(first.message, group.where, first.expected, first.found, first.remedy)
        yield {
            "ruleId": one_line(first.code),
            "ruleIndex": numbers[first.code],
            "level": first.severity.value,
            "message": {"text": text},
            "locations": [_describe_location(group, uris[file], found) for file, found in group.files.items()],
            "partialFingerprints": {"qload/v1": fingerprint(first)},
            "occurrenceCount": len(group.findings),
        }


def _describe_location(group: Group, uri: str, finding: Finding) -> dict[str, Any]:
    region = {"region": {"startLine": finding.line, "startColumn": finding.column}} if finding.line else {}
    place = {"artifactLocation": {"uri": uri}, **region}
    if not group.where:
        return {"physicalLocation": place}
    return {
        "physicalLocation": place,
        "logicalLocations": [{"fullyQualifiedName": one_line(group.where), "kind": "module"}],
    }
