"""Findings: one line each, collapsed where they differ only in numbers, and the catalogue behind them."""

import pickle
import re

import pytest

from qload.catalogue import RULES, Severity
from qload.errors import (
    CapabilityError,
    CheckpointError,
    LayoutError,
    MethodConflictError,
    ModelError,
    PluginError,
    QloadError,
    ShardError,
    UnknownMethodError,
)
from qload.findings import Finding, collapse, errors, refusals, report


def test_a_finding_is_one_line_with_all_that_it_knows() -> None:
    finding = report("QL301", "wrong", where="a.b", file="f", expected=[2, 4], found=[2, 3], remedy="mend it")
    assert str(finding) == "a.b in f: wrong (expected [2, 4], found [2, 3]); mend it"
    assert finding.severity is Severity.ERROR


def test_codes_are_unique_and_titled() -> None:
    assert all(re.fullmatch(r"QL\d{3}", code) and rule.title for code, rule in RULES.items())


def test_those_that_differ_only_in_numbers_are_one() -> None:
    findings = [report("QL201", "gone", where=f"layers.{n}.q_proj.scale", file=f"f{n % 2}") for n in range(4)]
    (merged,) = collapse([*findings])
    assert merged.where == "layers.{0..3}.q_proj.scale (4)"
    assert merged.file == "2 files"


def test_numbers_inside_a_name_are_no_layers() -> None:
    """`fc1` and `fc2` are two places, in however many layers each is."""
    findings = [report("QL201", "gone", where=f"h.{n}.fc{fc}.scale") for n in (0, 1) for fc in (1, 2)]
    assert [merged.where for merged in collapse(findings)] == ["h.{0..1}.fc1.scale (2)", "h.{0..1}.fc2.scale (2)"]


def test_a_remedy_that_names_the_module_keeps_nothing_apart() -> None:
    findings = [report("QL301", "wrong", where=f"h.{n}.scale", remedy=f"h.{n} is 4 x 8") for n in (0, 1)]
    assert [(merged.where, merged.remedy) for merged in collapse(findings)] == [("h.{0..1}.scale (2)", "h.0 is 4 x 8")]


def test_gaps_in_the_numbers_are_listed() -> None:
    findings = [report("QL201", "gone", where=f"layers.{n}.experts.{e}.up") for n in (0, 2, 5) for e in (0, 1)]
    (merged,) = collapse(findings)
    assert merged.where == "layers.{0,2,5}.experts.{0..1}.up (6)"


def test_those_that_differ_otherwise_stay_apart() -> None:
    findings = [
        report("QL301", "wrong", where="layers.0.a", found=1),
        report("QL301", "wrong", where="layers.1.a", found=2),
        report("QL301", "wrong", where="layers.1.b", found=1),
        report("QL302", "wrong", where="layers.1.a", found=1),
    ]
    assert collapse(findings) == findings


def test_lines_of_a_file_keep_apart_only_what_names_no_module() -> None:
    def point(number: int, where: str) -> Finding:
        return report("QL006", "is not there", where=where, file="index.json", pointer=("map", number), line=number + 1)

    merged, *others = collapse([point(number, f"layers.{number}.x") for number in range(3)])
    assert (merged.where, merged.line, merged.pointer, others) == ("layers.{0..2}.x (3)", 1, ("map", 0), [])
    assert len(collapse([point(number, "") for number in range(3)])) == 3


def test_only_waivable_errors_can_be_ignored() -> None:
    unexpected, missing = report("QL210", "extra"), report("QL201", "gone")
    warning = report("QL206", "tied")
    assert errors([unexpected, missing, warning]) == [unexpected, missing]
    assert errors([unexpected, missing, warning], ignore=["QL210", "QL201"]) == [missing]


def test_one_reason_for_many_modules_is_one_finding() -> None:
    findings = list(refusals({"a.0": "no", "a.1": "no", "b": "never"}))
    assert [(finding.where, finding.message, finding.found) for finding in findings] == [
        ("a.0", "no", "2 such modules"),
        ("b", "never", ""),
    ]


def test_an_error_carries_its_findings() -> None:
    findings = [Finding("QL201", "gone", "a"), Finding("QL210", "extra", "b")]
    error = CheckpointError("folder", findings)
    assert error.findings == tuple(findings)
    assert str(error) == "folder: 2 faults in the checkpoint: QL201 a: gone; QL210 b: extra"


def test_an_errors_text_has_the_first_three_findings_and_how_many_there_are() -> None:
    findings = [Finding("QL201", "gone", name) for name in "abcde"]
    error = CheckpointError("folder", findings)
    assert str(error) == (
        "folder: 5 faults in the checkpoint: QL201 a: gone; QL201 b: gone; QL201 c: gone; and 2 more, in .findings"
    )
    assert error.findings == tuple(findings)


@pytest.mark.parametrize(
    "error",
    [
        QloadError("gone", where="a", expected="1", found="2", remedy="mend it"),
        CheckpointError("folder", [Finding("QL201", "gone", "a"), Finding("QL210", "extra", "b")]),
        LayoutError("splits a unit", unit=8, where="a"),
        ShardError("splits a unit", where="a", unit=8, sizes=[1, 2]),
        UnknownMethodError("wish", ["a", "b"], "folder"),
        MethodConflictError("m", ["one", "two"]),
        PluginError("m", ["it lacks a hook"], "m_module", "report it"),
        CapabilityError("m", "qload_embedding", "embed_tokens"),
        ModelError("cannot be built"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_from_one_process_to_another(error: QloadError) -> None:
    """As the errors of a rank do, on their way to the process that started it."""
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", "a b"),
        ("a \r\n\n  b", "a b"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x00b\x85", r"a\x00b\x85"),
        ("\u202eab", r"\u202eab"),
        ("\ud800", r"\ud800"),
        ('a  b\'s \\ "ü"', 'a  b\'s \\ "ü"'),
    ],
)
def test_the_text_is_one_line_that_a_terminal_shows(name: str, shown: str) -> None:
    """Names and reasons come from files and plugins, which may put anything into them."""
    assert str(QloadError("gone", where=name)) == f"{shown}: gone"
    assert str(report("QL201", "gone", where=name)) == f"{shown}: gone"


def test_an_unknown_code_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        report("QL000", "nothing")
