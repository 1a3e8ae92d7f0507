"""What planning answers: for each number of ranks the bytes of each rank, and what stands in the way."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from qload.catalogue import Severity
from qload.findings import Finding


class Split(StrEnum):
    """How modules are divided over ranks."""

    COLUMN = "column"
    """By output features."""
    ROW = "row"
    """By input features."""
    VOCABULARY = "vocabulary"
    """By the rows of a vocabulary, of which the last ranks may have fewer, or padding alone."""
    EXPERTS = "experts"
    """By experts, each of which is whole."""
    WHOLE = "whole"
    """Not at all: each rank has it."""


@dataclass(frozen=True, slots=True)
class Share:
    """The bytes that one rank reads from disk, and those that it holds in memory, padding included."""

    read: int
    held: int


@dataclass(frozen=True, slots=True)
class Group:
    """Modules or tensors that differ only in the numbers in their names, and what each rank has of all of them.

    `stored` are the bytes that one process reads of them. `label` is their method and scheme; plain tensors have none.
    """

    where: str
    count: int
    split: Split
    label: str
    stored: int
    ranks: tuple[Share, ...]

    @property
    def replicated(self) -> int:
        """The bytes that are read more than once: what all ranks read beyond what one process does."""
        return _read(self.ranks) - self.stored


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a number of ranks does not do, for `count` modules that differ only in the numbers in their names.

    `tensor` is the one that cannot be cut, empty where the module as a whole cannot; `unit` the number of elements
    that stay together; `sizes` are the numbers of ranks that would do for them.
    """

    where: str
    count: int
    tensor: str
    what: str
    unit: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SizePlan:
    """A load on `size` ranks: the share of each, by groups of modules; without shares where there are obstacles."""

    size: int
    ranks: tuple[Share, ...]
    groups: tuple[Group, ...]
    obstacles: tuple[Obstacle, ...]

    @property
    def fits(self) -> bool:
        """Whether every module can be divided over so many ranks, or kept whole on each."""
        return not self.obstacles

    @property
    def read(self) -> int:
        """The bytes that all ranks read."""
        return _read(self.ranks)

    @property
    def replicated(self) -> int:
        """The bytes that are read more than once."""
        return sum(group.replicated for group in self.groups)


@dataclass(frozen=True, slots=True)
class RankPlans:
    """The loads of the checkpoint at `path` on each number of ranks that was asked for.

    `method` is None where it could not be had. `untold` are modules of which neither headers nor config tell rows
    from columns: they count as whole on each rank. `sizes` is empty where a finding is an error.
    """

    path: Path
    method: str | None
    tensors: int
    nbytes: int
    findings: tuple[Finding, ...]
    sizes: tuple[SizePlan, ...] = ()
    untold: tuple[str, ...] = ()

    @property
    def is_told(self) -> bool:
        """Whether the checkpoint is sound, and says of every module how large it is."""
        return not self.untold and all(finding.severity is not Severity.ERROR for finding in self.findings)

    @property
    def fits(self) -> bool:
        """Whether every number of ranks that was asked for does."""
        return all(plan.fits for plan in self.sizes)


def _read(shares: Iterable[Share]) -> int:
    return sum(share.read for share in shares)
