"""The catalogue: every rule of the core, a module for each family. A plugin's own rules carry its own prefix."""

from collections.abc import Mapping

from qload.catalogue import configs, divisions, files, modules, shapes, values
from qload.catalogue.rule import Rule, Severity, Tier, error, warning

FAMILIES: Mapping[str, tuple[Rule, ...]] = {
    "files": files.RULES,
    "config": configs.RULES,
    "modules": modules.RULES,
    "shapes and dtypes": shapes.RULES,
    "tensor parallelism": divisions.RULES,
    "values": values.RULES,
}
"""The rules by what they are about."""

RULES: dict[str, Rule] = {rule.code: rule for rules in FAMILIES.values() for rule in rules}
"""The rules by their codes."""

__all__ = ["FAMILIES", "RULES", "Rule", "Severity", "Tier", "error", "warning"]
