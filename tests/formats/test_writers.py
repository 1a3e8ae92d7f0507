"""Every format, read back by somebody else's reader: each finding is there once, and nothing in it is obeyed."""

import json
import os
import re
from collections import Counter
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import click
import jsonschema
import pytest
from reporting import OUTCOMES, make_outcome

from qload.errors import one_line
from qload.findings import Finding, report
from qload.formats import FORMATS, Outcome, find_writer
from qload.formats.document import ReportDocument, make_schema
from qload.schemas import dump
from qload.validation import Report

ROOT = Path(__file__).parents[2]
SARIF_SCHEMA = os.environ.get("QLOAD_SARIF_SCHEMA")
"""OASIS' own schema of SARIF 2.1.0, sarif-schema-2.1.0.json, if somebody has it."""


@pytest.fixture(params=OUTCOMES)
def outcome(request: pytest.FixtureRequest, tmp_path: Path) -> Outcome:
    return make_outcome(request.param, tmp_path / "model")


@pytest.fixture
def each(outcome: Outcome) -> Outcome:
    """The same with each finding by itself."""
    return replace(outcome, collapses=False)


def findings(outcome: Outcome) -> list[Finding]:
    return [finding for report in outcome.reports for finding in report.findings]


def count(outcome: Outcome) -> Counter[str]:
    return Counter(one_line(finding.code) for finding in findings(outcome))


def encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("name", FORMATS)
def test_no_character_is_obeyed_by_a_terminal(name: str, outcome: Outcome) -> None:
    text = click.unstyle(find_writer(name)(outcome))
    assert [character for character in text.replace("\n", "") if not character.isprintable()] == []
    text.encode()


def test_the_document_has_every_finding_as_it_is(outcome: Outcome) -> None:
    text = find_writer("json")(outcome)
    jsonschema.validate(json.loads(text), make_schema())
    document = ReportDocument.model_validate_json(text)
    (checkpoint,) = document.checkpoints
    assert document.complete == outcome.is_complete
    assert len(document.failures) == len(outcome.failures)
    for found, expected in zip(checkpoint.findings, findings(outcome), strict=True):
        for field in ("code", "message", "where", "file", "expected", "found", "remedy", "severity"):
            assert getattr(found, field) == encodable(getattr(expected, field))
        assert (found.line or 0, found.column or 0) == (expected.line, expected.column)


def test_the_schema_that_is_published_is_that_of_the_document() -> None:
    text = (ROOT / "schemas" / "report.json").read_text()
    assert text == dump(make_schema()), "make schemas"


def read_sarif(outcome: Outcome) -> dict[str, Any]:
    log: dict[str, Any] = json.loads(find_writer("sarif")(outcome))
    return log


@pytest.mark.skipif(not SARIF_SCHEMA, reason="QLOAD_SARIF_SCHEMA names no schema")
def test_sarif_is_valid_against_the_schema_of_oasis(outcome: Outcome) -> None:
    schema = json.loads(Path(SARIF_SCHEMA or "").read_text())
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(read_sarif(outcome))


TEXT = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}}, "required": ["text"]}
LEVEL = {"enum": ["none", "note", "warning", "error"]}


def closed(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """An object with these properties and no others."""
    properties = {**required, **optional}
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
    }


