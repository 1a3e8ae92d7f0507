"""The rules that plugins add to the catalogue: who declares them, and that what is found has been declared."""

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qload.answers import find_undeclared, read_findings_of
from qload.calls import BoundHook, Origin, PluginWarning, ask, call
from qload.catalogue import Rule
from qload.errors import PluginError, QloadError, RuleConflictError
from qload.findings import Finding

if TYPE_CHECKING:
    from qload.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class PluginRule:
    """A rule, and the plugin that declares it."""

    rule: Rule
    origin: Origin

    @property
    def code(self) -> str:
        return self.rule.code

    def find(self, checkpoint: "Checkpoint") -> tuple[Finding, ...]:
        """What the rule itself finds in a checkpoint; nothing, with a PluginWarning, where it is broken."""
        if self.rule.find is None:
            return ()
        try:
            findings: tuple[Finding, ...] = call(
                self.origin,
                f"the rule {self.code}",
                self.rule.find,
                checkpoint,
                where=str(checkpoint.path),
                read=read_findings_of({self.code: self.rule}),
            )
        except QloadError as error:
            warnings.warn(f"passed over: {self._blame(error)}", PluginWarning, stacklevel=2)
            return ()
        return findings

    def _blame(self, error: QloadError) -> PluginError:
        if isinstance(error, PluginError):
            return error
        return self.origin.blame(f"the rule {self.code} raises {type(error).__name__}: {error}")


def declare_rules(hook: BoundHook | None) -> dict[str, Rule]:
    """The rules that a plugin's hook declares, by their codes. Raises PluginError."""
    rules: tuple[Rule, ...] = hook() if hook is not None else ()
    return {rule.code: rule for rule in rules}


def check_declared(findings: Iterable[Finding], declared: Mapping[str, Rule], origin: Origin) -> None:
    """Raises PluginError where a method finds what it does not declare."""
    faults = list(dict.fromkeys(f"qload_check {fault}" for fault in find_undeclared(findings, declared)))
    if faults:
        raise origin.blame(*faults)


def gather_rules(hooks: Iterable[BoundHook]) -> tuple[PluginRule, ...]:
    """The rules of several plugins; broken ones are passed over with a PluginWarning.

    Those that a distribution declares in several places alike are one.
    """
    found: dict[tuple[Rule, str], PluginRule] = {}
    for hook in hooks:
        for rule in ask(hook) or ():
            found.setdefault((rule, hook.origin.distribution), PluginRule(rule, hook.origin))
    return tuple(found.values())


def choose_rule(rules: Iterable[PluginRule], code: str) -> PluginRule | None:
    """The rule of that code, None where nobody declares it. Raises RuleConflictError where several plugins do."""
    found = [each for each in rules if each.code == code]
    if len(found) > 1:
        raise RuleConflictError(code, [f"{each.origin.distribution} ({each.origin.target})" for each in found])
    return found[0] if found else None


def settle_rules(rules: Iterable[PluginRule]) -> Iterator[PluginRule]:
    """The rules whose codes only one plugin declares; the others are passed over with a PluginWarning."""
    claimed: dict[str, list[PluginRule]] = defaultdict(list)
    for each in rules:
        claimed[each.code].append(each)
    for code, group in claimed.items():
        try:
            choose_rule(group, code)
        except RuleConflictError as error:
            warnings.warn(f"passed over: {error}", PluginWarning, stacklevel=2)
        else:
            yield from group
