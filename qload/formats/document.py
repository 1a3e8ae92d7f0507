"""JSON, in the shape that `schemas/report.json` describes: every finding, none put together with others."""

import json
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qload.catalogue import Severity
from qload.findings import Finding
from qload.formats.outcome import Failure, Outcome
from qload.formats.paths import relate_all
from qload.validation import Report
from qload.validation.baseline import fingerprint

SCHEMA_VERSION: Literal[1] = 1


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FindingDocument(_Document):
    """One fault."""

    code: str = Field(description="The rule: `qload explain CODE` says more of it.")
    severity: Severity
    message: str = Field(description="What is wrong.")
    where: str = Field(description="The module or tensor; empty where the fault is of no one of them.")
    file: str = Field(description="The checkpoint's file; empty where the fault is of no one of them.")
    path: str = Field(description="That file's path, from the folder that qload was called in if it lies below that.")
    line: int | None = Field(ge=1, description="The line of a JSON file; null where that is not known.")
    column: int | None = Field(ge=1, description="The column of that line, in characters.")
    pointer: list[str | int] = Field(description="The keys that lead to it in a JSON file.")
    expected: str
    found: str
    remedy: str = Field(description="The way out.")
    fingerprint: str = Field(description="What it is known by in other runs, as in a baseline.")


class CheckpointDocument(_Document):
    """A checkpoint that was checked, and what is wrong with it."""

    asked: str = Field(description="The path as it was given.")
    place: str = Field(description="Where the files lie: a folder, or a repository with its commit.")
    method: str | None = Field(description="The quantization method; null where it could not be had.")
    tensors: int = Field(ge=0)
    nbytes: int = Field(ge=0, description="The bytes of all tensors.")
    known: int = Field(ge=0, description="How many findings a baseline has, which are not listed.")
    complete: bool = Field(description="Whether everything could be read.")
    findings: list[FindingDocument]


class FailureDocument(_Document):
    """A checkpoint that could not be checked at all."""

    asked: str
    message: str


class ReportDocument(_Document):
    """What `qload validate --format json` writes."""

    schema_version: Literal[1]
    qload: str = Field(description="The version of qload.")
    complete: bool = Field(description="Whether everything could be read; the exit status is 2 where not.")
    checkpoints: list[CheckpointDocument]
    failures: list[FailureDocument]


def write(outcome: Outcome) -> str:
    """The document, in ASCII."""
    return json.dumps(describe(outcome).model_dump(mode="json"), indent=2) + "\n"


def describe(outcome: Outcome) -> ReportDocument:
    """An outcome as the model of its document."""
    return ReportDocument(
        schema_version=SCHEMA_VERSION,
        qload=version("qload-torch"),
        complete=outcome.is_complete,
        checkpoints=[_describe_report(outcome, report) for report in outcome.reports],
        failures=[_describe_failure(failure) for failure in outcome.failures],
    )


def make_schema() -> dict[str, Any]:
    """The JSON Schema of what is written."""
    schema = ReportDocument.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _describe_report(outcome: Outcome, report: Report) -> CheckpointDocument:
    paths = relate_all(outcome, report)
    return CheckpointDocument(
        asked=_text(report.asked or str(report.path)),
        place=_text(report.place),
        method=report.method,
        tensors=report.tensors,
        nbytes=report.nbytes,
        known=report.known,
        complete=not report.unreadable,
        findings=[_describe_finding(finding, paths[finding.file]) for finding in report.findings],
    )


def _describe_finding(finding: Finding, path: str) -> FindingDocument:
    return FindingDocument(
        code=_text(finding.code),
        severity=finding.severity,
        message=_text(finding.message),
        where=_text(finding.where),
        file=_text(finding.file),
        path=_text(path),
        line=finding.line or None,
        column=finding.column or None,
        pointer=[_text(key) if isinstance(key, str) else key for key in finding.pointer],
        expected=_text(finding.expected),
        found=_text(finding.found),
        remedy=_text(finding.remedy),
        fingerprint=fingerprint(finding),
    )


def _describe_failure(failure: Failure) -> FailureDocument:
    return FailureDocument(asked=_text(failure.asked), message=_text(failure.message))


def _text(text: str) -> str:
    """The text with an escape for halves of characters, which names may have and no encoding of Unicode has."""
    return text.encode("utf-8", "backslashreplace").decode()
