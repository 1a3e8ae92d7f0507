"""What a rule of the catalogue says of itself."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


class Tier(StrEnum):
    """What a rule has to read: the config, file headers, a few bytes, or whole tensors."""

    CONFIG = "C"
    HEADERS = "H"
    PROBE = "P"
    DATA = "D"


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the catalogue: what is wrong (`title`), what it leads to (`failure`), and how to mend it (`cure`).

    A waivable rule may be ignored by a load. One that `needs_model` compares the checkpoint with an architecture, which
    only loading builds; one that `needs_ranks` with the share of a rank.
    """

    code: str
    severity: Severity
    tier: Tier
    title: str
    failure: str = ""
    cure: str = ""
    waivable: bool = False
    needs_model: bool = False
    needs_ranks: bool = False

    @property
    def is_validated(self) -> bool:
        """Whether validating can find it from config and headers alone; loading can find all."""
        return self.tier in (Tier.CONFIG, Tier.HEADERS) and not self.needs_model and not self.needs_ranks


def error(code: str, tier: Tier, title: str, failure: str = "", cure: str = "", **more: bool) -> Rule:
    """A rule whose findings stop a load."""
    return Rule(code, Severity.ERROR, tier, title, failure, cure, **more)


def warning(code: str, tier: Tier, title: str, failure: str = "", cure: str = "", **more: bool) -> Rule:
    """A rule whose findings are worth knowing."""
    return Rule(code, Severity.WARNING, tier, title, failure, cure, **more)
