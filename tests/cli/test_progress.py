"""One bar shows what all ranks have loaded."""

import threading
import time
from dataclasses import dataclass, field

import pytest

import qload
from qload.cli.bars import ByteBar
from qload.cli.progress import RanksBar


@dataclass
class Number:
    """What a store keeps for all ranks."""

    value: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_gone: bool = False

    def add(self, number: int) -> int:
        if self.is_gone:
            raise RuntimeError("connection closed")
        with self.lock:
            self.value += number
            return self.value

    def read(self) -> int:
        return self.add(0)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(ByteBar, "show", lambda self, done, total: seen.append((done, total)))
    return seen


def wait_for(shown: list[tuple[int, int]], wanted: tuple[int, int]) -> None:
    deadline = time.monotonic() + 20
    while not shown or shown[-1] != wanted:
        assert time.monotonic() < deadline, shown
        time.sleep(0.01)


def load(bar: RanksBar, *done: int, total: int) -> None:
    with bar as tell:
        for each in done:
            tell(qload.Progress(each, total, "layer"))


def test_a_bar_has_the_bytes_of_all_ranks_of_all_that_they_load(shown: list[tuple[int, int]]) -> None:
    done, total = Number(), Number()
    load(RanksBar(done, total, shows=False), 10 << 20, 30 << 20, total=30 << 20)
    with RanksBar(done, total, shows=True) as tell:
        tell(qload.Progress(5 << 20, 20 << 20, "layer"))
        wait_for(shown, (35 << 20, 50 << 20))
        tell(qload.Progress(20 << 20, 20 << 20, "layer"))
        wait_for(shown, (50 << 20, 50 << 20))


def test_small_steps_are_told_together_and_none_is_lost() -> None:
    told: list[int] = []

    class Listening(Number):
        def add(self, number: int) -> int:
            told.append(number)
            return super().add(number)

    done, total = Listening(), Number()
    load(RanksBar(done, total, shows=False), *range(1 << 10, 9 << 20, 1 << 10), 9 << 20, total=9 << 20)
    assert done.value == 9 << 20
    assert len(told) <= 4


def test_ranks_that_are_gone_end_the_bar_and_not_the_load(shown: list[tuple[int, int]]) -> None:
    done, total = Number(is_gone=True), Number()
    with RanksBar(done, total, shows=True):
        time.sleep(0.3)
    assert not shown