def listed(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


REGION = closed({"startLine": {"type": "integer", "minimum": 1}}, startColumn={"type": "integer", "minimum": 1})
LOCATION = closed(
    {"physicalLocation": closed({"artifactLocation": closed({"uri": {"type": "string"}})}, region=REGION)},
    logicalLocations=listed(closed({"fullyQualifiedName": {"type": "string"}}, kind={"type": "string"})),
)
RULE = closed(
    {"id": {"type": "string"}, "shortDescription": TEXT, "help": TEXT},
    defaultConfiguration=closed({"level": LEVEL}),
    helpUri={"type": "string", "pattern": "^https://"},
)
RESULT = closed(
    {"ruleId": {"type": "string"}, "message": TEXT, "level": LEVEL},
    ruleIndex={"type": "integer", "minimum": 0},
    locations=listed(LOCATION),
    partialFingerprints={"type": "object", "additionalProperties": {"type": "string"}},
    occurrenceCount={"type": "integer", "minimum": 1},
)
INVOCATION = closed(
    {"executionSuccessful": {"type": "boolean"}},
    toolExecutionNotifications=listed(closed({"level": LEVEL, "message": TEXT})),
)
DRIVER = closed({"name": {"const": "qload"}, "semanticVersion": {"pattern": r"^\d+\.\d+\.\d+"}, "rules": listed(RULE)})
RUN = closed(
    {"tool": closed({"driver": DRIVER}), "results": listed(RESULT)},
    invocations=listed(INVOCATION),
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
)
SARIF = closed(
    {"version": {"const": "2.1.0"}, "runs": listed(RUN)}, **{"$schema": {"type": "string", "pattern": "2.1.0.json$"}}
)
"""What SARIF 2.1.0 (sections 3.13 to 3.52) says of those of its properties that are written here."""


def test_sarif_has_every_finding_and_its_rule(outcome: Outcome) -> None:
    log = read_sarif(outcome)
    jsonschema.validate(log, SARIF)
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(rules) == len(set(rules))
    found = Counter[str]()
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        found[result["ruleId"]] += result["occurrenceCount"]
    assert found == count(outcome)
    assert run["invocations"][0]["executionSuccessful"] == outcome.is_complete


def test_sarif_leads_to_the_files(each: Outcome) -> None:
    (run,) = read_sarif(each)["runs"]
    for result, finding in zip(run["results"], findings(each), strict=True):
        (location,) = result["locations"]
        uri = urlsplit(location["physicalLocation"]["artifactLocation"]["uri"])
        assert (uri.scheme, uri.netloc, uri.query, uri.fragment) == ("", "", "", "")
        path = unquote(uri.path, errors="surrogatepass")
        assert os.path.normpath(path) == os.path.normpath(f"model/{finding.file}")


def test_github_is_one_command_for_each_finding(each: Outcome) -> None:
    lines = find_writer("github")(each).splitlines()
    assert len(lines) == len(findings(each)) + len(each.failures)
    for line, finding in zip(lines, findings(each), strict=False):
        name, properties, message = read_command(line)
        assert (name, properties["title"]) == (finding.severity.value, one_line(finding.code))
        assert one_line(finding.message) in message
        assert os.path.normpath(properties["file"]) == os.path.normpath(one_line(f"model/{finding.file}"))
        assert properties.get("line", "0") == str(finding.line)


def read_command(line: str) -> tuple[str, dict[str, str], str]:
    """As the runner of GitHub's workflows reads one: ActionCommand.TryParseV2 of actions/runner."""
    name, rest = line.removeprefix("::").split(" ", 1)
    listed, message = rest.split("::", 1)
    properties = dict(each.split("=", 1) for each in listed.split(","))
    return name, {key: unescape(value, True) for key, value in properties.items()}, unescape(message, False)


def unescape(text: str, is_property: bool) -> str:
    codes = {"%0D": "\r", "%0A": "\n", **({"%3A": ":", "%2C": ","} if is_property else {}), "%25": "%"}
    for code, character in codes.items():
        text = text.replace(code, character)
    return text


def test_junit_has_a_test_for_each_finding(each: Outcome) -> None:
    root = ElementTree.fromstring(find_writer("junit")(each))
    suites = root.findall("testsuite")
    assert len(suites) == len(each.reports) + len(each.failures)
    failed = [*suites[0].iterfind("testcase/failure"), *suites[0].iterfind("testcase/error")]
    assert len(failed) == len(findings(each))
    assert suites[0].findall("testcase")
    names = Counter(case.attrib["name"].split()[0] for case in suites[0] if len(case))
    assert names == count(each)
    for suite in (root, *suites):
        for attribute, path in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
            assert int(suite.attrib[attribute]) == len([*suite.iter(path)])


def test_concise_is_a_line_for_each_finding(each: Outcome) -> None:
    lines = find_writer("concise")(each).splitlines()
    for line, finding in zip(lines, findings(each), strict=True):
        (made,) = each.reports
        place = f"{made.place}/{finding.file}" if finding.file else str(made.path)
        position = f":{finding.line}:{finding.column}" if finding.line else ""
        beginning = f"{os.path.normpath(place)}{position}: {finding.code} "
        assert line.startswith(one_line(beginning))
        assert one_line(finding.message) in line


def test_full_is_a_block_for_each_finding_with_all_that_is_known(each: Outcome) -> None:
    blocks = click.unstyle(find_writer("full")(each)).split("\n\n")
    assert blocks.pop() == ""
    for block, finding in zip(blocks, findings(each), strict=True):
        first, place, *rest = block.splitlines()
        assert first == one_line(f"{finding.severity.value}[{finding.code}]: {finding.message}")
        assert place.lstrip().startswith("--> ")
        facts = {match[1]: match[2] for line in rest if (match := re.match(r" + = (\w+): (.*)", line))}
        expected = {
            "where": finding.where,
            "expected": finding.expected,
            "found": finding.found,
            "help": finding.remedy,
        }
        assert facts == {label: one_line(text) for label, text in expected.items() if text}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "json"])
def test_repeats_are_one_in_every_format_but_json(name: str, tmp_path: Path) -> None:
    outcome = make_outcome("no scales", tmp_path / "model")
    assert len(findings(outcome)) == 2
    text = find_writer(name)(outcome)
    assert text.count("model.layers.{0..1}.mlp.down_proj.weight_scale (2)") in (1, 2)
    assert "model.layers.1.mlp" not in text
    assert "model.layers.1.mlp" in find_writer(name)(replace(outcome, collapses=False))


def test_sarif_leads_to_pages_of_rules_where_the_distribution_says_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = make_outcome("nasty", tmp_path / "model")
    about = Message()
    about["Version"] = "1.2.3"
    about["Project-URL"] = "Source, https://example.org"
    about["Project-URL"] = "Documentation, https://example.org/docs/"
    monkeypatch.setattr("qload.formats.sarif.metadata", lambda name: about)
    rules = read_sarif(outcome)["runs"][0]["tool"]["driver"]["rules"]
    links = {rule["id"]: rule.get("helpUri") for rule in rules}
    assert links["QL201"] == "https://example.org/docs/findings/QL201.md"
    assert (ROOT / "docs" / "findings.md").exists()
    assert links["XY1"] is None


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_a_repository_are_called_by_it_and_its_commit(name: str) -> None:
    place = "hf:org/name@0123abc"
    fault = report("QL107", "matches nothing", file="config.json", pointer=("a",), line=3, column=4)
    made = Report(Path("hf:org/name"), "m", 1, 2, (fault,), "hf:org/name", place)
    text = click.unstyle(find_writer(name)(Outcome((made,))))
    if name == "github":
        _, properties, _ = read_command(text.strip())
        assert properties["file"] == f"{place}/config.json"
    else:
        assert f"{place}/config.json" in text


def test_a_file_outside_the_folder_of_the_call_has_its_whole_path(tmp_path: Path) -> None:
    outcome = replace(make_outcome("shape", tmp_path / "model"), base=tmp_path / "else")
    for result in read_sarif(outcome)["runs"][0]["results"]:
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert uri == (tmp_path / "model" / "model.safetensors").as_uri()
