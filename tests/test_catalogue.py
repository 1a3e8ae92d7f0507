"""The catalogue: each rule says what is wrong, why it matters and how to mend it, and the code reports them all."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from cases import gather_cases

from qload import Registry
from qload.catalogue import FAMILIES, RULES, Rule

ROOT = Path(__file__).parents[1]
TEXTS = ("failure", "cure", "limits")
CODE, FOREIGN = re.compile(r"QL\d{3}"), re.compile(r"[A-Z]{2,8}\d{3}")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_says_why_it_matters_and_how_to_mend_it(rule: Rule) -> None:
    assert rule.failure
    assert rule.cure


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_texts_of_a_rule_are_plain_sentences(rule: Rule) -> None:
    for text in filter(None, (getattr(rule, name) for name in TEXTS)):
        assert re.match(r"[A-Z0-9`-]", text), text
        assert text.endswith("."), text
        assert re.search(r"\s\s|\n|[^.]\.\.$| ,", text) is None, text
        assert text.count("`") % 2 == 0, text
        assert 1 <= len(re.findall(r"\.(?= [A-Z`]|$)", text)) <= 3, text


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_title_is_a_phrase_that_goes_on_a_line(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z][^.]*(\.json[^.]*)?", rule.title)
    assert len(rule.title) <= 80


def test_no_text_stands_twice() -> None:
    texts = [getattr(rule, name) for rule in RULES.values() for name in ("title", "failure")]
    assert len(texts) == len(set(texts))


def test_a_text_names_only_rules_that_there_are() -> None:
    named = {code for rule in RULES.values() for name in TEXTS for code in CODE.findall(getattr(rule, name))}
    assert named <= RULES.keys()


def test_a_family_has_a_hundred_of_its_own() -> None:
    hundreds = [{rule.code[2] for rule in rules} for rules in FAMILIES.values()]
    assert [len(each) for each in hundreds] == [1] * len(FAMILIES)
    assert len(set().union(*hundreds)) == len(FAMILIES)
    assert list(RULES) == sorted(RULES)


def test_the_fields_that_are_texts_are_those_held_here() -> None:
    texts = {field.name for field in fields(Rule) if field.type == "str"}
    assert texts == {"code", "title", *TEXTS}


def test_what_the_code_reports_is_in_the_catalogue() -> None:
    assert set(reported()) <= RULES.keys()


def test_what_is_in_the_catalogue_the_code_reports() -> None:
    assert RULES.keys() == set(reported())


def reported() -> Iterator[str]:
    """The codes that stand in the code of the core and its plugins, anywhere but in the catalogue and in docstrings."""
    for path in (*(ROOT / "qload").rglob("*.py"), *(ROOT / "plugins").glob("qload_*/**/*.py")):
        if "catalogue" not in path.parts:
            yield from (text for text in read_texts(path) if CODE.fullmatch(text))


def read_texts(path: Path) -> Iterator[str]:
    """The texts that stand in a module as constants."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_rule_has_a_checkpoint_that_it_is_held_to() -> None:
    """The modules that have the cases hold each to being found, and the checkpoint as it was to silence."""
    assert gather_cases().keys() == RULES.keys()


def test_what_plugins_report_they_declare() -> None:
    """Also what only their runtime finds, while a checkpoint is loaded: `qload explain` knows every code."""
    declared = {each.rule.code for each in Registry.discover().rules()}
    written = {text for path in (ROOT / "plugins").glob("qload_*/**/*.py") for text in read_texts(path)}
    assert {text for text in written if FOREIGN.fullmatch(text) and not text.startswith("QL")} == declared
