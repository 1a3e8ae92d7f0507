"""One change of one JSON file."""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

_INDENT = re.compile(r'\n([ \t]+)["\[{]')


@dataclass(frozen=True, slots=True)
class Repair:
    """The new content of a file: `what` is done in words, `before` is None where there is no file yet."""

    file: Path
    what: str
    before: bytes | None = field(repr=False)
    after: bytes = field(repr=False)

    def diff(self) -> str:
        """The change as a unified diff; nothing for what is no text."""
        name = self.file.name
        old, new = (_split_lines(content) for content in (self.before or b"", self.after))
        source = f"a/{name}" if self.before is not None else "/dev/null"
        return "".join(difflib.unified_diff(old, new, source, f"b/{name}"))


def _split_lines(content: bytes) -> list[str]:
    """The lines of a text, each with its end; the last one of a file says where it has none."""
    lines = content.decode(errors="backslashreplace").split("\n")
    last = lines.pop()
    ended = [f"{line}\n" for line in lines]
    return [*ended, f"{last}\n\\ No newline at end of file\n"] if last else ended


def find_indent(text: str) -> str | None:
    """What the first member of a JSON file is indented by; None where all stands in one line."""
    match = _INDENT.search(text)
    return match[1] if match else None
