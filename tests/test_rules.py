"""The rules that plugins add: declared under a prefix of their own, held to, and hurting nobody if they are broken."""

import re
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import DATA, DEMO
from strangers import make_plugin, make_rows, origin, registry_with, write_rows

import qload
from qload.catalogue import Rule, Severity, Tier
from qload.checkpoint import Checkpoint
from qload.errors import CheckpointError, PluginError, RuleConflictError
from qload.findings import Finding, report
from qload.registry import PluginWarning, Registry
from qload.rules import choose_rule

REMEDY = "report it to dist 1.0 (rows_module), or do without: QLOAD_DISABLE=rows"
ODD = Rule("ROW001", Severity.ERROR, Tier.HEADERS, "odd")


def odd(**changes: Any) -> Rule:
    """The rule with some fields changed, wrongly or not."""
    return replace(ODD, **changes)


def fail(error: BaseException) -> Callable[[], Any]:
    def hook() -> Any:
        raise error

    return hook


def nothing() -> list[Any]:
    return []


def strange(*rules: Rule) -> types.SimpleNamespace:
    """A plugin of no method."""
    return types.SimpleNamespace(qload_rules=lambda: rules)


def finding(*found: Finding, **changes: Any) -> Rule:
    """A rule that finds these in any checkpoint."""
    return odd(find=lambda _: iter(found), **changes)


def refuse(_: Checkpoint) -> Any:
    raise CheckpointError("file", [Finding("X1", "truncated")])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder)
    return folder


def test_a_check_that_works(rows: Path) -> None:
    def check() -> list[Finding]:
        return [report(ODD, "odd", where="here")]

    registry = registry_with(make_rows(qload_check=check, qload_rules=lambda: [ODD]))
    assert {finding.code for finding in qload.validate(rows, registry=registry).errors} == {"ROW001"}
    with pytest.raises(CheckpointError, match=r"ROW001 here \(15\): odd"):
        qload.load(rows, registry=registry)


RULES: list[tuple[Callable[[], Any], str]] = [
    (fail(IndexError("3")), "qload_rules raises IndexError: 3"),
    (lambda: ODD, "qload_rules returns Rule, not a sequence of Rule"),
    (lambda: ["ROW001"], "qload_rules returns str among what should be Rule"),
    (lambda: (ODD if n else 1 / n for n in (1, 0)), "qload_rules raises ZeroDivisionError"),
    (lambda: [ODD, ODD], "declares a rule twice: ROW001"),
    (lambda: [ODD, odd(code="OTHER001")], "declares rules under several prefixes: OTHER, ROW"),
    (lambda: [odd(code="QL201")], "declares the code 'QL201', not a prefix of 2 to 8 capital letters"),
    (lambda: [odd(code="QLROW001")], "declares the code 'QLROW001', not a prefix"),
    (lambda: [odd(code="R001")], "declares the code 'R001'"),
    (lambda: [odd(code="ROWROWROW001")], "declares the code 'ROWROWROW001'"),
    (lambda: [odd(code="ROW1")], "declares the code 'ROW1'"),
    (lambda: [odd(code="row001")], "declares the code 'row001'"),
    (lambda: [odd(code=1)], "declares the code 1"),
    (lambda: [odd(severity="error")], "ROW001 with the severity 'error', not a Severity"),
    (lambda: [odd(tier="H")], "ROW001 with the tier 'H', not a Tier"),
    (lambda: [odd(title="")], "declares ROW001 without a title"),
    (lambda: [odd(cure=None)], "ROW001 with the cure None, not a text"),
    (lambda: [odd(find=3)], "declares ROW001 with a find that is no function of config and headers"),
    (lambda: [odd(find=print, tier=Tier.DATA)], "declares ROW001 with a find that is no function of"),
    (nothing, "qload_check finds 'ROW001', and qload_rules declares nothing"),
    (lambda: [odd(code="ROW002")], "qload_check finds 'ROW001', and qload_rules declares ROW002"),
    (
        lambda: [odd(severity=Severity.WARNING)],
        "qload_check finds ROW001 as error, and qload_rules declares it as warning",
    ),
]


@pytest.mark.parametrize(("rules", "said"), RULES)
def test_what_a_method_finds_it_has_to_declare(rules: Callable[[], Any], said: str, rows: Path) -> None:
    registry = registry_with(make_rows(qload_check=lambda: [report(ODD, "odd")], qload_rules=rules))
    with pytest.raises(PluginError) as caught:
        qload.load(rows, registry=registry)
    assert said in str(caught.value)
    assert str(caught.value).endswith(REMEDY)
    (finding,) = qload.validate(rows, registry=registry).errors
    assert finding.code == "QL104"
    assert said in str(finding)


def test_a_method_that_declares_nothing_finds_nothing_of_the_core(rows: Path) -> None:
    registry = registry_with(make_rows(qload_check=lambda: [report("QL201", "gone")]))
    (finding,) = qload.validate(rows, registry=registry).errors
    assert "qload_check finds 'QL201', and qload_rules declares nothing" in str(finding)


def test_rules_are_asked_only_where_something_was_found(rows: Path) -> None:
    registry = registry_with(make_rows(qload_check=nothing, qload_rules=fail(IndexError("3"))))
    assert qload.validate(rows, registry=registry).ok


def test_a_plugins_rule_runs_on_every_checkpoint() -> None:
    seen: list[Checkpoint] = []

    def find(checkpoint: Checkpoint) -> list[Finding]:
        seen.append(checkpoint)
        return [report(ODD, "odd", where="here")]

    registry = registry_with(make_rows(), plugins=[origin("p", strange(odd(find=find)))])
    for path in (DEMO, DATA / "base"):
        (found,) = qload.validate(path, registry=registry).findings
        assert str(found) == "here: odd"
    assert [checkpoint.path for checkpoint in seen] == [DEMO, DATA / "base"]


