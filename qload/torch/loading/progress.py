"""How far a load has come, and what it was."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf

from qload.findings import Finding


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes landed of all bytes, the layer that the last of them belong to, and the seconds since copying began."""

    done: int
    total: int
    layer: str
    elapsed: float = field(default=0.0, compare=False)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.done / self.elapsed if self.elapsed else 0.0

    @property
    def left(self) -> float:
        """Seconds until all bytes have landed, at that rate; infinite before any has."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.rate if self.rate else inf


ProgressHook = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did.

    `rank` of `size` ranks it was done on. `tensors` is the number of stored tensors, `bytes_read` what was read of
    them, of which `bytes_needed` were copied, `bytes_in_memory` what the model holds now, `bytes_dense` what its
    weights would be in the dtype it computes in, all of this rank. `seconds` are by phase: in "process" values were
    checked and post-load hooks ran, in "copy" there was nothing but reading to wait for. `layers` counts layers by
    method and scheme, `paths` by what they compute with, and `reasons` those that have no kernel by why not.
    """

    path: str
    method: str
    device: str
    dtype: str
    tensors: int
    bytes_read: int
    bytes_needed: int
    bytes_in_memory: int
    bytes_dense: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    paths: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    rank: int = 0
    size: int = 1
