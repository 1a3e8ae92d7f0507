"""XML as JUnit writes it, for the servers that show the results of tests.

A checkpoint is a suite, and each of its findings a test that failed; one without findings has one test, that passed.
Source: github.com/testmoapp/junitxml, which gathers what the readers of the format have in common.
"""

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from qload.errors import describe, one_line
from qload.findings import Group
from qload.formats.outcome import Failure, Outcome
from qload.formats.paths import relate_all
from qload.validation import Report
from qload.validation.selection import UNREADABLE

_CLASS = "qload.validate"


def write(outcome: Outcome) -> str:
    """The document, in characters that XML allows and terminals print."""
    suites = [_make_suite(outcome, report) for report in outcome.reports]
    suites += [_make_failed_suite(failure) for failure in outcome.failures]
    root = Element("testsuites", {"name": "qload", **_sum_up(suites)})
    root.extend(suites)
    indent(root)
    return tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _make_suite(outcome: Outcome, report: Report) -> Element:
    name = one_line(report.asked or str(report.path))
    suite = Element("testsuite", {"name": name})
    groups, paths = outcome.groups(report), relate_all(outcome, report)
    for group in groups:
        _add_case(suite, paths[group.first.file], group)
    if not groups:
        SubElement(suite, "testcase", {"classname": _CLASS, "name": name})
    suite.attrib.update(_count(suite))
    return suite


def _add_case(suite: Element, file: str, group: Group) -> None:
    first = group.first
    names = {"classname": _CLASS, "name": one_line(f"{first.code} {group.where or first.message}")}
    line = {"line": str(first.line)} if first.line else {}
    case = SubElement(suite, "testcase", {**names, "file": one_line(file), **line})
    text = describe(first.message, group.where, first.expected, first.found, first.remedy)
    kind = "error" if first.code == UNREADABLE else "failure"
    fault = SubElement(case, kind, {"type": first.severity.value, "message": one_line(first.message)})
    fault.text = text


def _make_failed_suite(failure: Failure) -> Element:
    name = one_line(failure.asked)
    suite = Element("testsuite", {"name": name})
    case = SubElement(suite, "testcase", {"classname": _CLASS, "name": name})
    SubElement(case, "error", {"type": "not checked", "message": one_line(failure.message)})
    suite.attrib.update(_count(suite))
    return suite


def _count(suite: Element) -> dict[str, str]:
    kinds = {"tests": "testcase", "failures": "testcase/failure", "errors": "testcase/error"}
    return {name: str(len(suite.findall(path))) for name, path in kinds.items()}


def _sum_up(suites: list[Element]) -> dict[str, str]:
    return {name: str(sum(int(suite.attrib[name]) for suite in suites)) for name in ("tests", "failures", "errors")}
