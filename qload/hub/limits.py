"""How long the hub may take, and how often it is asked."""

from dataclasses import dataclass, field

from huggingface_hub import constants


def _read_pause() -> float:
    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Limits:
    """The seconds without a byte, `pause`, and other bounds of one read.

    A read may take `patience` pauses, and the time of its bytes at `rate` a second. It is tried `tries` times, `wait`
    seconds after the first time, each time twice as long. Once `failures` reads in a row had no answer, none is tried.
    """

    pause: float = field(default_factory=_read_pause)
    patience: float = 4.0
    rate: float = 262144.0
    tries: int = 3
    wait: float = 1.0
    failures: int = 4

    def allow(self, count: int) -> float:
        """The seconds that a read of so many bytes may take, with all its tries."""
        return self.pause * self.patience + count / self.rate
