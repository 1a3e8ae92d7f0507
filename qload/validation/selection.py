"""Which rules' findings are wanted, by the beginnings of their codes."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

UNREADABLE = "QL013"
"""The rule of what could not be read. It is always wanted: without it, what nobody saw would pass for sound."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Codes, or beginnings of them: `QL4` are all that begin so. Without any to select, all are wanted.

    Where both lists have one for a code, the longer decides, and of two alike the one that ignores.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def wants(self, code: str) -> bool:
        """Whether the findings of a rule are wanted."""
        if code == UNREADABLE:
            return True
        return _longest(self.select or ("",), code) > _longest(self.ignore, code)


def split_codes(codes: Iterable[str]) -> tuple[str, ...]:
    """The codes of lists with commas, and of one such list by itself."""
    lists = [codes] if isinstance(codes, str) else codes
    return tuple(code for each in lists for code in re.split(r"[\s,]+", each) if code)


def _longest(prefixes: Iterable[str], code: str) -> int:
    return max((len(prefix) for prefix in prefixes if code.startswith(prefix)), default=-1)
