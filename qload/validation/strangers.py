"""What the rules of plugins find that are not about one method."""

from collections.abc import Iterator

from qload.examination import Examination
from qload.findings import Finding
from qload.rules import settle_rules


def find_by_plugins(found: Examination) -> Iterator[Finding]:
    """Ask every rule of the group `qload.plugins` that finds its own faults; a broken one is passed over."""
    if found.registry is None:
        return
    for rule in settle_rules(found.registry.plugin_rules()):
        yield from rule.find(found.checkpoint)
