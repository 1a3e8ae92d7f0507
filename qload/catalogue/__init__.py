"""The catalogue: every rule of the core, a module for each family. A method's own rules carry its own prefix."""

from qload.catalogue import configs, divisions, files, modules, shapes, values
from qload.catalogue.rule import Rule, Severity, Tier

RULES: dict[str, Rule] = {
    rule.code: rule for family in (files, configs, modules, shapes, divisions, values) for rule in family.RULES
}
"""The rules by their codes."""

__all__ = ["RULES", "Rule", "Severity", "Tier"]
