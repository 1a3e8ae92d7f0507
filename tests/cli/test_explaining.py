"""`qload explain` and `qload rules`: the catalogue, and what plugins add to it, for people and for programs."""

import json
import types
from typing import Any

import pytest
from click.testing import CliRunner, Result
from strangers import make_rows, origin, registry_with

from qload.catalogue import RULES, Rule, Tier, warning
from qload.cli import cli
from qload.registry import Registry

OWN = warning("STRANGE001", Tier.CONFIG, "something strange", failure="It may bite.", cure="Keep away.")


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def plain(text: str) -> str:
    """The text with each stretch of space as one."""
    return " ".join(text.split())


def make_plugin(*rules: Rule) -> types.SimpleNamespace:
    return types.SimpleNamespace(qload_rules=lambda: rules)


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another distribution adds rules of its own."""
    first = make_plugin(OWN, warning("STRANGE002", Tier.CONFIG, "odd"))
    second = make_plugin(warning("STRANGE002", Tier.CONFIG, "even"))
    plugins = [origin("one", first, "dist-one"), origin("two", second, "dist-two")]
    registry = registry_with(make_rows(), plugins=plugins)
    monkeypatch.setattr(Registry, "discover", lambda: registry)


@pytest.mark.parametrize("code", RULES)
def test_every_rule_is_explained(code: str) -> None:
    output = plain(call("explain", code).output)
    rule = RULES[code]
    assert output.startswith(f"{code} {rule.severity}: {rule.title} reads {rule.tier.reads}; found by")
    assert f"`{rule.found_by}`" in output
    assert all(plain(text) in output for text in (rule.failure, rule.cure, rule.limits))
    assert ("a load may ignore it" in output) == rule.waivable


def test_several_rules_are_explained_one_after_another_and_each_once() -> None:
    output = call("explain", "ql301", "QL101", "QL301").output
    assert [line[:5] for line in output.splitlines() if line.startswith("QL")] == ["QL301", "QL101"]


def test_no_line_is_longer_than_the_terminal_nor_ends_in_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = call("explain", "QL105").output.splitlines()
    assert max(map(len, lines)) <= 60
    assert [line for line in lines if line != line.rstrip()] == []


def test_an_explanation_for_programs() -> None:
    found = json.loads(call("explain", "QL210", "QL001", "--format", "json").output)
    assert [each["code"] for each in found] == ["QL210", "QL001"]
    assert (found[0]["severity"], found[0]["waivable"], found[0]["from"]) == ("error", True, "qload")
    assert all(found[0][field] == getattr(RULES["QL210"], field) for field in ("title", "failure", "cure", "limits"))


@pytest.mark.parametrize(
    ("code", "near"), [("QL011X", "QL011"), ("QL1O1", "QL101"), ("HQQ01", "HQQ001"), ("NOTHING", "`qload rules` lists")]
)
def test_an_unknown_code_is_an_error_that_names_near_ones(code: str, near: str) -> None:
    result = call("explain", "QL101", code)
    assert result.exit_code == 2
    assert f"there is no rule '{code}'" in result.output
    assert near in result.output
    assert "why it matters" not in result.output


def test_explaining_the_cores_rules_asks_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise AssertionError("asked")

    monkeypatch.setattr(Registry, "discover", fail)
    assert call("explain", "QL201").exit_code == 0


@pytest.mark.usefixtures("strangers")
def test_a_rule_of_a_plugin_is_explained_with_where_it_comes_from() -> None:
    output = plain(call("explain", "STRANGE001").output)
    assert output.startswith("STRANGE001 warning: something strange reads the config; found by `qload validate`")
    assert "from dist-one 1.0" in output
    result = call("explain", "STRANGE002")
    assert result.exit_code == 2
    assert "STRANGE002 is declared by dist-one (one_module) and dist-two (two_module)" in result.output


def test_all_rules_are_listed_by_family() -> None:
    lines = call("rules").output.splitlines()
    codes = [line.split()[0] for line in lines if line and line.split()[0] in RULES]
    assert codes == list(RULES)
    assert lines[0] == "files"
    assert "tensor parallelism" in lines
    (row,) = [line for line in lines if line.startswith("QL401")]
    assert plain(row) == f"QL401 error {RULES['QL401'].title} qload validate --tp"


@pytest.mark.usefixtures("strangers")
def test_the_rules_of_plugins_are_listed_with_where_they_come_from() -> None:
    output = call("rules").output
    assert "added by one (dist-one 1.0)\nSTRANGE001  warning  something strange" in output
    assert "added by two (dist-two 1.0)\nSTRANGE002  warning  even" in output
    rows = json.loads(call("rules", "--format", "json").output)
    assert [row["code"] for row in rows[: len(RULES)]] == list(RULES)
    (row,) = [row for row in rows if row["code"] == "STRANGE001"]
    assert (row["from"], row["failure"], row["found_by"]) == ("dist-one 1.0", "It may bite.", "qload validate")
    assert row.keys() == rows[0].keys()
