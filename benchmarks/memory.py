"""Memory of processes: what they hold now, the most that they held, and how it went."""

import resource
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

PAGE = resource.getpagesize()
PERIOD = 0.004
"""Seconds between two samples."""


def status(name: str) -> int:
    """A field of this process's status, in bytes; 0 where the system has no such field."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


class Watch(threading.Thread):
    """Samples this process's memory every few milliseconds: the anonymous, or another field of its status."""

    def __init__(self, name: str = "RssAnon") -> None:
        super().__init__(daemon=True)
        self._name = name
        self._peak = 0

    def run(self) -> None:
        while True:
            self._peak = max(self._peak, status(self._name))
            time.sleep(0.003)

    def take(self) -> int:
        """The greatest sample since the last time."""
        peak, self._peak = self._peak, 0
        return peak


@dataclass(frozen=True, slots=True)
class Sample:
    """What processes held at a time of `time.perf_counter`: resident bytes, and the anonymous ones of them."""

    time: float
    resident: int
    anonymous: int


@dataclass(slots=True)
class Trace:
    """What another process held, sample by sample, taken from outside so that it is not slowed."""

    process: int
    samples: list[Sample] = field(default_factory=list)

    def sample(self) -> None:
        """Take a sample, as long as the process is there."""
        try:
            fields = Path(f"/proc/{self.process}/statm").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            return
        resident, shared = int(fields[1]) * PAGE, int(fields[2]) * PAGE
        if resident:
            self.samples.append(Sample(time.perf_counter(), resident, resident - shared))

    def between(self, start: float, stop: float) -> list[Sample]:
        """The samples of an interval, above what was held when it began."""
        before = [each for each in self.samples if each.time <= start][-1:] or self.samples[:1]
        inside = [each for each in self.samples if start < each.time <= stop]
        return [
            Sample(each.time - start, each.resident - before[0].resident, each.anonymous - before[0].anonymous)
            for each in inside
        ]
