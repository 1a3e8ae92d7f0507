"""Memory that tensors leave during a load, for those that come next."""

import mmap
import threading
import weakref
from dataclasses import dataclass

ALIGNMENT = 64
_LEAST = 64 << 10
"""Less is kept until its mapping goes: to take it out of a huge page, the system has to split that, and all wait."""
_ADVICE_FREE: int | None = getattr(mmap, "MADV_DONTNEED", None)


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """Bytes of a mapping."""

    map: mmap.mmap
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start

    def lend(self, spares: "Spares") -> memoryview:
        """An object that stands for the bytes: when it goes, `spares` are given them."""
        piece = memoryview(self.map)[self.start : self.stop]
        # A process that ends gives everything back.
        weakref.finalize(piece, spares.give, self).atexit = False
        return piece

    def split(self, nbytes: int) -> tuple["Span", "Span | None"]:
        """So many of the bytes, and the rest from the next one that is aligned on, if it is worth anything."""
        middle = self.start + -(-nbytes // ALIGNMENT) * ALIGNMENT
        rest = Span(self.map, middle, self.stop) if self.stop - middle >= _LEAST else None
        return Span(self.map, self.start, self.start + nbytes if rest else self.stop), rest

    def free(self) -> None:
        """Give the system back the pages that nothing else has a part in."""
        first = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self.stop // mmap.PAGESIZE * mmap.PAGESIZE - first
        if size > 0 and _ADVICE_FREE is not None:
            advise(self.map, _ADVICE_FREE, first, size)


class Spares:
    """Keeps up to `most` bytes of what tensors have left, or the last one alone; the oldest go back to the system.

    Memory that was written to before is there at once, where each fresh page is a fault, and a page of zeros to make.
    Threads may share it, and collecting garbage may give it something at any time.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._spans: list[Span] = []
        self._lock = threading.RLock()

    def give(self, span: Span) -> None:
        """Keep what nothing uses any more, or give it back to the system."""
        if span.nbytes < _LEAST:
            return
        with self._lock:
            self._spans.append(span)
            self._shrink(1 if self._most else 0)

    def take(self, nbytes: int) -> Span | None:
        """So many bytes of anything, or a few more, out of the span that has the least to spare."""
        if nbytes < _LEAST:
            return None
        with self._lock:
            best = min((span for span in self._spans if span.nbytes >= nbytes), key=_measure, default=None)
            if best is None or not self._remove(best):
                return None
            first, rest = best.split(nbytes)
            if rest is not None:
                self._spans.append(rest)
        return first

    def close(self) -> None:
        """Keep nothing from now on."""
        with self._lock:
            self._most = 0
            self._shrink(0)

    def _remove(self, span: Span) -> bool:
        """Whether it was still there: what garbage gives meanwhile may take its place."""
        try:
            self._spans.remove(span)
        except ValueError:
            return False
        return True

    def _shrink(self, least: int) -> None:
        while len(self._spans) > least and sum([span.nbytes for span in self._spans]) > self._most:
            self._spans.pop(0).free()


def _measure(span: Span) -> int:
    return span.nbytes


def advise(mapping: mmap.mmap, advice: int, start: int, size: int) -> None:
    """Tell the system something about some pages."""
    try:
        mapping.madvise(advice, start, size)
    except OSError:  # advice that the system does not take changes nothing but speed
        return
