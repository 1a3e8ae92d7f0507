"""Reads a GGUF header's numbers, strings and arrays from a file, a window at a time, and never beyond bounds."""

import struct
from typing import Any

from qload.checkpoint import Storage
from qload.checkpoint.documents import unreadable
from qload.findings import Finding, report

MAX_HEADER_BYTES = 1 << 28
MAX_KEPT = 1 << 10
"""The entries of the longest array that is kept."""
_WINDOW = 1 << 22

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class UnreadableError(Exception):
    """A header that cannot be read on, with the finding that says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


class Cursor:
    """A place in a file, `name` in findings. Every method raises UnreadableError where the file does not go on."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.name = name
        self._storage = storage
        self._window, self._base, self._at = b"", 0, 0
        try:
            self.size = storage.size(name)
        except OSError as error:
            raise UnreadableError(unreadable(name, error)) from error

    @property
    def place(self) -> int:
        """The bytes before the cursor."""
        return self._base + self._at

    def fail(self, message: str, *, code: str = "QL003", **facts: Any) -> UnreadableError:
        return UnreadableError(report(code, message, file=self.name, **facts))

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuse a number of things that the rest of the file cannot hold, each of so many bytes at least."""
        if count * least > min(self.size, MAX_HEADER_BYTES) - self.place:
            raise self.fail(f"claims an impossible number of {what}", found=count)

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._need(count)
        taken = self._window[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, form: str) -> Any:
        """A number, as `struct` calls its form."""
        size = struct.calcsize(form)
        self._need(size)
        (value,) = struct.unpack_from(form, self._window, self._at)
        self._at += size
        return value

    def text(self, most: int = MAX_HEADER_BYTES) -> str:
        """A string of at most so many bytes."""
        length = self.number("<Q")
        if length > most:
            raise self.fail("has an impossible string in its header", expected=f"at most {most} bytes", found=length)
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.fail("has a string in its header that is not UTF-8", found=f"{error.reason}") from error

    def value(self, kind: int, key: str) -> Any:
        """A value of metadata; None for an array of strings, or a long one, which is passed over."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise self.fail("has metadata of a kind that is not known", where=key, found=f"kind {kind}")
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _STRING:
            self.check_count(count, 8, f"strings of {key}")
            return self._pass_strings(count)
        if kind not in _SCALARS:
            raise self.fail("has an array of a kind that is not known", where=key, found=f"kind {kind}")
        return self._numbers(_SCALARS[kind], count, key)

    def _numbers(self, form: str, count: int, key: str) -> tuple[Any, ...] | None:
        size = struct.calcsize(form)
        self.check_count(count, size, f"entries of {key}")
        if count > MAX_KEPT:
            self._skip(count * size)
            return None
        return struct.unpack(f"<{count}{form[1]}", self.take(count * size))

    def _pass_strings(self, count: int) -> None:
        """Pass over strings: a loop of few words, for a vocabulary has hundreds of thousands."""
        window, at, read = self._window, self._at, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > len(window):
                self._at = at
                self._need(8)
                window, at = self._window, self._at
            at += 8 + read(window, at)[0]
            if at > len(window):
                self._at = len(window)
                self._skip(at - len(window))
                window, at = self._window, self._at
        self._at = at

    def _skip(self, count: int) -> None:
        place = self.place + count
        self._check(place)
        if self._at + count <= len(self._window):
            self._at += count
        else:
            self._window, self._base, self._at = b"", place, 0

    def _need(self, count: int) -> None:
        """Have the next bytes in the window."""
        if self._at + count <= len(self._window):
            return
        self._check(self.place + count)
        rest = self._window[self._at :]
        self._base, self._at = self.place, 0
        try:
            more = self._storage.read(self.name, self._base + len(rest), max(count - len(rest), _WINDOW))
        except OSError as error:
            raise UnreadableError(unreadable(self.name, error)) from error
        self._window = rest + more
        if len(self._window) < count:
            raise self._ends(self.place + count)

    def _check(self, place: int) -> None:
        if place > self.size:
            raise self._ends(place)
        if place > MAX_HEADER_BYTES:
            raise self.fail("claims an impossible header", expected=f"at most {MAX_HEADER_BYTES} bytes", found=place)

    def _ends(self, place: int) -> UnreadableError:
        return self.fail(
            "ends inside its header",
            code="QL004",
            expected=f"{place} bytes or more",
            found=self.size,
            remedy="download it again",
        )
