"""What a rule of the catalogue says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qload.checkpoint import Checkpoint
    from qload.findings import Finding


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


class Tier(StrEnum):
    """What a rule has to read: the config, file headers, a few bytes, or whole tensors."""

    CONFIG = "C"
    HEADERS = "H"
    PROBE = "P"
    DATA = "D"

    @property
    def reads(self) -> str:
        """What is read, in words."""
        return {"C": "the config", "H": "headers", "P": "a few bytes", "D": "whole tensors"}[self.value]


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of a catalogue.

    What is wrong (`title`), what an engine or a load makes of it (`failure`), how to mend it (`cure`), and where the
    rule is silent on purpose (`limits`). A waivable rule may be ignored by a load. One that `needs_model` compares the
    checkpoint with an architecture, which transformers builds; one that `needs_ranks` with the share of a rank.
    One that `needs_load` is found by a method's runtime, while a checkpoint is loaded.

    `find` is how a rule of a plugin of the group `qload.plugins` finds its faults, in any checkpoint.
    """

    code: str
    severity: Severity
    tier: Tier
    title: str
    failure: str = ""
    cure: str = ""
    limits: str = ""
    waivable: bool = False
    needs_model: bool = False
    needs_ranks: bool = False
    needs_load: bool = False
    find: Callable[[Checkpoint], Iterable[Finding]] | None = field(default=None, compare=False, repr=False)

    @property
    def is_validated(self) -> bool:
        """Whether validating can find it from config and headers alone."""
        return self.tier in (Tier.CONFIG, Tier.HEADERS) and not (
            self.needs_model or self.needs_ranks or self.needs_load
        )

    @property
    def found_by(self) -> str:
        """The least that has to be run to find it."""
        if self.needs_load:
            return "qload.load"
        options = {Tier.PROBE: "--probe", Tier.DATA: "--deep"}
        option = "--model" if self.needs_model else "--tp" if self.needs_ranks else options.get(self.tier, "")
        return f"qload validate {option}".rstrip()


def error(code: str, tier: Tier, title: str, **more: Any) -> Rule:
    """A rule whose findings stop a load; `more` are the other fields of `Rule`."""
    return Rule(code, Severity.ERROR, tier, title, **more)


def warning(code: str, tier: Tier, title: str, **more: Any) -> Rule:
    """A rule whose findings are worth knowing; `more` are the other fields of `Rule`."""
    return Rule(code, Severity.WARNING, tier, title, **more)
