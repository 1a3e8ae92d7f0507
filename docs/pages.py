"""The pages about findings: one for each rule, and the table of them all."""

from collections.abc import Iterable, Mapping
from itertools import chain
from textwrap import fill

from qload.catalogue import FAMILIES, Rule
from qload.registry import Registry

OURS = "qload-torch"
"""The distribution whose plugins' rules have pages here, too."""
_WIDTH = 120


def list_families() -> dict[str, list[Rule]]:
    """The rules of the core and of the plugins that come with it, by what they are about."""
    families = {family: list(rules) for family, rules in FAMILIES.items()}
    for added in Registry.discover().rules():
        if added.origin.distribution == OURS:
            families.setdefault(f"added by {added.origin.method}", []).append(added.rule)
    return families


def make_pages(families: Mapping[str, Iterable[Rule]], examples: Mapping[str, str]) -> dict[str, str]:
    """The text of each page by its file's name."""
    rules = chain.from_iterable(families.values())
    return {f"{rule.code}.md": make_page(rule, examples.get(rule.code, "")) for rule in rules}


def make_page(rule: Rule, example: str) -> str:
    """What a rule finds, why it matters, how to mend it, where it is silent, and what is printed of it."""
    facts = f"{rule.severity.value.capitalize()}. Reads {rule.tier.reads}; found by `{rule.found_by}`."
    parts = [
        f"# {rule.code}: {rule.title}",
        f"{facts}{_describe_waiver(rule)}",
        f"## Why it matters\n\n{_wrap(rule.failure)}",
        f"## How to mend it\n\n{_wrap(rule.cure)}",
    ]
    if rule.limits:
        parts.append(f"## Where it is silent\n\n{_wrap(rule.limits)}")
    if example:
        parts.append(f"## What it looks like\n\n```\n{example}\n```")
    return "\n\n".join([*parts, "[All findings](../findings.md)"]) + "\n"


def _wrap(text: str) -> str:
    return fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _describe_waiver(rule: Rule) -> str:
    return f' A load ignores it with `ignore=["{rule.code}"]`.' if rule.waivable else ""


def make_index(families: Mapping[str, Iterable[Rule]]) -> str:
    """A table for each family, whose rows lead to the pages."""
    return "\n\n".join(f"## {family.capitalize()}\n\n{_tabulate(rules)}" for family, rules in families.items())


def _tabulate(rules: Iterable[Rule]) -> str:
    rows = ["| code | severity | what | reads | found by |", "|---|---|---|---|---|"]
    for rule in rules:
        link = f"[{rule.code}](findings/{rule.code}.md)"
        waivable = ", can be waived" if rule.waivable else ""
        cells = (link, f"{rule.severity.value}{waivable}", rule.title, rule.tier.reads, f"`{rule.found_by}`")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