STRANGE: list[tuple[object, str]] = [
    (ImportError("gone"), "ImportError: gone"),
    (types.SimpleNamespace(qload_rules=fail(KeyError("x"))), "qload_rules raises KeyError: 'x'"),
    (types.SimpleNamespace(qload_rules=lambda: (1 / 0 for _ in "a")), "qload_rules raises ZeroDivisionError"),
    (strange(odd(code="QL999")), "declares the code 'QL999'"),
    (strange(odd(find=list)), "the rule ROW001 raises TypeError"),
    (strange(odd(find=lambda _: 1 / 0)), "the rule ROW001 raises ZeroDivisionError"),
    (strange(odd(find=lambda _: (1 / 0 for _ in "a"))), "the rule ROW001 raises ZeroDivisionError"),
    (strange(odd(find=lambda _: None)), "the rule ROW001 returns NoneType, not a sequence of"),
    (strange(finding(Finding("ROW002", "odd"))), "the rule ROW001 finds 'ROW002', and qload_rules declares ROW001"),
    (strange(finding(Finding("ROW001", "odd"), severity=Severity.WARNING)), "finds ROW001 as error"),
    (strange(odd(find=refuse)), "the rule ROW001 raises CheckpointError"),
]


@pytest.mark.parametrize(("plugin", "said"), STRANGE)
def test_a_plugins_rule_that_misbehaves_is_passed_over(plugin: object, said: str) -> None:
    """The next plugin's rules are asked in spite of it, and the verdict is given."""
    sound = strange(finding(Finding("SOUND001", "odd"), code="SOUND001"))
    registry = registry_with(make_rows(), plugins=[origin("broken", plugin), origin("works", sound)])
    with pytest.warns(PluginWarning, match=re.escape(said)) as warned:
        found = qload.validate(DEMO, registry=registry).findings
    assert [each.code for each in found] == ["SOUND001"]
    assert any("QLOAD_DISABLE=broken" in str(each.message) for each in warned)


@pytest.mark.parametrize("step", [1, -1])
def test_a_rule_that_two_plugins_declare_is_passed_over_whoever_comes_first(step: int) -> None:
    origins = [
        origin(name, strange(finding(Finding("ROW001", name), title=name)), f"dist-{name}") for name in ("a", "b")
    ]
    registry = registry_with(make_rows(), plugins=origins[::step])
    with pytest.warns(PluginWarning, match=r"ROW001 is declared by dist-a \(a_module\) and dist-b \(b_module\)"):
        assert qload.validate(DEMO, registry=registry).findings == ()


def test_a_plugin_without_a_finder_declares_what_it_says_while_opening() -> None:
    registry = registry_with(make_rows(), plugins=[origin("p", strange(ODD))])
    assert qload.validate(DEMO, registry=registry).findings == ()
    assert [each.code for each in registry.plugin_rules()] == ["ROW001"]


def test_the_registry_lists_the_rules_of_all_with_where_they_come_from() -> None:
    method = make_plugin(qload_rules=lambda: [odd(code="ROW002"), ODD])
    registry = Registry([origin("m", method, "one")], plugins=[origin("p", strange(odd(code="OTHER001")), "two")])
    found = [(each.code, each.origin.method, each.origin.distribution) for each in registry.rules()]
    assert found == [("ROW002", "m", "one"), ("ROW001", "m", "one"), ("OTHER001", "p", "two")]
    assert [each.code for each in registry.plugin_rules()] == ["OTHER001"]


def test_a_broken_method_leaves_the_rules_of_others_listed() -> None:
    broken, sound = make_plugin(qload_rules=fail(KeyError("x"))), make_plugin(qload_rules=lambda: [ODD])
    registry = Registry([origin("broken", broken), origin("sound", sound)])
    with pytest.warns(PluginWarning, match="qload_rules raises KeyError: 'x'"):
        assert [each.code for each in registry.rules()] == ["ROW001"]


def test_validating_asks_no_method_but_the_checkpoints_own() -> None:
    registry = registry_with(make_rows(qload_rules=fail(KeyError("x"))))
    assert qload.validate(DEMO, registry=registry).ok


def test_blocked_plugins_add_no_rules() -> None:
    registry = Registry(plugins=[origin("p", strange(ODD))], blocked=["p"])
    assert registry.rules() == ()


def test_two_distributions_with_one_code_are_a_conflict_when_it_is_used() -> None:
    first, second = make_plugin(qload_rules=lambda: [ODD]), make_plugin(qload_rules=lambda: [odd(title="even")])
    registry = Registry([origin("a", first, "one"), origin("b", second, "two")])
    assert [each.origin.distribution for each in registry.rules()] == ["one", "two"]
    with pytest.raises(RuleConflictError, match="block one of them") as caught:
        choose_rule(registry.rules(), "ROW001")
    assert caught.value.plugins == ("one (a_module)", "two (b_module)")
    assert choose_rule(registry.rules(), "ROW002") is None


def test_two_methods_of_one_distribution_may_share_a_rule() -> None:
    plugin = make_plugin(qload_rules=lambda: [ODD])
    registry = Registry([origin("a", plugin), origin("b", plugin)])
    found = choose_rule(registry.rules(), "ROW001")
    assert found is not None
    assert found.rule is ODD


def test_the_installed_rules_say_why_they_matter_and_how_to_mend_what_they_find(registry: Registry) -> None:
    assert all(each.rule.failure and each.rule.cure for each in registry.rules())
    assert "HQQ001" in {each.code for each in registry.rules()}
